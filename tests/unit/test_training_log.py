"""The log of a training run: what it costs to write, and what is read back after restarts."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path
from typing import cast

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from mpa_ray.leveling.tensorboard import TensorBoard
from mpa_ray.run.run import Run
from mpa_ray.run.training_log import LogEntry
from mpa_ray.run.training_state import TrainingState
from mpa_ray.storage.storage import Storage
from tests.trainers import FOLDER, trainer_of


class CountingStorage:
    """Holds files in memory, and counts the bytes that are written."""

    root = "memory"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.num_bytes = 0

    def read(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def write(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.num_bytes += len(content)

    def put_folder(self, source: Path, path: str) -> None:
        for file in source.iterdir():
            self.write(f"{path}/{file.name}", file.read_bytes())


def memory_run() -> tuple[CountingStorage, Run]:
    storage = CountingStorage()
    return storage, Run(cast(Storage, storage))


def written_for(num_entries: int, scratch: str) -> tuple[int, int]:
    """The bytes that a training run with this many log entries writes into its run, and those of a checkpoint's
    state."""
    storage, run = memory_run()
    trainer = trainer_of(run, scratch)
    trainer._begin_log(0)
    for step in range(5, 5 * num_entries + 1, 5):
        trainer.state.global_step = step
        trainer.log({"loss": 0.5, "grad_norm": 0.1, "learning_rate": 1e-4})
    trainer.state.save_to_json(f"{scratch}/trainer_state.json")
    return storage.num_bytes, Path(scratch, "trainer_state.json").stat().st_size


def test_the_log_of_a_training_grows_linearly(tmp_path: Path) -> None:
    short, short_state = written_for(400, str(tmp_path))
    long, long_state = written_for(1600, str(tmp_path))
    assert long < 4.2 * short
    assert long < 1600 * 100_000
    assert long_state < short_state + 100


def state_after(state: TrainingState, steps: range, run: Run) -> TrainingState:
    for step in steps:
        state = state.logged(LogEntry(step, loss=float(step)), run, FOLDER)
        state.write(run, FOLDER)
    return state


def steps_of(run: Run) -> list[int]:
    state = TrainingState.read(run, FOLDER)
    assert state is not None
    return [entry.step for entry in state.whole_log(run, FOLDER).entries]


def test_a_short_log_is_in_one_file_and_a_long_one_is_read_whole() -> None:
    storage, run = memory_run()
    state = state_after(TrainingState(), range(1, 100), run)
    assert list(storage.files) == [f"{FOLDER}/training.json"]
    state = state_after(state, range(100, 501), run)
    assert len(storage.files) > 3
    assert steps_of(run) == list(range(1, 501))
    assert len(state.log.entries) < 150
    assert state.log.entries[-1].step == 500


@pytest.mark.parametrize("first", [30, 130, 301, 499])
@pytest.mark.parametrize("second", [10, 200, 520])
def test_entries_after_the_checkpoint_of_a_resumption_do_not_count(first: int, second: int) -> None:
    _, run = memory_run()
    state = state_after(TrainingState(step=500), range(1, 501), run)
    state = state.begin_attempt(first, num_workers=2)
    assert state.resumed[-1].num_repeated_steps == 500 - first
    state = state_after(state, range(first + 1, 601), run)
    assert steps_of(run) == list(range(1, 601))
    state = state_after(state.begin_attempt(second, num_workers=2), range(second + 1, 701), run)
    assert steps_of(run) == list(range(1, 701))


def test_a_restart_without_a_checkpoint_begins_the_log_again() -> None:
    _, run = memory_run()
    state = state_after(TrainingState(), range(1, 301), run)
    state_after(state.begin_attempt(0, num_workers=1), range(1, 4), run)
    assert steps_of(run) == [1, 2, 3]


def test_an_attempt_that_is_killed_while_it_moves_entries_to_a_file_loses_none() -> None:
    storage, run = memory_run()
    state = state_after(TrainingState(), range(1, 120), run)
    # The file of the log is written, and training.json is not.
    state.logged(LogEntry(120), run, FOLDER)
    assert len(storage.files) == 2
    assert steps_of(run) == list(range(1, 120))
    stored = TrainingState.read(run, FOLDER)
    assert stored is not None
    state_after(stored.begin_attempt(100, num_workers=1), range(101, 301), run)
    assert steps_of(run) == list(range(1, 301))


def test_a_training_log_of_an_earlier_version_is_continued() -> None:
    _, run = memory_run()
    log = [{"loss": 1.0, "step": step} for step in range(1, 401)]
    run.write_json(f"{FOLDER}/training.json", {"step": 400, "num_steps": 500, "resumed": [], "log": log})
    stored = TrainingState.read(run, FOLDER)
    assert stored is not None
    state_after(stored.begin_attempt(350, num_workers=1), range(351, 403), run)
    assert steps_of(run) == list(range(1, 403))


def events_of(content: bytes) -> list[Event]:
    """The events of a file, whose checksums are checked."""
    events = []
    while content:
        (length,), (of_length,) = struct.unpack("<Q", content[:8]), struct.unpack("<I", content[8:12])
        body, (of_body,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
        assert (of_length, of_body) == (masked_crc32c(content[:8]), masked_crc32c(body))
        events.append(Event.FromString(body))
        content = content[16 + length :]
    return events


def curves_of(storage: CountingStorage) -> dict[str, list[int]]:
    """The steps of each curve as TensorBoard shows it: files by name; a restart hides what it repeats."""
    curves: defaultdict[str, list[int]] = defaultdict(list)
    for path in sorted(path for path in storage.files if "tfevents" in path):
        first, *events = events_of(storage.files[path])
        assert first.file_version == "brain.Event:2"
        for event in events:
            if event.HasField("session_log"):
                assert event.session_log.status == SessionLog.START
                curves = defaultdict(list, {tag: [s for s in steps if s < event.step] for tag, steps in curves.items()})
            for value in event.summary.value:
                curves[value.tag].append(event.step)
    return dict(curves)


def test_tensorboard_reads_the_files_of_all_attempts_as_one_curve() -> None:
    storage = CountingStorage()
    for attempt, steps in enumerate((range(1, 451), range(202, 302), range(302, 304), range(1, 701))):
        board = TensorBoard(cast(Storage, storage), f"{FOLDER}/tensorboard", attempt, steps[0])
        for step in steps:
            board.add({"loss": 0.5, "samples_per_s": 2.0}, step)
            if step % 50 < 2:
                assert curves_of(storage)["loss"] == list(range(1, step + 1))
    assert curves_of(storage) == {"loss": list(range(1, 701)), "samples_per_s": list(range(1, 701))}
    assert {Path(path).parent.name for path in storage.files} == {"tensorboard"}
    assert len(storage.files) == 5 + 1 + 1 + 7


def test_a_trainer_continues_the_curve_of_the_attempt_before_it(tmp_path: Path) -> None:
    storage, run = memory_run()
    for first, last in ((0, 40), (20, 60)):
        trainer = trainer_of(run, str(tmp_path))
        trainer._begin_log(first)
        for step in range(first + 5, last + 1, 5):
            trainer.state.global_step = step
            trainer.log({"loss": 0.5})
    assert steps_of(run) == curves_of(storage)["loss"] == list(range(5, 61, 5))
    assert storage.files[f"{FOLDER}/training.json"].count(b"had_reached") == 1
