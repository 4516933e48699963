"""Owners of a training run: one at a time, replaced once they are dead or silent, and unable to write from then on."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mpa_ray.cli.run_job import run_job
from mpa_ray.config import ObjectStoreConfig
from mpa_ray.leveling import export as exports
from mpa_ray.leveling.checkpoint_folders import drop_earlier, inherited_checkpoint
from mpa_ray.run.checkpoint_files import checkpoints_name
from mpa_ray.run.ownership import LAPSE_S, LostOwnership, Owner, Ownership, newest_owner, owned, take
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import TrainingState
from mpa_ray.storage.local import LocalStorage
from mpa_ray.storage.open import open_storage
from mpa_ray.storage.storage import Storage
from tests.s3_server import s3_server_of_user
from tests.trainers import trainer_of

FOLDER = "students/small/parity"
OWNER = """
import sys, time
from mpa_ray.run.ownership import owned
from mpa_ray.storage.local import LocalStorage
with owned(LocalStorage(sys.argv[1]), sys.argv[2], "level small"):
    print("owns", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server_of_user() as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return LocalStorage(str(tmp_path))
    store = ObjectStoreConfig(endpoint_url=request.getfixturevalue("server"))
    return open_storage(f"s3://bucket/{tmp_path.name}", store)


class StillWaitingError(Exception):
    """A taker has waited as often as a test allows."""


class Waits:
    """A clock that only waits move forward. After some of them, the taker is still waiting."""

    def __init__(self, most: int, during: Callable[[], object] = lambda: None) -> None:
        self.now, self.num, self._most, self._during = 1e6, 0, most, during

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if self.num == self._most:
            raise StillWaitingError
        self.now, self.num = self.now + seconds, self.num + 1
        self._during()


def take_with(storage: Storage, waits: Waits) -> Ownership:
    return take(storage, FOLDER, "level small", clock=waits.clock, sleep=waits.sleep)


def owner_elsewhere(storage: Storage, number: int = 1, beat: bytes = b"7") -> Ownership:
    """An owner on another machine, which this machine cannot ask about its processes."""
    owner = Owner(number, "node-b", 4711, "another boot/1/4711/99")
    assert storage.create(f"{FOLDER}/owners/{number}.json", json.dumps(asdict(owner)).encode())
    storage.write(f"{FOLDER}/owners/{number}.beat", beat)
    return Ownership(storage, FOLDER, number)


def test_an_owner_is_replaced_once_its_heartbeat_stops(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the clock of the waiting command counts, not the clocks or the file times of other machines."""
    first = owner_elsewhere(storage)
    beats = iter(range(100, 200))

    def beat_forty_times() -> None:
        if waits.num <= 40:
            storage.write(f"{FOLDER}/owners/1.beat", str(next(beats)).encode())

    waits = Waits(1000, beat_forty_times)
    first.check()
    assert take_with(storage, waits).number == 2
    assert waits.num == 40 + LAPSE_S / 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("level small: node-b (process 4711) is working on this; waiting until it ends or stops")
    with pytest.raises(LostOwnership, match=rf"\S+ \(process {os.getpid()}\) has taken over"):
        first.check()


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"number": 1}', b"\xff", "flip"], ids=str)
def test_an_owner_whose_record_is_damaged_is_replaced_once_its_heartbeat_stops(
    tmp_path: Path, content: bytes | str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = LocalStorage(str(tmp_path))
    path = f"{FOLDER}/owners/1.json"
    storage.create(path, Owner.this_process(1).to_json())
    whole = storage.read(path)
    storage.write(path, whole.replace(b'"pid": ', b'"pid": 9') if isinstance(content, str) else content)
    storage.write(f"{FOLDER}/owners/1.beat", b"7")
    waits = Waits(1000)
    assert take_with(storage, waits).number == 2
    assert waits.num == LAPSE_S / 2
    assert "a command whose record is damaged is working on this" in capsys.readouterr().out
    assert newest_owner(storage, FOLDER) == Owner.from_json(storage.read(f"{FOLDER}/owners/2.json"))


def test_an_owner_that_ended_is_replaced_at_once(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    def fail_while_owned() -> None:
        with owned(storage, FOLDER, "level small") as first:
            assert first.number == 1
            with pytest.raises(StillWaitingError):
                take_with(storage, Waits(3))
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_owned()
    capsys.readouterr()
    with owned(storage, FOLDER, "level small") as second:
        assert second.number == 2
        second.check()
    assert capsys.readouterr().out == ""


def test_a_killed_owner_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    """Its heartbeat would take 30 seconds to lapse."""
    storage = LocalStorage(str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), FOLDER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "owns\n"
        with pytest.raises(StillWaitingError):
            take_with(storage, Waits(3))
        os.kill(process.pid, signal.SIGKILL)
        # Also while its parent has not waited for it.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert take_with(storage, Waits(0)).number == 2


def test_another_process_with_the_number_of_a_dead_owner_is_not_the_owner() -> None:
    alive = Owner.this_process(1)
    assert not alive.is_gone
    *system, started = alive.process.split("/")
    assert replace(alive, process="/".join([*system, str(int(started) - 1)])).is_gone
    # Nothing is known about the processes of other machines, or where the system does not show them.
    assert not replace(alive, process="another boot/1/1/1").is_gone
    assert not replace(alive, process="").is_gone


def test_one_of_many_waiting_commands_takes_over(storage: Storage) -> None:
    owner_elsewhere(storage)
    barrier = threading.Barrier(8)

    def try_to_take(_: int) -> int | None:
        most = int(LAPSE_S / 2)
        waits = Waits(most, lambda: barrier.wait(60) if waits.num == most else None)
        try:
            return take_with(storage, waits).number
        except StillWaitingError:
            return None

    with ThreadPoolExecutor(8) as threads:
        numbers = list(threads.map(try_to_take, range(8)))
    assert sorted(number for number in numbers if number is not None) == [2]
    assert str(newest_owner(storage, FOLDER)) == str(Owner.this_process(2))


def test_the_heartbeat_changes_while_the_work_is_owned(tmp_path: Path) -> None:
    beats: list[bytes] = []
    enough = threading.Event()

    class Recording(LocalStorage):
        def write(self, path: str, content: bytes) -> None:
            super().write(path, content)
            beats.append(content)
            if len(beats) == 4:
                enough.set()
            if len(beats) == 2:
                raise OSError("the storage does not answer")

    with owned(Recording(str(tmp_path)), FOLDER, "level small", beat_s=0.001):
        assert enough.wait(60)
    assert len(set(beats)) == len(beats)
    assert beats[-1] == b"ended"


def lost(storage: Storage) -> Ownership:
    """The ownership of a command that was paused for too long; another process gets it."""
    old = owner_elsewhere(storage)
    owner_elsewhere(storage, number=2)
    return pickle.loads(pickle.dumps(old))  # type: ignore[no-any-return]


def test_a_lost_training_ends_its_command_with_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(lost(LocalStorage(str(tmp_path))).check) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Unfinished: node-b (process 4711) has taken over {tmp_path}/{FOLDER}, because")


def test_an_old_owner_changes_neither_the_state_nor_the_log(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = Run(LocalStorage(str(tmp_path)))
    TrainingState(step=5).write(run, FOLDER)
    files = sorted(tmp_path.rglob("*"))
    old = lost(run.storage)
    trainer = trainer_of(run, str(tmp_path_factory.mktemp("scratch")), FOLDER, old.check)
    trainer.state.global_step = 3
    for is_complete in (False, True):
        with pytest.raises(LostOwnership):
            trainer.write_state(is_complete=is_complete)
    assert TrainingState.read(run, FOLDER) == TrainingState(step=5)
    assert set(tmp_path.rglob("*")) - set(files) == set((tmp_path / FOLDER / "owners").rglob("*")) | {
        tmp_path / FOLDER / "owners"
    }


def test_an_old_owner_stops_in_the_middle_of_its_export(storage: Storage, tmp_path: Path) -> None:
    run = Run(storage)
    first, source = owner_elsewhere(storage), tmp_path / "scratch" / "merged"
    source.mkdir(parents=True)
    for name in "abc":
        (source / name).write_text(f"old {name}")
    num_checks = 0

    def check() -> None:
        nonlocal num_checks
        num_checks += 1
        if num_checks == 3:
            # The command was paused here for a long time.
            owner_elsewhere(storage, number=2)
            for name in "abc":
                storage.write(f"{FOLDER}/merged/{name}", f"new {name}".encode())
        first.check()

    with pytest.raises(LostOwnership):
        exports._put(source, run, f"{FOLDER}/merged", check)
    assert [storage.read(f"{FOLDER}/merged/{name}") for name in "abc"] == [b"new a", b"new b", b"new c"]


def complete(storage: Storage, owner: int, name: str) -> None:
    """Record a complete checkpoint of an owner, as Ray Train does."""
    folder = f"{FOLDER}/{checkpoints_name(owner)}"
    snapshot = {"latest_checkpoint_result": {"checkpoint_dir_name": name}, "checkpoint_results": []}
    storage.write(f"{folder}/checkpoint_manager_snapshot.json", json.dumps(snapshot).encode())
    storage.write(f"{folder}/{name}/progress.json", b"{}")


def test_each_owner_has_its_own_checkpoints_and_continues_from_the_last(storage: Storage) -> None:
    assert inherited_checkpoint(storage, FOLDER, 1) is None
    assert inherited_checkpoint(storage, FOLDER, 3) is None
    complete(storage, 1, "checkpoint_a")
    assert inherited_checkpoint(storage, FOLDER, 1) is None
    # The second owner has completed none.
    inherited = inherited_checkpoint(storage, FOLDER, 3)
    assert inherited == f"{FOLDER}/checkpoints/checkpoint_a"
    drop_earlier(storage, FOLDER, 3, inherited)
    assert storage.exists(f"{inherited}/progress.json")
    complete(storage, 3, "checkpoint_b")
    inherited = inherited_checkpoint(storage, FOLDER, 4)
    assert inherited == f"{FOLDER}/checkpoints-3/checkpoint_b"
    drop_earlier(storage, FOLDER, 4, inherited)
    assert storage.exists(f"{inherited}/progress.json")
    assert not storage.exists(f"{FOLDER}/checkpoints/checkpoint_a/progress.json")
    # The first owner wakes up and completes another checkpoint.
    complete(storage, 1, "checkpoint_c")
    assert inherited_checkpoint(storage, FOLDER, 4) == inherited


def test_the_list_of_checkpoints_that_was_cut_off_does_not_end_the_training(storage: Storage) -> None:
    """Ray Train was killed while it wrote the list."""
    complete(storage, 1, "checkpoint_a")
    complete(storage, 2, "checkpoint_b")
    storage.write(f"{FOLDER}/checkpoints-2/checkpoint_manager_snapshot.json", b'{"ray_version": "2.')
    assert inherited_checkpoint(storage, FOLDER, 3) == f"{FOLDER}/checkpoints/checkpoint_a"
