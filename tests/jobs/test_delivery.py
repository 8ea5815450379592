"""The result is sent while the gate still looks at it; what goes home is what the trainer left, whatever was sent."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from jobs.ticket import ADAPTER, RESULT
from tests.jobs.test_supervisor import TRAINER, Machine

# After the last step a candidate, which is measured until it is in the store, and then kept or kept out.
MEASURED = TRAINER.replace(
    "save()\nstatus",
    """save(); (out / "adapter").rename(out / "candidate")
store = Path(json.loads((work / "spec.json").read_text())["store"])
while "is in the store before" not in (work / "train.log").read_text(): time.sleep(0.02)
(out / "audit.json").write_text(json.dumps((store / "adapter.tar").stat().st_mtime_ns))
if mode == "quick":
    (out / "candidate").rename(out / "adapter")
else:
    (out / "candidate" / "adapter_model.safetensors").write_bytes(b"of before")
    (out / "candidate").rename(out / "adapter")
status""",
)


def run(machine: Machine) -> str:
    (machine.root / "trainer.py").write_text(MEASURED)
    machine.write_ticket(spec={"mode": machine.mode, "store": str(machine.store)})
    machine.run()
    log = (machine.store / "train.log").read_text()
    assert log.index("is in the store before") < log.index("supervisor: upload")
    tar = (machine.store / ADAPTER).read_bytes()
    assert machine.json(RESULT)["artifacts"]["adapter"]["sha256"] == hashlib.sha256(tar).hexdigest()
    return log


def weights(machine: Machine) -> bytes:
    with tarfile.open(machine.store / ADAPTER) as tar:
        found = tar.extractfile("adapter_model.safetensors")
        assert found is not None
        return found.read()


def test_a_result_that_is_kept_was_sent_before_the_trainer_ended_and_only_then(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    run(machine)
    assert weights(machine) == b"weights"
    assert (machine.store / ADAPTER).stat().st_mtime_ns == json.loads((machine.store / "audit.json").read_text())


def test_another_result_than_the_one_that_was_measured_is_sent_anew(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="keeps")
    run(machine)
    assert weights(machine) == b"of before"


@pytest.mark.parametrize("mended", [True, False])
def test_a_store_that_does_not_take_it_early_gets_it_later_or_it_is_said(tmp_path: Path, mended: bool) -> None:
    machine = Machine(tmp_path, seconds=20, reserve=5)
    text = MEASURED.replace("is in the store before", "could not be sent early")
    (tmp_path / "trainer.py").write_text(text.replace('(store / "adapter.tar").stat().st_mtime_ns', "0"))
    in_the_way = machine.store / ADAPTER / "x"  # no file can take the place of a folder that is not empty
    in_the_way.mkdir(parents=True)
    machine.write_ticket(spec={"mode": "quick", "store": str(machine.store)})
    process = machine.start()
    machine.wait_for("train.log", "could not be sent early")
    if mended:
        in_the_way.rmdir()
        in_the_way.parent.rmdir()
    process.communicate(timeout=60)
    if mended:
        assert weights(machine) == b"weights"
    else:
        assert not machine.has(RESULT)
        assert "the store did not take it" in machine.json("outcome.json")["reason"]
