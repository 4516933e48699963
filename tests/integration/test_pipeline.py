"""Scripted engines in the real graph: every image ends in exactly one state, no matter which engine dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image
from ray.data._internal.cluster_autoscaler import DefaultAutoscalingCoordinator

from mpa_ray.config import RunConfig
from mpa_ray.corpus.index import index_shards
from mpa_ray.corpus.read import Reader
from mpa_ray.engine.probe import PROBE_ID
from mpa_ray.errors import RunError, Unfinished
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.phases.annotate import annotate, annotation_pass, index_and_annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.phases.report import report
from mpa_ray.pipeline.death_recorder import current_process, was_taken_away
from mpa_ray.pipeline.run_pass import Outstanding, run_missing
from mpa_ray.report.render_status import render_status
from mpa_ray.report.status import status
from mpa_ray.run.audit import audit
from mpa_ray.run.logs import deaths
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.run import Run
from tests.conftest import scripted_tree, write_images

pytestmark = pytest.mark.usefixtures("local_ray")


def annotated(tree: dict[str, Any]) -> tuple[RunConfig, Run]:
    config = RunConfig.model_validate(tree)
    for phase in (index, annotate):
        phase(RunContext.open(config))
    return config, Run.open(config.run_dir)


def identified(tree: dict[str, Any]) -> tuple[RunConfig, Run]:
    config, run = annotated(tree)
    identify(RunContext.open(config))
    return config, run


def problems_of_annotation(run: Run) -> list[str]:
    """The problems that the audit finds, without those of a student that has not answered."""
    return [problem for problem in audit(run).problems if not problem.startswith(("verdicts/", "parity/"))]


def test_every_image_ends_once(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = scripted_tree(
        images, tmp_path / "run", inconsistent_rate=0.2, unparsable_rate=0.1, truncated_rate=0.1, fail_on=["003.png"]
    )
    config, run = identified(tree)
    counts = audit(run).to_json()
    assert counts["problems"] == []
    assert counts["images"] == 60
    assert sum(counts["kept"].values()) + sum(counts["dropped"].values()) + sum(counts["failed"].values()) == 60
    assert set(counts["dropped"]) == {"student_correct", "teacher_inconsistent", "no_question", "reply_truncated"}
    assert counts["failed"] == {"request_failed": 1}
    assert len(read_parity(run, "small")) == counts["kept"]["small"] > 0

    report(RunContext.open(config))
    assert "student_correct" in run.storage.read("report/index.html").decode()
    capsys.readouterr()
    annotate(RunContext.open(config))
    identify(RunContext.open(config))
    assert capsys.readouterr().out.splitlines() == ["annotate: already done", "identify small: already done"]


@pytest.mark.timeout(180)
def test_images_are_annotated_before_listing_ends_while_another_pass_requests_the_whole_cluster(
    images: Path, tmp_path: Path
) -> None:
    """As in a campaign: a busy pass of the teacher must leave a student's pass a CPU to fetch images."""
    config = RunConfig.model_validate(scripted_tree(images, tmp_path / "run"))
    other = DefaultAutoscalingCoordinator("another pass")
    num_cpus = int(ray.cluster_resources()["CPU"])
    other.request_resources([{"CPU": 1}] * num_cpus, expire_after_s=600)
    run = Run.open(config.run_dir)

    def slowly(*arguments: Any) -> Iterator[str]:
        for number, shard in enumerate(index_shards(*arguments)):
            yield shard
            deadline = time.monotonic() + 120
            while number == 2 and not run.annotations.is_committed("000002"):
                assert time.monotonic() < deadline
                assert not run.is_indexed()
                time.sleep(0.05)

    try:
        index_and_annotate(RunContext.open(config), list_shards=slowly)
    finally:
        other.cancel_request()
    assert not run.annotations.missing(run.manifest().shards)
    assert audit(run).num_annotated == 60


def test_students_of_the_same_model_share_one_pass_and_the_shard_size_changes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = scripted_tree(images, tmp_path / "run", inconsistent_rate=0.2)
    tree["source"]["shard_size"] = 7
    (small,) = tree["students"]
    tree["students"] = [
        small,
        {**small, "name": "twin", "level": {"learning_rate": 5e-4}},
        {**small, "name": "other", "max_pixels": 1_000_000},
    ]
    _, run = identified(tree)
    counts = audit(run).to_json()
    assert counts["problems"] == []
    assert read_parity(run, "twin") == read_parity(run, "small") != []
    assert "identify twin, as small: done" in capsys.readouterr().out
    passes = {path.removeprefix("phases/") for path in run.storage.list("phases")}
    assert passes == {"index.json", "annotate.json", "identify.small.json", "identify.other.json"}

    tree |= {"run_dir": str(tmp_path / "one shard"), "students": [small]}
    tree["source"]["shard_size"] = 60
    in_one_shard = read_parity(identified(tree)[1], "small")
    assert {s.annotation_id for s in in_one_shard} == {s.annotation_id for s in read_parity(run, "small")}


