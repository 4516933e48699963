"""Generations of a shard: what is made again, what is kept, and who wins."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from mpa_ray.errors import ConfigError, Unfinished
from mpa_ray.phases.model_groups import copy_same_model_rows
from mpa_ray.phases.repeated_work import Again, PassingFailures
from mpa_ray.records import Annotation, ImageDigest, ImageRef, LabelledQuestion, Prediction, Verdict
from mpa_ray.run.audit import audit
from mpa_ray.run.dataset import ShardedDataset
from mpa_ray.run.garbage import collect_garbage
from mpa_ray.run.joined_datasets import JoinedDatasets
from mpa_ray.run.marker import Commit
from mpa_ray.run.parity_export import export_parity
from mpa_ray.run.redo import Redo, ShardPlan, outdated
from mpa_ray.run.run import Run
from mpa_ray.stages.judge import parity_samples
from mpa_ray.storage.local import LocalStorage
from mpa_ray.tasks.library import TASKS

SHARD = "000000"
REFS = [ImageRef(f"{i}.png", f"/images/{i}.png", 10) for i in range(4)]


def annotation(number: int, state: str = "kept", reason: str | None = None, answer: str = "a") -> Annotation:
    name = f"{number}.png"
    return Annotation(f"{name}#0", name, f"/images/{name}", state, reason, question="?", answer=answer)


FIRST = [annotation(0), annotation(1, "failed", "storage"), annotation(2, "failed", "empty_file"), annotation(3)]
SECOND = [FIRST[0], annotation(1), *FIRST[2:]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """One shard of four images, two of which failed."""
    run = Run.open(str(tmp_path))
    run.write_json("run.json", {"config": {"students": [{"name": "small"}]}})
    run.write_json("corpus/manifest.json", {"num_images": 4, "num_shards": 1})
    run.corpus.commit(SHARD, REFS)
    run.annotations.commit(SHARD, FIRST)
    return run


def redo(run: Run, *reasons: str) -> Redo:
    return Redo(run.annotations, run.corpus, frozenset(reasons))


def test_readers_take_the_newest_generation_and_no_marker_changes(run: Run) -> None:
    marker = Path(run.storage.root, f"annotations/commits/{SHARD}.json")
    before = marker.read_bytes()
    assert run.annotations.commit(SHARD, SECOND, generation=1)
    assert run.annotations.read(SHARD) == SECOND
    assert [row.image_id for row in run.annotations.columns(SHARD, ImageDigest)] == [f"{i}.png" for i in range(4)]
    assert run.annotations.table(SHARD).num_rows == 4
    assert list(run.annotations.rows([SHARD])) == SECOND
    assert [commit.generation for commit in run.annotations.history(SHARD)] == [0, 1]
    assert run.annotations.committed() == [SHARD]
    assert run.annotations.num_rows([SHARD]) == 4
    assert marker.read_bytes() == before
    assert run.annotations.rows_of(run.annotations.history(SHARD)[0]) == FIRST


def test_only_one_of_two_drivers_that_redo_at_once_wins(run: Run) -> None:
    plans = [redo(run, "storage").plan(SHARD, 0, REFS) for _ in range(8)]
    assert {plan.generation for plan in plans} == {1}
    with ThreadPoolExecutor(8) as pool:
        won = list(
            pool.map(
                lambda number: run.annotations.commit(SHARD, [annotation(1, answer=str(number))], plans[0].generation),
                range(8),
            )
        )
    assert won.count(True) == 1
    assert run.annotations.read(SHARD)[0].answer == str(won.index(True))


def test_only_images_that_failed_for_the_reason_are_visited_again(run: Run) -> None:
    assert redo(run).shards([SHARD]) == []
    assert redo(run, "unreadable").shards([SHARD]) == []
    for reasons, kept in ((["storage"], {0, 2, 3}), (["storage", "empty_file"], {0, 3}), (["failed"], {0, 3})):
        assert redo(run, *reasons).shards([SHARD]) == [SHARD]
        plan = redo(run, *reasons).plan(SHARD, 0, REFS)
        assert set(plan.kept) == {f"{number}.png" for number in kept}
        assert (plan.generation, plan.source_generation, plan.is_current) == (1, 0, False)


def test_new_rows_take_their_place_among_kept_ones(run: Run) -> None:
    plan = redo(run, "storage").plan(SHARD, 0, REFS)
    assert plan.merge([ref.image_id for ref in REFS], [SECOND[1]]) == SECOND


def test_rows_of_the_same_image_that_did_not_fail_are_kept(run: Run) -> None:
    def rows(first: str | None, second: str | None, number: int) -> list[Annotation]:
        annotations = [
            annotation(number, "failed" if reason else "kept", reason, answer)
            for reason, answer in ((first, "a"), (second, "b"))
        ]
        return [replace(row, annotation_id=f"{number}.png#{question}") for question, row in enumerate(annotations)]

    whole = [annotation(2, "failed", "storage")]
    run.annotations.commit("000001", [*rows(None, None, 0), *rows(None, "request_failed", 1), *whole])
    refs = [REFS[0], REFS[1], REFS[2]]
    plan = redo(run, "failed").plan("000001", 0, refs)
    new = [replace(row, answer=f"new {row.answer}") for row in (*rows(None, None, 1), *rows(None, None, 2))]
    merged = plan.merge([ref.image_id for ref in refs], new)
    assert [row.answer for row in merged] == ["a", "b", "a", "new b", "new a", "new b"]
    assert {row.state for row in merged} == {"kept"}


def test_nothing_is_visited_where_another_driver_was_first(run: Run) -> None:
    run.annotations.commit(SHARD, SECOND, generation=1)
    assert redo(run, "storage").shards([SHARD]) == []
    assert redo(run, "storage").plan(SHARD, 0, REFS).is_current
    assert Redo(run.annotations, run.corpus).plan("000001", 0, REFS) == ShardPlan()


def verdicts_of(rows: list[Annotation]) -> list[Verdict]:
    return [
        Verdict(row.annotation_id, row.image_id, row.uri, row.state, row.reason, question="?", answer="a")
        for row in rows
    ]


def test_verdicts_follow_their_annotations(run: Run) -> None:
    verdicts = run.verdicts("small")
    verdicts.commit(SHARD, verdicts_of(FIRST))
    follow = Redo(verdicts, run.annotations)
    assert follow.shards([SHARD]) == []
    run.annotations.commit(SHARD, SECOND, generation=1)
    assert outdated(verdicts, run.annotations, [SHARD]) == follow.shards([SHARD]) == [SHARD]
    commit, rows = run.annotations.read_commit(SHARD)
    plan = follow.plan(SHARD, commit.generation, rows)
    assert set(plan.kept) == {"0.png", "2.png", "3.png"}
    merged = plan.merge([ref.image_id for ref in REFS], verdicts_of(SECOND)[1:2])
    assert verdicts.commit(SHARD, merged, plan.generation, plan.source_generation)
    assert verdicts.read(SHARD) == verdicts_of(SECOND)
    assert follow.shards([SHARD]) == []


def test_all_verdicts_are_made_again_if_the_older_annotations_are_gone(run: Run) -> None:
    run.verdicts("small").commit(SHARD, verdicts_of(FIRST))
    run.annotations.commit(SHARD, SECOND, generation=1)
    Path(run.storage.root, run.annotations.history(SHARD)[0].file).unlink()
    assert Redo(run.verdicts("small"), run.annotations).plan(SHARD, 1, SECOND).kept == {}


def test_a_student_is_not_asked_again_where_the_teacher_failed(run: Run) -> None:
    rows = verdicts_of(FIRST)
    rows[3] = replace(rows[3], state="failed", reason="storage")
    run.verdicts("small").commit(SHARD, rows)
    again = Redo(run.verdicts("small"), run.annotations, frozenset(["storage"]))
    assert again.shards([SHARD]) == [SHARD]
    assert set(again.plan(SHARD, 0, FIRST).kept) == {"0.png", "1.png", "2.png"}
    run.verdicts("other").commit(SHARD, verdicts_of(FIRST))
    assert Redo(run.verdicts("other"), run.annotations, frozenset(["failed"])).shards([SHARD]) == []


def test_the_audit_finds_verdicts_that_are_older_than_their_annotations(run: Run) -> None:
    def export() -> None:
        samples = parity_samples(run.verdicts("small").rows([SHARD]))
        export_parity(run, run.parity_dir("small"), TASKS["demo_world"], samples)

    run.verdicts("small").commit(SHARD, verdicts_of(FIRST))
    export()
    assert audit(run).problems == []
    run.annotations.commit(SHARD, SECOND, generation=1)
    (problem,) = audit(run).problems
    assert "verdicts/small: shard 000000 is older than its annotations" in problem
    run.verdicts("small").commit(SHARD, verdicts_of(SECOND), generation=1, source_generation=1)
    assert any("kept rows missing: 1.png#0" in problem for problem in audit(run).problems)
    export()
    counts = audit(run)
    assert (counts.problems, counts.kept, counts.students["small"].failed) == ([], {"small": 3}, {"empty_file": 1})


def test_d_pi_knows_the_verdicts_that_it_was_exported_from(run: Run) -> None:
    verdicts = run.verdicts("small")
    verdicts.commit(SHARD, verdicts_of(FIRST))
    assert run.parity_version("small") is None
    run.write_json("parity/small/manifest.json", {"num_samples": 2})
    assert run.parity_version("small") == verdicts.version() == ""
    verdicts.commit(SHARD, verdicts_of(SECOND), 1, 1)
    second = verdicts.version()
    verdicts.commit(SHARD, verdicts_of(SECOND), 2, 2)
    assert len({"", second, verdicts.version()}) == 3


def test_a_copy_of_another_students_verdicts_is_as_old_as_they_are(run: Run) -> None:
    run.annotations.commit(SHARD, SECOND, generation=1)
    run.verdicts("a").commit(SHARD, verdicts_of(FIRST), 0, 0)
    run.verdicts("b").commit("000001", verdicts_of(SECOND), 0, 1)
    for student in "ab":
        run.register_fingerprint(run.verdicts_dir(student), {})
    shards = [SHARD, "000001"]
    others = {name: run.verdicts(name) for name in "ab"}
    copy_same_model_rows(run, "identify c", run.verdicts("c"), others, {}, shards)
    assert [commit.source_generation for shard in shards if (commit := run.verdicts("c").commit_of(shard))] == [0, 1]


def test_files_of_all_generations_are_kept(run: Run) -> None:
    run.annotations.commit(SHARD, SECOND, generation=1)
    run.annotations.commit(SHARD, FIRST, generation=1)
    run.annotations.count_unread(SHARD, 2, "command")
    run.storage.write("annotations/generations/.half", b"")
    assert collect_garbage(run, timedelta(seconds=-5)).num_files == 2
    assert [run.annotations.rows_of(commit) for commit in run.annotations.history(SHARD)] == [FIRST, SECOND]
    assert run.annotations.count_unread(SHARD, 2, "command") == 1


def test_a_command_counts_once_however_often_it_reads_a_shard(run: Run) -> None:
    counts = [run.annotations.count_unread(SHARD, 0, command) for command in "aabbac"]
    assert counts == [1, 1, 2, 2, 1, 3]
    assert run.annotations.count_unread(SHARD, 1, "d") == 1


def test_markers_of_other_versions_can_be_read(run: Run) -> None:
    marker = Path(run.storage.root, f"annotations/commits/{SHARD}.json")
    (commit,) = run.annotations.history(SHARD)
    older = Commit(SHARD, commit.file, 4)
    marker.write_text(f'{{"shard": "{SHARD}", "file": "{commit.file}", "num_rows": 4}}')
    assert run.annotations.read_commit(SHARD) == (older, FIRST)
    marker.write_text(f'{{"shard": "{SHARD}", "file": "{commit.file}", "num_rows": 4, "of_a_later_version": "0"}}')
    assert run.annotations.commit_of(SHARD) == older


def test_answers_to_several_benchmarks_are_made_again(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    questions = JoinedDatasets({name: ShardedDataset(storage, f"q/{name}", LabelledQuestion) for name in "ab"})
    answers = JoinedDatasets({name: ShardedDataset(storage, f"p/{name}", Prediction) for name in "ab"})
    labelled = [LabelledQuestion(f"{i}", f"{i}.png", "", "?", ["x"], "all") for i in range(3)]
    for name in "ab":
        questions.commit(f"{name}/{SHARD}", labelled)
        states = [("kept", None), ("failed", "storage") if name == "b" else ("kept", None), ("kept", None)]
        rows = [Prediction(f"{i}", f"{i}.png", "", "?", ["x"], "all", *states[i]) for i in range(3)]
        answers.commit(f"{name}/{SHARD}", rows)
    again = Redo(answers, questions, frozenset(["storage"]))
    assert again.shards([f"a/{SHARD}", f"b/{SHARD}"]) == [f"b/{SHARD}"]
    plan = again.plan(f"b/{SHARD}", 0, labelled)
    assert set(plan.kept) == {"0.png", "2.png"}
    assert answers.commit(f"b/{SHARD}", plan.merge([q.image_id for q in labelled], rows[1:2]), plan.generation)
    assert [commit.generation for commit in answers.parts["b"].history(SHARD)] == [0, 1]
    assert answers.generations() == {f"b/{SHARD}": 1}


def test_reasons_of_redo_are_checked() -> None:
    assert Again.of("storage, kills_engine").reasons == {"storage", "kills_engine"}
    assert Again.of("failed").reasons == {"failed"}
    with pytest.raises(ConfigError, match=r"--redo = 'storag': is not a reason .* Did you mean storage\?"):
        Again.of("storag")


def test_failures_that_may_pass_end_a_command_as_unfinished() -> None:
    failures = PassingFailures()
    failures.check()
    failures.add("annotate", Counter())
    failures.check()
    failures.add("identify small", Counter(storage=3))
    with pytest.raises(
        Unfinished, match=r"identify small 3\).*To process these images again, run the same command with --redo storage"
    ):
        failures.check()
