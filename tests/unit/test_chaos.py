"""The plan of the chaos trials, the reader that recounts them, and their results."""

from __future__ import annotations

import ast
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem

from benchmarks import chaos_recount
from benchmarks.chaos import NUM_TRIALS, SCHEDULES, plan
from benchmarks.chaos_damage import BitFlip, Truncation, flipped, kind_of
from benchmarks.chaos_faults import DriverKill, Reference
from benchmarks.chaos_poison import SHARD_SIZE, Poison
from benchmarks.chaos_proxy import ChaosProxy
from benchmarks.chaos_recount import recount
from benchmarks.chaos_results import Ended, InjectedFault, Trial, read_trials, render_table, write_results
from benchmarks.chaos_testbed import deep_merge
from benchmarks.faulty_proxy import WebFault

IMAGES = [f"{number:04d}.png" for number in range(96)]
REFERENCE = Reference(
    {
        f"{image}#0": {"image_id": image, "content_sha256": image, "student_answer": "a", "state": "kept"}
        for image in IMAGES
    },
    {image: f"{number // 6:06d}" for number, image in enumerate(IMAGES)},
)


def test_a_trial_depends_on_the_seed_and_its_number_alone() -> None:
    schedule = SCHEDULES["scripted"]
    planned = [plan(0, number, REFERENCE, schedule) for number in range(NUM_TRIALS["scripted"])]
    assert [plan(0, number, REFERENCE, schedule) for number in range(149, -1, -1)] == planned[::-1]
    assert [plan(1, number, REFERENCE, schedule) for number in range(150)] != planned
    assert len(set(planned)) == len(planned)


def test_every_block_of_trials_has_every_kind_of_fault() -> None:
    schedule = SCHEDULES["scripted"]
    planned = [plan(0, number, REFERENCE, schedule) for number in range(NUM_TRIALS["scripted"])]
    for first in range(0, len(planned), len(schedule)):
        assert Counter(map(type, planned[first : first + len(schedule)])) == Counter(schedule)
    kinds = Counter(fault.kind for fault in planned)
    assert min(kinds[f"poison {number}"] for number in (1, 4, 16)) >= 3
    assert min(kinds[f"leveling {victim}"] for victim in ("worker", "node", "driver")) >= 3
    assert {fault.is_finished for fault in planned if isinstance(fault, BitFlip | Truncation)} == {True, False}
    assert {fault.phase for fault in planned if isinstance(fault, DriverKill)} == {"annotate", "identify"}