def test_the_report_shows_the_rate_of_a_phase_and_where_its_time_went(images: Path, tmp_path: Path) -> None:
    config, run = annotated(scripted_tree(images, tmp_path / "run", latency_s=0.05))
    report(RunContext.open(config))
    phase = run.read_json("report/report.json")["phases"]["annotate"]
    rows = run.annotations.rows(run.manifest().shards)
    assert phase["num_images"] == 60
    assert phase["images_per_s"] == pytest.approx(60 / phase["working_s"])
    assert 0 < phase["working_s"] < phase["wall_s"]
    # Two requests for each image, one after the other.
    assert phase["engine_s"] > 60 * 2 * 0.05
    assert min(phase[kind] for kind in ("read_s", "render_s", "wait_s", "write_s")) > 0
    assert phase["num_output_tokens"] == sum(row.num_output_tokens + row.num_second_output_tokens for row in rows)
    assert 0 < phase["num_cached_tokens"] < phase["num_prompt_tokens"]


def test_each_of_several_questions_on_an_image_has_a_row(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run", num_questions=3, inconsistent_rate=0.2)
    tree["annotate"] = {"num_questions": 3, "sampling": {"temperature": 1.0}}
    _, run = identified(tree)
    counts = audit(run).to_json()
    assert (counts["problems"], counts["images"]) == ([], 60)
    assert counts["dropped"]["repeated_question"] + counts["annotated"] == 180
    assert counts["annotated"] > 90
    assert sum(counts["kept"].values()) + sum(counts["dropped"].values()) == 180


def test_a_dead_engine_is_replaced_and_nothing_is_lost(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run", die_on=["011.png", "042.png"], die_once_in=str(tmp_path))
    _, run = annotated(tree)
    assert problems_of_annotation(run) == []
    assert audit(run).num_annotated == 60
    died = deaths(run.storage)
    assert died.num_by_phase.keys() == {"annotate"}
    assert all("scripted to die on" in death.cause for death in died.latest)
    assert all(death.log is not None and run.storage.exists(death.log) for death in died.latest)
    assert f"processes that died: {died.total} (annotate: {died.total})" in render_status(status(run))


@pytest.mark.parametrize(
    ("fault", "last_error"),
    [
        ("die_on", "scripted to die on 000.png"),
        ("kill_on", "the process ended without an error, as it does after SIGKILL"),
    ],
)
def test_more_images_that_kill_engines_than_the_limit_end_the_run(
    images: Path, tmp_path: Path, fault: str, last_error: str
) -> None:
    tree = scripted_tree(images, tmp_path / "run", **{fault: ["000.png"]})
    tree["source"]["limit"] = 4
    tree["limits"] = {"max_image_deaths": 1, "max_poison_images": 0}
    with pytest.raises(
        RunError, match=f"annotate:teacher: 1 image of shard 000000 killed engines, more than.*{last_error}"
    ) as end:
        identified(tree)
    run, config = Run.open(tree["run_dir"]), RunConfig.model_validate(tree)
    assert deaths(run.storage).num_by_phase == {"annotate": 2}
    last = deaths(run.storage).latest[0]
    assert f"(log: {run.storage.root}/{last.log})" in str(end.value)
    assert last.log is not None
    assert "==> /" in run.storage.read(last.log).decode()
    text = render_status(status(run))
    assert str(end.value) in text
    report(RunContext.open(config))
    page = run.storage.read("report/index.html").decode()
    assert "This run is not finished.</b> Missing: annotate, identify small" in page
    assert last_error in page
    assert f"{last.log}" in page


def test_a_fixed_engine_continues_a_run_that_images_which_kill_engines_have_ended(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run", die_on=["000.png"])
    tree["source"]["limit"] = 4
    tree["limits"] = {"max_image_deaths": 1, "max_poison_images": 0}
    ended = (
        r"1 image of shard 000000 killed engines, more than.*scripted to die on 000.png.*The same command would fail"
    )
    for _ in range(2):
        with pytest.raises(RunError, match=ended):
            annotated(tree)
        # The second command visits no image.
        assert deaths(Run.open(tree["run_dir"]).storage).total == 2
    tree["teacher"]["engine"]["die_on"] = []
    assert audit(annotated(tree)[1]).to_json()["failed"] == {}


def test_an_engine_whose_process_is_killed_while_it_starts_ends_the_run(images: Path, tmp_path: Path) -> None:
    """Without a limit, Ray would restart its actor forever."""
    tree = scripted_tree(images, tmp_path / "run", kill_at_start=True)
    tree["source"]["limit"] = 4
    with pytest.raises(
        RunError, match=r"engine of scripted cannot start.*teacher died 3 times.*SIGKILL.*log: .*/logs/"
    ):
        identified(tree)
    assert deaths(Run.open(tree["run_dir"]).storage).num_by_phase == {"annotate": 3}


@dataclass(frozen=True)
class ReaderThatIsKilled(Reader):
    """Ends the process that reads with it, as when memory runs out."""

    def read(self, uris: Sequence[str]) -> list[Any]:  # noqa: ARG002
        os.kill(os.getpid(), signal.SIGKILL)
        return []


def test_a_task_that_is_killed_whenever_it_reads_a_shard_ends_the_run(images: Path, tmp_path: Path) -> None:
    """Without a limit, Ray Data would repeat the task forever."""
    tree = scripted_tree(images, tmp_path / "run")
    tree["source"]["limit"] = 4
    tree["limits"] = {"max_engine_deaths": 2}
    context = RunContext.open(RunConfig.model_validate(tree))
    index(context)
    run = context.run
    work = replace(annotation_pass(context), reader=ReaderThatIsKilled(context.config.object_store))
    with pytest.raises(RunError, match=r"annotate:teacher: the task that reads a shard died 2 times.*SIGKILL.*log: "):
        run_missing(run, work, Outstanding.of(run.annotations, run.manifest()))
    assert deaths(run.storage).num_by_phase == {"annotate": 2}


def test_broken_files_are_rows_with_a_reason(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 20)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image at all")
    whole = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (3000, 2)).save(folder / "strip.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    config, run = annotated(scripted_tree(folder, tmp_path / "run"))
    report(RunContext.open(config))
    written = run.read_json("report/report.json")
    assert {row["image"]: row["reason"] for row in written["failed_images"]} == {
        "empty.png": "empty_file",
        "text.jpg": "not_an_image",
        "cut.png": "truncated_image",
        "strip.png": "extreme_aspect_ratio",
        "bomb.png": "too_many_pixels",
    }
    assert problems_of_annotation(run) == []
    page = run.storage.read("report/index.html").decode()
    assert all(name in page for name in ("empty.png", "text.jpg", "cut.png", "strip.png", "bomb.png"))


def test_a_run_stops_when_too_many_images_fail(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run", fail_on=[f"{i:03d}.png" for i in range(50)])
    tree["limits"] = {"max_failed_rate": 0.3, "min_images": 16}
    with pytest.raises(RunError, match=r"images failed, more than limits\.max_failed_rate = 0\.3 \(request_failed: "):
        identified(tree)


@pytest.mark.parametrize("fault", ["die_on", "kill_on", "hang_on"])
def test_an_image_that_kills_engines_is_quarantined(
    images: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = scripted_tree(images, tmp_path / "run", **{fault: ["011.png"]})
    tree["source"]["limit"] = 24
    tree["limits"] = {"max_image_deaths": 1, "request_timeout_s": 2.0}
    _, run = annotated(tree)
    counts = audit(run).to_json()
    assert (problems_of_annotation(run), counts["annotated"], counts["failed"]) == ([], 23, {"kills_engine": 1})
    rows = {row.image_id: row for row in run.annotations.rows(run.manifest().shards)}
    assert rows["011.png"].attempts == 2
    assert run.annotations.list_suspects() == set()
    warning = "annotate:teacher: 1 image killed engines and failed with reason kills_engine (011.png)"
    assert warning in capsys.readouterr().out
    assert rows["011.png"].detail == "1 engine died while it held only this image"


@pytest.mark.parametrize(
    ("fault", "first", "last", "most"),
    [("die_on", 7, 11, 18), ("kill_on", 7, 23, 60)],
)
@pytest.mark.long
def test_many_images_that_kill_engines_end_as_failed_rows_with_default_limits(
    tmp_path: Path, fault: str, first: int, last: int, most: int
) -> None:
    poison = [f"{number:03d}.png" for number in range(first, last)]
    tree = scripted_tree(write_images(tmp_path / "images", 64), tmp_path / "run", **{fault: poison})
    tree["source"] |= {"shard_size": 64, "skip_duplicates": False}
    config = RunConfig.model_validate(tree)
    for phase in (index, annotate):
        phase(RunContext.open(config))
    run = Run.open(config.run_dir)
    rows = {row.image_id: row.reason for row in run.annotations.rows(run.manifest().shards)}
    assert [name for name, reason in rows.items() if reason == "kills_engine"] == poison
    assert (len(rows), [reason for reason in rows.values() if reason not in (None, "kills_engine")]) == (64, [])
    assert deaths(run.storage).total <= most
    assert run.annotations.list_suspects() == set()


def test_an_engine_that_cannot_answer_the_probe_ends_the_run_and_blames_no_image(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run", die_on=["003.png", PROBE_ID])
    tree["source"]["limit"] = 8
    with pytest.raises(Unfinished, match=rf"are not the cause: scripted to die on {PROBE_ID}.*log: ") as end:
        identified(tree)
    run = Run.open(tree["run_dir"])
    assert deaths(run.storage).num_by_phase == {"annotate": 3}
    assert str(end.value).endswith("Fix the cause, then run the same command again to continue.")
    tree["teacher"]["engine"]["die_on"] = []
    assert audit(annotated(tree)[1]).to_json()["failed"] == {}


@dataclass(frozen=True)
class ReaderThatFails(Reader):
    """Raises an error that is our own mistake."""

    def read(self, uris: Sequence[str]) -> list[Any]:  # noqa: ARG002
        raise KeyError("no such row")


def test_an_error_in_a_task_ends_the_run_in_its_own_words(images: Path, tmp_path: Path) -> None:
    tree = scripted_tree(images, tmp_path / "run")
    tree["source"]["limit"] = 4
    context = RunContext.open(RunConfig.model_validate(tree))
    index(context)
    run = context.run
    work = replace(annotation_pass(context), reader=ReaderThatFails(context.config.object_store))
    with pytest.raises(RunError, match=r"^annotate:teacher: KeyError: 'no such row'\. This may be a bug in mpa_ray"):
        run_missing(run, work, Outstanding.of(run.annotations, run.manifest()))


class Process:
    """An actor that describes its process; asynchronous, like those that hold engines."""

    async def current(self) -> WorkerProcess:
        return current_process("engine of teacher")


@pytest.mark.parametrize(("end", "expected"), [("SIGKILL", False), ("SIGTERM", True), ("ray.kill", True)])
def test_ray_says_whether_a_process_was_asked_to_end(end: str, expected: bool) -> None:
    actor: Any = ray.remote(max_restarts=1, max_task_retries=-1)(Process).remote()
    process = ray.get(actor.current.remote())
    assert not asyncio.run(was_taken_away(process))
    if end == "ray.kill":
        ray.kill(actor, no_restart=False)
    else:
        os.kill(process.pid, getattr(signal, end))
    while ray.get(actor.current.remote(), timeout=60) == process:
        time.sleep(0.1)
    assert asyncio.run(was_taken_away(process)) is expected


def test_files_with_the_same_bytes_are_annotated_once(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 20)
    copies = {f"{n:03d}-copy{c}.png": f"{n:03d}.png" for n in range(20) for c in range(n % 3)}
    for copy, original in copies.items():
        (folder / copy).write_bytes((folder / original).read_bytes())
    tree = scripted_tree(folder, tmp_path / "run", die_on=["007.png"], die_once_in=str(tmp_path))
    _, run = annotated(tree)
    counts = audit(run).to_json()
    assert (problems_of_annotation(run), counts["images"], counts["annotated"]) == ([], 20 + len(copies), 20)
    assert counts["dropped"]["duplicate_of"] == len(copies)
    rows = list(run.annotations.rows(run.manifest().shards))
    # `-` sorts before `.`, so the first copy of each group is the first in the corpus.
    first = {original: min(c for c, o in copies.items() if o == original) for original in copies.values()}
    assert {row.image_id: row.duplicate_of for row in rows if row.duplicate_of} == {
        name: first[copies.get(name, name)] for name in [*copies, *first] if name not in first.values()
    }


def test_a_run_directory_that_cannot_be_written_is_named(images: Path, tmp_path: Path) -> None:
    config = RunConfig.model_validate(scripted_tree(images, tmp_path / "run"))
    index(RunContext.open(config))
    # A file where a folder has to be cannot be written even by root.
    (tmp_path / "run/annotations").write_text("in the way")
    with pytest.raises(
        RunError, match=r"run/annotations/.*cannot be written.*Then run the same command again to continue"
    ):
        annotate(RunContext.open(config))
