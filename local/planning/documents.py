"""Raw text for a cpt stage: a file → documents, or a list of what is wrong with it, by file and line.

*.txt                   one document
JSON lines (or a list)  {"text": …}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local.jsonl import Bad, parse_rows, quoted, read_text, refusal, text
from local.planning.data import plain

# So many words of a question in a row are no accident (GPT-3's authors looked for 13, Brown et al., 2020, appendix C);
# a question of fewer words must stand there whole, and one of less than five says nothing.
WORDS: Final = 13
LEAST_WORDS: Final = 5
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True)
class Document:
    """``line`` says where in its file it began, counted from 1."""

    text: str
    line: int = 0

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.text)

    def canonical(self) -> str:
        """The document as one line of JSON."""
        return json.dumps({"text": self.text}, ensure_ascii=False, separators=(",", ":"))


def load_documents(path: Path, key: str) -> list[Document]:
    """All documents of a file, in its order. ``key`` of ``cloudft.yaml`` names it.

    Raises:
        NotFound: there is no such file.
        DataError: it is empty, not UTF-8, or any row is unfit; the first few are named by line.
    """
    if path.suffix == ".txt":
        whole = read_text(path, key)
        if not whole.strip():
            raise refusal(f"{path} is empty: there is nothing to read in it")
        return [Document(whole, 1)]

    def parse(value: Any, line: int) -> Document:
        if set(value) != {"text"}:
            raise Bad(f"a row of raw text has the one column 'text', but this has {quoted(value) or '(none)'}")
        return Document(text(value["text"], "text"), line)

    return parse_rows(path, parse, key)


def without(documents: Iterable[Document], questions: Iterable[str]) -> list[Document]:
    """The documents that hold none of the questions: what is measured with must not be read in training."""
    asked: dict[int, set[tuple[str, ...]]] = {}
    for question in questions:
        words = _words(question)
        length = min(len(words), WORDS)
        if length >= LEAST_WORDS:
            asked.setdefault(length, set()).update(_runs(words, length))
    return [document for document in documents if not _holds(_words(document.text), asked)]


def _holds(words: list[str], asked: dict[int, set[tuple[str, ...]]]) -> bool:
    return any(run in wanted for length, wanted in asked.items() for run in _runs(words, length))


def _runs(words: list[str], length: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[at:] for at in range(length)), strict=False)


def _words(value: str) -> list[str]:
    return _WORD.findall(plain(value))