@pytest.mark.parametrize("block", range(6))
def test_poison_is_in_one_shard_and_ends_as_failed(block: int) -> None:
    fault = Poison.plan(random.Random(block), block, REFERENCE)
    assert isinstance(fault, Poison)
    assert len({IMAGES.index(image) // SHARD_SIZE for image in fault.images}) == 1
    expected = fault.expected(REFERENCE)
    failed = {row["image_id"] for row in expected.values() if row.get("reason") == "kills_engine"}
    assert failed == set(fault.images)
    assert len(expected) == len(IMAGES)


def test_the_recount_uses_no_code_of_the_project() -> None:
    tree = ast.parse(Path(chaos_recount.__file__).read_text())
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert modules <= {"__future__", "argparse", "json", "sys", "collections", "typing", "urllib", "pyarrow"}


def commit(run: Path, dataset: str, shard: int, rows: list[dict[str, Any]], generation: int = 0, **more: Any) -> None:
    """Write a shard as a run does, with its marker."""
    folder = run / dataset
    file = f"{dataset}/data/{shard:06d}-{generation}.parquet"
    name = f"commits/{shard:06d}.json" if generation == 0 else f"generations/{shard:06d}.{generation}.json"
    for path in (run / file, folder / name):
        path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), run / file)
    marker = {"shard": f"{shard:06d}", "file": file, "generation": generation, "fingerprint": "f", **more}
    (folder / name).write_text(json.dumps(marker))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four images in two shards; the student has two parity samples."""
    folder = tmp_path / "run"
    for shard in range(2):
        images = IMAGES[2 * shard : 2 * shard + 2]
        commit(folder, "corpus", shard, [{"image_id": image} for image in images])
        commit(folder, "annotations", shard, [{"image_id": i, "annotation_id": f"{i}#0"} for i in images])
        verdicts = [
            {"image_id": image, "annotation_id": f"{image}#0", "state": state, "reason": reason}
            for image, state, reason in zip(images, ("kept", "failed"), (None, "storage"), strict=True)
        ]
        commit(folder, "verdicts/small", shard, verdicts)
    (folder / "parity/small").mkdir(parents=True)
    export(folder, [f"{IMAGES[0]}#0", f"{IMAGES[2]}#0"])
    return folder


def export(run: Path, names: list[str]) -> None:
    pq.write_table(pa.table({"annotation_id": names}), run / "parity/small/parity.parquet")


def counts(run: Path, images: list[str] = IMAGES[:4]) -> dict[str, Any]:
    return recount(LocalFileSystem(), str(run), "small", images)[0]


def test_a_whole_run_is_recounted(run: Path) -> None:
    states = {"kept": 2, "storage": 2}
    assert counts(run) == {"images": 4, "states": states, "lost": 0, "doubled": 0, "mixed": 0}


def test_lost_and_doubled_rows_are_counted(run: Path) -> None:
    assert counts(run, IMAGES[:5])["lost"] == 1
    export(run, [f"{IMAGES[0]}#0", f"{IMAGES[0]}#0"])
    assert (counts(run)["lost"], counts(run)["doubled"]) == (1, 1)
    (run / "verdicts/small/commits/000001.json").unlink()
    assert (counts(run)["lost"], counts(run)["doubled"]) == (2, 1)
    commit(run, "students/small/parity/epoch", 0, [{"annotation_id": f"{IMAGES[1]}#0"}])
    assert (counts(run)["lost"], counts(run)["doubled"]) == (3, 2)


def test_the_newest_marker_counts(run: Path) -> None:
    commit(run, "verdicts/small", 1, [], generation=1, is_withdrawn=True)
    assert counts(run)["lost"] == 2
    rows = [{"image_id": i, "annotation_id": f"{i}#0", "state": "kept", "reason": None} for i in IMAGES[2:4]]
    commit(run, "verdicts/small", 1, rows, generation=2)
    assert counts(run)["states"] == {"kept": 3, "storage": 1}
    # A repair leaves the damaged marker where it is.
    (run / "verdicts/small/commits/000001.json").write_text("damaged")
    assert counts(run)["states"] == {"kept": 3, "storage": 1}


def test_rows_of_different_settings_are_counted(run: Path) -> None:
    assert counts(run)["mixed"] == 0
    marker = run / "annotations/commits/000001.json"
    marker.write_text(marker.read_text().replace('"f"', '"g"'))
    assert counts(run)["mixed"] == 1


def test_every_request_fails_in_an_outage() -> None:
    with ChaosProxy("http://127.0.0.1:1", share=0.0, seed=0) as proxy:
        assert proxy.draw("GET", "/a") is None
        proxy.begin_outage(WebFault.SLOW_DOWN, seconds=1e9)
        assert {proxy.draw("GET", f"/{number}") for number in range(20)} == {WebFault.SLOW_DOWN}
        proxy.reset()
        assert proxy.draw("GET", "/a") is None


def test_expired_credentials_are_refused_until_they_are_renewed() -> None:
    with ChaosProxy("http://127.0.0.1:1", share=0.0, seed=0) as proxy:
        proxy.expire_credentials()
        answer = proxy.refuse("GET", "/a")
        assert answer is not None
        assert b"<Code>ExpiredToken</Code>" in answer.body
        proxy.renew_credentials()
        assert proxy.refuse("GET", "/a") is None


def test_files_of_the_same_kind_are_drawn_together() -> None:
    assert kind_of("corpus/commits/000001.json") == kind_of("corpus/commits/000002.json")
    assert kind_of("corpus/data/000001-0a.parquet") == kind_of("corpus/data/000007-ff.parquet")
    assert kind_of("a/checkpoint_1/model") == kind_of("a/checkpoint_2/model")
    assert kind_of("run.json") != kind_of("corpus/manifest.json")
    assert flipped(b"\0\0", 9) == b"\0\2"


TRIAL = Trial(
    number=0,
    kinds=["outage"],
    faults=[InjectedFault("outage", "in annotate at 3 images", False, 0, 0)],
    is_finished=True,
    ended=[Ended(3, "Unfinished: ...", "wait until the store answers")],
    num_lost=0,
    num_doubled=0,
    num_mixed=0,
    num_differing=0,
    num_unnoticed=0,
    num_harmless=0,
    recount={"lost": 0},
    num_redone_shards=1,
    num_redone_images=6,
    num_needless=0,
    num_extra_files=0,
    num_restarts=1,
    problems=[],
    elapsed_s=30.5,
)


def test_a_later_part_continues_from_the_results(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    assert read_trials(out, "scripted", 0) == ([], [])
    conditions = {"seed": 0, "num_trials": 150}
    write_results(out, "scripted", conditions, [{"commit": "c"}], [TRIAL])
    write_results(out, "vllm", conditions, [], [TRIAL, replace(TRIAL, number=1)])
    assert read_trials(out, "scripted", 0) == ([TRIAL], [{"commit": "c"}])
    assert "Engine: scripted. 1 of 150 trials, seed 0." in render_table(json.loads(out.read_text()))
    with pytest.raises(ValueError, match="seed 0"):
        read_trials(out, "scripted", 1)


def test_a_trial_is_good_only_if_everything_is_accounted_for() -> None:
    assert TRIAL.is_good
    for name in ("num_lost", "num_doubled", "num_mixed", "num_differing", "num_unnoticed", "num_needless"):
        assert not replace(TRIAL, **{name: 1}).is_good
    assert not replace(TRIAL, ended=[Ended(1, "something", None)]).is_good
    assert not replace(TRIAL, ended=[Ended(3, "Run the same command again", "run it", is_expected=False)]).is_good
    assert not replace(TRIAL, problems=["p"]).is_good
    assert not replace(TRIAL, is_finished=False).is_good
    assert replace(TRIAL, num_harmless=1).is_good


def test_settings_of_later_trees_take_precedence() -> None:
    assert deep_merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}
