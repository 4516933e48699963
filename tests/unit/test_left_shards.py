"""Shards whose images cannot be read for now, from reading to committing, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.config import LimitsConfig, ModelConfig, ObjectStoreConfig, ReadingConfig
from mpa_ray.corpus.read import Content, Reader
from mpa_ray.errors import AccessLost, CannotWrite, ConfigError, RunError, TransientError, Unfinished
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.models.shared_engines import EngineGroup
from mpa_ray.phases.model_groups import fall_back_to_single, run_all_collect_errors
from mpa_ray.pipeline.commit import CommitShard
from mpa_ray.pipeline.fetch import FetchShard
from mpa_ray.pipeline.graph_rows import FetchedShard, ShardFailed, VisitedShard, decode, decode_result, encode
from mpa_ray.pipeline.pass_outcomes import PassOutcomes
from mpa_ray.pipeline.pass_spec import Pass, ShardDone, ShardLeft
from mpa_ray.records import Annotation, ImageRef, Reason
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.redo import Redo
from mpa_ray.run.run import Run
from mpa_ray.stages.image_work import ImageWork
from tests.local_stream import LocalCoordinator, without_ray

SHARD = "000000"
OUT = ImageProblem(Reason.STORAGE, "TransientError: s3://b/1.png: SlowDown")


class Images(Reader):
    """A reader whose contents a test sets."""

    contents: dict[str, Content | Exception]

    def read(self, uris: Sequence[str]) -> list[Content]:
        contents = [self.contents[uri] for uri in uris]
        for content in contents:
            if isinstance(content, Exception):
                raise content
        return [content for content in contents if not isinstance(content, Exception)]


class Shard:
    """A shard of four images and the operators that it goes through."""

    def __init__(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        self.run, self._loop = run, loop
        self.reader = Images(ObjectStoreConfig())
        object.__setattr__(self.reader, "contents", {f"/{number}.png": bytes([number]) for number in range(4)})
        self.visited: list[str] = []

    def go(self, command: str, *reasons: str, deduplicated: bool = True) -> ShardDone | ShardLeft | ShardFailed:
        work: Pass[Any] = Pass(
            key=PhaseKey("annotate"),
            models=("teacher",),
            source=self.run.corpus,
            target=self.run.annotations,
            model=ModelConfig(model="unused"),
            branch="teacher",
            make_stage=lambda _: pytest.fail("no engine starts"),
            reader=self.reader,
            reading=ReadingConfig(),
            limits=LimitsConfig(),
            deduplicated=self.run.annotations if deduplicated else None,
            redo=Redo(self.run.annotations, self.run.corpus, frozenset(reasons)),
            command=command,
        )
        self.coordinator = LocalCoordinator(work, self._loop)
        self.coordinator.add_shard.remote(SHARD)
        fetched = decode(FetchShard(work, self.coordinator)({"shard": SHARD}), FetchedShard)
        rows = [row for image in fetched.images for row in self._visit(image)]
        visited = VisitedShard(replace(fetched, images=[]), len(fetched.images), rows, failure=fetched.failure)
        return decode_result(CommitShard(work.target)(encode(visited)))

    def _visit(self, image: ImageWork[Any]) -> list[Annotation]:
        self.visited.append(image.image_id)
        problem = image.content if isinstance(image.content, ImageProblem) else None
        state, reason = ("failed", str(problem.reason)) if problem else ("kept", None)
        row = Annotation(f"{image.image_id}#0", image.image_id, image.uri, state, reason)
        return [replace(row, content_sha256=image.content_sha256)]


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shard]:
    run = Run.open(str(tmp_path))
    run.corpus.commit(SHARD, [ImageRef(f"{number}.png", f"/{number}.png") for number in range(4)])
    without_ray(monkeypatch)
    loop = asyncio.new_event_loop()
    yield Shard(run, loop)
    loop.close()


def test_a_shard_is_left_twice_and_then_committed_with_failed_rows(shard: Shard) -> None:
    shard.reader.contents["/1.png"] = OUT
    left = ShardLeft(SHARD, 4, 1, OUT.detail)
    assert [shard.go("first"), shard.go("first"), shard.go("second")] == [left] * 3
    assert not shard.visited
    assert not shard.run.annotations.is_committed(SHARD)
    done = shard.go("third")
    assert isinstance(done, ShardDone)
    assert (done.num_images, done.failed) == (4, {"storage": 1})
    assert [row.reason for row in shard.run.annotations.read(SHARD)] == [None, "storage", None, None]


def test_rows_that_fail_for_other_reasons_do_not_leave_a_shard(shard: Shard) -> None:
    shard.reader.contents["/1.png"] = ImageProblem(Reason.UNREADABLE, "FileNotFoundError: /1.png")
    assert isinstance(shard.go("first"), ShardDone)
    assert not list(shard.run.storage.list("annotations/unread"))


def test_redo_visits_only_the_failed_image(shard: Shard) -> None:
    shard.reader.contents["/1.png"] = OUT
    for command in ("first", "second", "third"):
        shard.go(command)
    shard.visited.clear()
    assert isinstance(shard.go("fourth", "storage"), ShardLeft)
    assert [commit.generation for commit in shard.run.annotations.history(SHARD)] == [0]
    shard.reader.contents["/1.png"] = b"1"
    before = shard.run.annotations.read(SHARD)
    done = shard.go("fifth", "storage")
    assert isinstance(done, ShardDone)
    assert (shard.visited, done.num_images, done.num_kept, done.outcomes) == (["1.png"], 1, 3, {("kept", ""): 1})
    after = shard.run.annotations.read(SHARD)
    assert [row.state for row in after] == ["kept"] * 4
    assert [before[number] == after[number] for number in range(4)] == [True, False, True, True]
    again = shard.go("sixth", "failed")
    assert isinstance(again, ShardDone)
    assert [commit.generation for commit in shard.run.annotations.history(SHARD)] == [0, 1]


@pytest.mark.parametrize("number", [0, 3])
def test_an_image_that_is_visited_again_may_be_a_duplicate(shard: Shard, number: int) -> None:
    """It may be a duplicate of an earlier image, but never of a later one, which was annotated in the meantime."""
    shard.reader.contents[f"/{number}.png"] = OUT
    for command in ("first", "second", "third"):
        shard.go(command)
    shard.reader.contents[f"/{number}.png"] = bytes([2])
    shard.go("fourth", "storage")
    assert [row.reason for row in shard.run.annotations.read(SHARD)] == (
        [None, None, None, "duplicate_of"] if number == 3 else [None] * 4
    )


@pytest.mark.parametrize(
    ("error", "raised", "may_pass"),
    [
        (AccessLost("s3://b/1.png: ExpiredToken."), AccessLost, True),
        (TransientError("s3://b/1.png: SlowDown"), None, True),
        (FileNotFoundError("annotations: shard 000000 is not committed"), None, False),
        (ConfigError("object_store", "s3://b/1.png", "cannot be accessed.", "Set it."), ConfigError, False),
    ],
)
def test_what_ends_the_pass_ends_it_for_every_worker(
    shard: Shard, error: Exception, raised: type[Exception] | None, may_pass: bool
) -> None:
    shard.reader.contents["/1.png"] = error
    failed = shard.go("first")
    assert isinstance(failed, ShardFailed)
    assert (type(failed.failure.ends_command), failed.failure.may_pass) == (raised or type(None), may_pass)
    assert str(error) in failed.failure.problem
    assert shard.coordinator.wait_for_failure.remote().problem == failed.failure.problem


def test_a_run_that_cannot_count_ends(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the run directory is at the same store, nothing can be recorded."""
    shard.reader.contents["/1.png"] = OUT

    def fail(*_: object) -> bool:
        raise CannotWrite("s3://b/run/annotations/unread", "SlowDown")

    monkeypatch.setattr("mpa_ray.storage.local.LocalStorage.create", fail)
    failed = shard.go("first")
    assert isinstance(failed, ShardFailed)
    assert failed.failure.may_pass


