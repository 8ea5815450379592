"""The server of the spot check, asked as a browser asks it, and as an attacker would."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from cloudft.errors import Busy
from local.evaluation.pairs import Pair
from local.evaluation.spotcheck.server import HEADERS, ReviewServer
from local.evaluation.votes import VoteFile, draw, read_votes

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> &amp; \"quoted\" 'too' </p></section>"
PAIRS = [
    Pair(row, ({"role": "user", "content": f"q{row} {HOSTILE}"},), HOSTILE, f"was {row} {HOSTILE}", f"is {row}")
    for row in range(1, 5)
]


@pytest.fixture
def votes(tmp_path: Path) -> VoteFile:
    return VoteFile(tmp_path / "votes.jsonl", draw(PAIRS, 3, 1), 1)


@pytest.fixture
def server(votes: VoteFile) -> Iterator[ReviewServer]:
    with ReviewServer(votes) as server:
        yield server


@pytest.fixture
def browser_like(server: ReviewServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


def press(client: httpx.Client, server: ReviewServer, choice: str) -> httpx.Response:
    """Press a button on the page as it is now."""
    found = re.search(r'name="pair" value="(\w*)"', client.get("").text)
    assert found
    return client.post("vote", data={"pair": found.group(1), "choice": choice})


def test_a_person_goes_through_the_sample(browser_like: httpx.Client, server: ReviewServer, votes: VoteFile) -> None:
    assert "Pair 1 of 3" in browser_like.get("").text
    answer = press(browser_like, server, "left")
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    press(browser_like, server, "undo")
    assert "Pair 1 of 3" in browser_like.get("").text
    for choice in ("left", "right", "tie"):
        assert not server.wait(0)
        press(browser_like, server, choice)
    first, second, third = votes.sample
    assert votes.votes == {
        first.pair.sha256: first.left,
        second.pair.sha256: second.right,
        third.pair.sha256: "tie",
    }
    end = browser_like.get("").text
    assert "All pairs are done" in end
    chosen = [first.left, second.right]
    assert f"the tuned model's answer: {chosen.count('after')}" in end
    press(browser_like, server, "undo")
    press(browser_like, server, "skip")
    assert not server.wait(0)
    assert "Thank you" in press(browser_like, server, "finish").text
    assert server.wait(5)


def test_nobody_is_told_which_model_wrote_what(browser_like: httpx.Client, votes: VoteFile) -> None:
    """Neither by words nor by anything in the page's source that differs between the two sides."""
    shown = browser_like.get("").text
    for number in range(1, 5):  # the answers themselves say it, in these tests only
        shown = shown.replace(f"was {number} ", "").replace(f"is {number}", "")
    assert not re.search(r"\b(before|after|tuned|base)\b", shown.split("<body>")[1])


def test_what_a_model_wrote_is_text(browser_like: httpx.Client) -> None:
    shown = browser_like.get("").text
    assert "<script>alert" not in shown
    assert "<img" not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3


def test_a_second_click_on_the_same_page_is_one_vote(browser_like: httpx.Client, votes: VoteFile) -> None:
    assert votes.current is not None
    form = {"pair": votes.current.pair.sha256, "choice": "left"}
    assert [browser_like.post("vote", data=form).status_code for _ in range(3)] == [303] * 3
    assert len(read_votes(votes.path)) == 1


@pytest.mark.parametrize("form", [{}, {"choice": "left"}, {"pair": "0" * 64, "choice": "left"}, {"choice": "finish"}])
def test_a_form_that_is_not_of_the_page_changes_nothing(
    browser_like: httpx.Client, votes: VoteFile, server: ReviewServer, form: dict[str, str]
) -> None:
    assert browser_like.post("vote", data=form).status_code in (303, 400)
    assert not votes.votes
    assert not server.wait(0)


def test_unknown_choices_and_early_ends_change_nothing(browser_like: httpx.Client, server: ReviewServer) -> None:
    for choice in ("finish", "both", "", "before"):
        press(browser_like, server, choice)
    assert not server.votes.path.exists()
    assert not server.wait(0)


def test_without_the_token_there_is_nothing(server: ReviewServer) -> None:
    root = server.url.removesuffix(f"{server.token}/")
    other = "A" * len(server.token)
    for path in ("", "vote", "style.css", "%F0%9F", f"{other}/", f"{server.token[:-1]}/", f"{server.token}x/"):
        answer = httpx.get(root + path, trust_env=False)
        assert (answer.status_code, server.token in answer.text) == (404, False)
    assert server.votes.current is not None
    form = {"pair": server.votes.current.pair.sha256, "choice": "left"}
    assert httpx.post(f"{root}{other}/vote", data=form, trust_env=False).status_code == 404
    assert not server.votes.votes


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 400),
        ({"Content-Type": "application/json"}, 400),
        ({"Content-Length": "99999"}, 400),
        ({"Content-Length": "-1"}, 400),
    ],
)
def test_another_page_can_not_vote_even_with_the_token(
    server: ReviewServer, headers: dict[str, str], status: int
) -> None:
    """By hand: a client would refuse to send some of these."""
    where = urlsplit(server.url)
    assert server.votes.current is not None
    body = f"pair={server.votes.current.pair.sha256}&choice=left"
    sent = {
        "Host": where.netloc,
        "Content-Type": "application/x-www-form-urlencoded",
        "Content-Length": str(len(body)),
    } | headers
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=10) as sock:
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        sock.sendall(f"POST {where.path}vote HTTP/1.1\r\n{head}\r\n{body}".encode())
        assert int(sock.recv(4096).split(b" ")[1]) == status
    assert not server.votes.votes


def test_it_listens_on_this_computer_alone_and_says_what_a_page_may_do(server: ReviewServer) -> None:
    port = urlsplit(server.url).port
    assert isinstance(port, int)
    assert server._http.server_address[0] == "127.0.0.1"
    answer = httpx.get(server.url, trust_env=False)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "Python" not in answer.headers["server"]
    assert not re.search(r"https?://", answer.text)


def test_a_taken_port_is_an_error_that_says_so(votes: VoteFile, server: ReviewServer) -> None:
    with pytest.raises(Busy, match="cannot be used"):
        ReviewServer(votes, port=int(urlsplit(server.url).port or 0))


def test_a_vote_that_can_not_be_kept_ends_the_review_with_the_reason(
    browser_like: httpx.Client, server: ReviewServer, votes: VoteFile
) -> None:
    votes.path.mkdir()
    assert press(browser_like, server, "left").status_code == 500
    with pytest.raises(IsADirectoryError):
        server.wait(5)
    assert not votes.votes


def test_many_presses_at_once_are_votes_on_different_pairs(server: ReviewServer, votes: VoteFile) -> None:
    """Each carries the pair that it saw: of those that saw the same one, one counts."""

    def click() -> None:
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            for _ in range(5):
                press(client, server, "left")

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line.choice for line in read_votes(votes.path)] == [one.left for one in votes.sample]
