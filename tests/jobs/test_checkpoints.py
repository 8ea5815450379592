"""Checkpoints on disk and in the store's two slots: whole or not there, and never in the way of a training."""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs import checkpoints, transfer
from jobs.bundle import pack, unpack
from jobs.checkpoints import SEAL, seal, sealed, sweep
from jobs.keeper import Keeper
from jobs.rescue import Rescue
from jobs.ticket import CHECKPOINT, SLOTS, Output
from jobs.transfer import TransferError
from tests.services.s3 import S3Server

SPEC = "5" * 64


def write_checkpoint(folder: Path, step: int, spec: str = SPEC) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"moments" * step)
    (path / "adapter_model.safetensors").write_bytes(b"weights of step %d" % step)
    (path / "adapter_config.json").write_text("{}")
    seal(path, step, spec, at=float(step))
    return path


def test_only_a_sealed_checkpoint_of_the_spec_counts_and_the_newest_is_first(tmp_path: Path) -> None:
    for step in (9, 10, 8):
        write_checkpoint(tmp_path, step)
    write_checkpoint(tmp_path, 11, spec="6" * 64)
    (write_checkpoint(tmp_path, 12) / SEAL).unlink()
    (write_checkpoint(tmp_path, 13) / SEAL).write_text("{ half")
    assert [c.step for c in sealed(tmp_path, SPEC)] == [10, 9, 8]
    assert [c.step for c in sealed(tmp_path)] == [11, 10, 9, 8]
    assert sealed(tmp_path / "nowhere") == []


def test_damage_is_found_and_swept_away(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"momentS" * 2)
    found = sealed(tmp_path)
    assert [c.damage() for c in found] == [
        "optimizer.pt is missing",
        "the sha256 of optimizer.pt differs",
        "",
    ]
    sweep(tmp_path, keep=found[2:])
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_packed_folder_comes_back_and_nothing_leaves_its_place(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "one", 3)
    pack(path, tmp_path / "a.tar")
    unpack(tmp_path / "a.tar", tmp_path / "two" / "checkpoint-3")
    assert sealed(tmp_path / "two")[0].damage() == ""
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.add(path / SEAL, arcname="../escaped")
    with pytest.raises(ValueError, match="no file inside"):
        unpack(tmp_path / "bad.tar", tmp_path / "three")
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(ValueError, match="no file inside"):
        unpack(tmp_path / "link.tar", tmp_path / "three")
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="no tar"):
        unpack(tmp_path / "no.tar", tmp_path / "three")
    assert not (tmp_path / "three").exists()
    assert not (tmp_path / "escaped").exists()


@dataclass
class Place:
    """A store's folder, and machines that come and go."""

    root: Path
    said: list[str] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.root / "store"

    def outputs(self) -> dict[str, Output]:
        urls = {name: (self.store / name).as_uri() for name in (CHECKPOINT, *SLOTS)}
        return {name: Output(put=url, get=url) for name, url in urls.items()}

    def machine(self, name: str) -> Keeper:
        return Keeper(self.outputs(), self.root / name, self.said.append)

    def manifest(self) -> dict[str, object]:
        value: dict[str, object] = json.loads((self.store / CHECKPOINT).read_text())
        return value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def kept(place: Place, name: str, *steps: int) -> Keeper:
    """A machine that stored a checkpoint of each of these steps."""
    keeper = place.machine(name)
    for step in steps:
        write_checkpoint(keeper.folder, step)
        keeper.keep(until=0)
    return keeper


def test_checkpoints_take_turns_in_two_slots_and_the_newest_comes_back(place: Place) -> None:
    first = kept(place, "first", 5, 7, 9)
    assert [s.slot for s in first.stored] == [0, 1]
    manifest = place.manifest()
    assert (manifest["slot"], manifest["step"]) == (0, 9)
    assert manifest["bytes"] == (place.store / SLOTS[0]).stat().st_size
    assert manifest["sha256"] == transfer.sha256_file(place.store / SLOTS[0])
    second = place.machine("second")
    second.restore(until=0)
    assert second.resumed_from == 9
    (found,) = sealed(second.folder)
    assert (found.step, found.damage()) == (9, "")
    assert second.report() == {"resumed_from": 9, "checkpoint": {"step": 9, "at": 9.0}}
    # It goes on in the slot that does not hold the newest.
    write_checkpoint(second.folder, 11)
    second.keep(until=0)
    assert place.manifest()["slot"] == 1
    # The same one is not sent twice.
    before = (place.store / CHECKPOINT).stat().st_mtime_ns
    second.keep(until=0)
    assert (place.store / CHECKPOINT).stat().st_mtime_ns == before


