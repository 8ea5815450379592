"""Several types of which some are refused: what passed is kept, and both are told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from cloudft import cli
from cloudft.errors import VerifyError
from local.config import StoreConfig
from local.files import sha256_file
from local.project import Project
from local.quantizing.refused import Refused, SomeRefused, all_refused
from local.runs.records import RunRecord, write_record
from local.serving.versions import current, list_versions
from tests.local.quantize_fixtures import Quantised, quantised

__all__ = ["quantised"]

TYPES = ("Q4_K_M", "Q8_0", "F16")


@pytest.fixture
def project(quantised: Quantised, tmp_path: Path) -> Project:
    """As the command line wants one, with a Q4_K_M version that is the current one."""
    copy = Project(Path(shutil.copytree(quantised.project.root, tmp_path / "copy", symlinks=True)))
    copy.config_file.touch()
    run = copy.run("run-1")
    store = StoreConfig(url="./store")
    spec = sha256_file(run.spec)
    write_record(
        run,
        RunRecord(run_id="run-1", project="tiny", created_at=0, provider="local", store=store, spec_sha256=spec),
        "-",
    )
    return copy


def debris(project: Project) -> list[str]:
    return [path.name for path in project.models.iterdir() if path.name[0] == "." and path.name != ".lock"]


def test_what_passed_is_kept_where_a_type_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First interrupted between the versions that passed: the first is whole, and only the other is made again."""
    before = current(project)
    assert before is not None
    lost = before.manifest.verification.kl_divergence
    assert lost is not None
    typed = ["quantize", "run-1", *(f"--type={kind}" for kind in TYPES), f"--max-kl={lost / 2}"]
    typed += ["--directory", str(project.root), "--json"]
    rename = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if "-f16-" in Path(target).name:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as ctrl_c:
        ctrl_c.setattr(Path, "replace", interrupted)
        assert cli.run(typed) == 130
    capsys.readouterr()
    assert [v.manifest.type for v in list_versions(project)] == ["Q4_K_M", "Q8_0"]
    assert (current(project), debris(project)) == (before, [])
    written = list_versions(project)[1].gguf.stat().st_ino

    assert cli.run(typed) == 13
    said = capsys.readouterr()
    data, error = json.loads(said.out)["data"], json.loads(said.err)
    assert [made["manifest"]["type"] for made in data["versions"]] == ["Q8_0", "F16"]
    assert [refused["type"] for refused in data["refused"]] == ["Q4_K_M"]
    assert (error["error"], error["exit_code"]) == ("VerifyError", 13)
    assert re.match(
        r"Q4_K_M was refused: the Q4_K_M file predicts too differently .*\n  Q8_0 and F16 passed$", error["what"]
    )
    assert f"the current model is now {data['version']};" in error["effect"]
    assert data["refused"][0]["hint"] == error["hint"]
    assert f"cloudft quantize run-1 --type Q4_K_M --max-kl {lost / 2:g} --step-up" in error["hint"]

    served = current(project)
    assert served is not None
    assert (served.name, served.gguf.stat().st_ino) == (data["version"], written)
    assert list_versions(project)[0] == before  # made for another limit, it stays what it is
    assert [v.manifest.type for v in list_versions(project)] == ["Q4_K_M", "Q8_0", "F16"]
    assert debris(project) == []


def test_each_type_has_its_own_words(quantised: Quantised) -> None:
    refused = [Refused("Q2_K", "it lost much", "cloudft a"), Refused("Q3_K_M", "it lost less", "cloudft b")]
    some = SomeRefused([quantised.version], refused)
    assert some.what == "Q2_K was refused: it lost much\n  Q3_K_M was refused: it lost less\n  Q4_K_M passed"
    assert some.hint == "for Q2_K: cloudft a\n        for Q3_K_M: cloudft b"
    assert some.as_dict()["error"] == VerifyError.__name__
    alone = all_refused(refused[:1])
    assert (alone.what, alone.hint) == ("it lost much", "cloudft a")
    assert "no version was made" in all_refused(refused).effect