def test_a_pass_ends_with_a_line_and_an_error_if_shards_are_left() -> None:
    outcomes = PassOutcomes()
    rows = {("kept", ""): 90, ("failed", "storage"): 2, ("failed", "unreadable"): 3, ("dropped", "duplicate_of"): 5}
    outcomes.count(ShardDone(SHARD, 100, outcomes=rows, num_unread=2))  # type: ignore[arg-type]
    assert outcomes.line("annotate") == (
        "annotate: of 100 rows, 5.0% failed (unreadable: 3, storage: 2), 5.0% were dropped (duplicate_of: 5)"
    )
    assert outcomes.may_pass == {"storage": 2}
    outcomes.check_complete("annotate")
    outcomes.leave(ShardLeft("000001", 8, 2, "s3://b/1.png: SlowDown"), LimitsConfig(), "annotate")
    with pytest.raises(Unfinished) as caught:
        outcomes.check_complete("annotate")
    assert str(caught.value) == (
        "annotate: 1 shard is unfinished, because 2 images could not be read (s3://b/1.png: SlowDown). "
        "Run the same command again to continue."
    )
    assert PassOutcomes().line("annotate") == "annotate: of 0 rows, 0.0% failed, 0.0% were dropped"


def test_a_pass_over_a_store_that_is_out_ends_early() -> None:
    outcomes, limits = PassOutcomes(), LimitsConfig(min_images=200, max_failed_rate=0.5)
    leave: Callable[[str], None] = lambda name: outcomes.leave(ShardLeft(name, 64, 60, "out"), limits, "a")  # noqa: E731
    for number in range(3):
        leave(str(number))
    with pytest.raises(RunError, match="4 shards are unfinished, because 240 images could not be read"):
        leave("3")


def test_lost_access_ends_the_models_of_a_command_and_an_outage_blames_no_shared_engine() -> None:
    calls: list[str] = []

    def lose() -> None:
        calls.append("a")
        raise AccessLost("s3://b/1.png: ExpiredToken.")

    with pytest.raises(AccessLost):
        run_all_collect_errors({"a": lose, "b": lambda: calls.append("b")})
    assert calls == ["a"]
    base = ModelConfig(model="m")
    with pytest.raises(Unfinished, match="out"), fall_back_to_single(EngineGroup(base, {"a": None, "b": None})):
        raise Unfinished("out")
    with fall_back_to_single(EngineGroup(base, {"a": None, "b": None})):
        raise RunError("a cannot be served")