def test_a_checkpoint_that_is_not_whole_is_neither_sent_nor_used(place: Place) -> None:
    first = kept(place, "first", 5)
    (write_checkpoint(first.folder, 7) / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="went while it was packed"):
        first.keep(until=0)
    assert place.manifest()["step"] == 5
    # Should one have come into a slot all the same, the other slot's is used.
    bundle = pack(first.folder / "checkpoint-7", place.store / SLOTS[1])
    newest = {"slot": 1, "step": 7, "sha256": bundle.sha256, "bytes": bundle.bytes, "at": 7.0}
    (place.store / CHECKPOINT).write_text(json.dumps({**newest, "previous": place.manifest()}))
    second = place.machine("second")
    second.restore(until=0)
    assert second.resumed_from == 5
    assert [c.step for c in sealed(second.folder)] == [5]


@pytest.mark.parametrize("how", ["bytes", "short", "gone"])
def test_a_damaged_slot_is_said_and_the_other_one_used(place: Place, how: str) -> None:
    kept(place, "first", 5, 7)
    newest = place.store / SLOTS[1]
    if how == "bytes":
        newest.write_bytes(b"x" * newest.stat().st_size)
    elif how == "short":
        newest.write_bytes(newest.read_bytes()[:-10])
    else:
        newest.unlink()
    second = place.machine("second")
    second.restore(until=time.time() + 60)
    assert second.resumed_from == 5
    assert "the checkpoint of step 7 in slot 1 cannot be used" in place.said[-2]
    # With both damaged training begins anew.
    (place.store / SLOTS[0]).write_bytes(b"")
    third = place.machine("third")
    third.restore(until=time.time() + 60)
    assert third.resumed_from == 0
    assert place.said[-1] == "no checkpoint can be used: training begins anew"


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"slot": 7, "step": 1, "sha256": "", "bytes": 1, "at": 1}'])
def test_a_manifest_that_cannot_be_read_is_said_and_training_begins_anew(place: Place, manifest: str) -> None:
    place.store.mkdir()
    (place.store / CHECKPOINT).write_text(manifest)
    keeper = place.machine("first")
    keeper.restore(until=0)
    assert keeper.resumed_from == 0
    assert "checkpoint.json in the store cannot be read" in place.said[0]


def test_without_any_checkpoint_training_begins_in_silence(place: Place) -> None:
    keeper = place.machine("first")
    keeper.restore(until=0)
    assert (keeper.resumed_from, place.said) == (0, [])
    assert keeper.report() == {"resumed_from": 0, "checkpoint": None}


def test_after_a_restart_the_disk_is_used_if_it_is_newer_and_whole(place: Place) -> None:
    first = kept(place, "first", 5)
    write_checkpoint(first.folder, 6)
    again = place.machine("first")
    again.restore(until=0)
    assert again.resumed_from == 6
    assert "on this machine's disk" in place.said[-1]
    (first.folder / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    shutil.rmtree(first.folder / "checkpoint-5")
    again = place.machine("first")
    again.restore(until=0)
    assert again.resumed_from == 5
    assert [c.step for c in sealed(again.folder)] == [5]
    assert "the checkpoint of step 6 on this disk cannot be used" in place.said[-2]


def test_a_store_that_takes_no_checkpoint_does_not_end_the_training(place: Place) -> None:
    keeper = place.machine("first")
    write_checkpoint(keeper.folder, 3)
    place.store.write_text("a file where the folder should be")
    done = threading.Event()
    beside = threading.Thread(target=keeper.keep_beside, args=(lambda: True, done))
    beside.start()
    give_up = time.monotonic() + 20
    while not place.said and time.monotonic() < give_up:
        time.sleep(0.02)
    done.set()
    beside.join(20)
    assert not beside.is_alive()
    assert "the store did not take the checkpoint, training goes on" in place.said[0]
    assert keeper.stored == ()


def test_an_upload_is_broken_off_for_something_more_urgent(place: Place) -> None:
    keeper = kept(place, "first", 3)
    write_checkpoint(keeper.folder, 4)
    with pytest.raises(TransferError, match="more urgent"):
        keeper.keep(until=time.time() + 60, given_up=lambda: True)
    assert place.manifest()["step"] == 3
    assert not (place.store / SLOTS[1]).exists()


def test_a_ticket_without_slots_trains_without_checkpoints_in_the_store(tmp_path: Path) -> None:
    keeper = Keeper({}, tmp_path, print)
    write_checkpoint(keeper.folder, 3)
    keeper.restore(until=0)
    keeper.keep(until=0)
    assert (keeper.resumed_from, keeper.stored) == (3, ())


def test_the_result_of_a_checkpoint_is_kept_when_the_trainer_left_none(place: Place) -> None:
    keeper = kept(place, "first", 3)
    rescue = Rescue(place.root / "first", "run-1", place.said.append)
    target = place.root / "first" / "out" / "adapter"
    assert rescue.take() == "the result is that of step 3, from the checkpoint of step 3"
    assert sorted(p.name for p in target.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (target / checkpoints.WEIGHTS).read_bytes() == b"weights of step 3"
    write_checkpoint(keeper.folder, 4)
    rescue.take()
    assert (target / checkpoints.WEIGHTS).read_bytes() == b"weights of step 3"


def test_the_best_weights_of_a_checkpoint_are_what_goes_home_of_it(place: Place) -> None:
    keeper = kept(place, "first", 3)
    shutil.rmtree(keeper.folder)
    path = keeper.folder / "checkpoint-9"
    write_checkpoint(keeper.folder, 9)
    (path / "best").mkdir()
    (path / "best" / checkpoints.WEIGHTS).write_bytes(b"weights of step 6")
    (path / "best" / "best.json").write_text('{"step": 6}')
    seal(path, 9, SPEC, at=9.0)
    rescue = Rescue(place.root / "first", "run-1", place.said.append)
    assert rescue.take() == "the result is that of step 6, the best in the checkpoint of step 9"
    target = place.root / "first" / "out" / "adapter"
    assert (target / checkpoints.WEIGHTS).read_bytes() == b"weights of step 6"
    assert sorted(p.name for p in target.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert rescue.step == 6


def test_the_best_model_of_a_full_fine_tune_is_what_goes_home_in_place_of_the_newest(place: Place) -> None:
    path = place.root / "work" / "checkpoints" / "checkpoint-9"
    newest = {"model-00001-of-00002.safetensors": b"newest", "model-00002-of-00002.safetensors": b"newest"}
    newest |= {checkpoints.MODEL_INDEX: b"of two files", "config.json": b"{}", "optimizer.pt": b"states"}
    best = {"model.safetensors": b"best", "weights.safetensors": b"in 32 bits", "best.json": b'{"step": 6}'}
    for folder, files in ((path, newest), (path / "best", best)):
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    seal(path, 9, SPEC, at=9.0)
    (found,) = sealed(path.parent)
    target = place.root / "out" / "adapter"
    checkpoints.result_of(found, target)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"model.safetensors": b"best", "config.json": b"{}"}
    assert checkpoints.result_step(found) == 6
    # One of an earlier version has it in 32 bits only, which nobody at home reads.
    (path / "best" / "model.safetensors").unlink()
    seal(path, 9, SPEC, at=9.0)
    (older,) = sealed(path.parent)
    checkpoints.result_of(older, place.root / "older")
    weights = [path.name for path in checkpoints.weight_files(place.root / "older")]
    assert weights == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert checkpoints.result_step(older) == 9


def test_through_presigned_urls_of_a_bucket(tmp_path: Path, s3_server: S3Server) -> None:
    bucket, client = s3_server.create_bucket(), s3_server.client()

    def url(operation: str, name: str) -> str:
        return client.generate_presigned_url(operation, Params={"Bucket": bucket, "Key": name}, ExpiresIn=600)

    outputs = {n: Output(put=url("put_object", n), get=url("get_object", n)) for n in (CHECKPOINT, *SLOTS)}
    said: list[str] = []
    first = Keeper(outputs, tmp_path / "first", said.append)
    first.restore(until=0)
    for step in (3, 200_000):  # The second has 1.4 MB: more than one piece.
        write_checkpoint(first.folder, step)
        first.keep(until=0)
    second = Keeper(outputs, tmp_path / "second", said.append)
    second.restore(until=0)
    assert (second.resumed_from, sealed(second.folder)[0].damage()) == (200_000, "")
    # What arrived is known from the store's own md5, or by reading it back; both tell another object apart.
    slot, other = outputs[SLOTS[0]], tmp_path / "other"
    assert not transfer.arrived(slot.get, write_checkpoint(tmp_path / "x", 3) / SEAL)
    other.write_bytes(b"other")
    client.put_object(Bucket=bucket, Key=SLOTS[0], Body=b"othex")
    assert not transfer.arrived(slot.get, other)
    client.put_object(Bucket=bucket, Key=SLOTS[0], Body=b"other")
    assert transfer.arrived(slot.get, other)
