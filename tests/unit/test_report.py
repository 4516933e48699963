"""What a report says, and in which form it is stored."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from mpa_ray.campaign.end_of_campaign import score_and_report
from mpa_ray.config import EvaluationRunConfig, ModelConfig, RunConfig, VllmEngineConfig
from mpa_ray.evaluation.questions import write_questions
from mpa_ray.evaluation.scores import (
    BenchmarkScores,
    MetricReference,
    ModelScores,
    PairedDifference,
    Summary,
    write_scores,
)
from mpa_ray.metrics import METRICS
from mpa_ray.observability.usage import Usage
from mpa_ray.observability.worker_process import WorkerProcess
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.evaluate import evaluate
from mpa_ray.phases.report import report
from mpa_ray.records import Annotation, EpochCounts, ImageRef, Prediction, Verdict
from mpa_ray.report import next_steps
from mpa_ray.report.collect import collect, collect_alignment
from mpa_ray.report.next_steps import render_next_steps
from mpa_ray.report.render import render_html, render_table
from mpa_ray.report.student import NUM_SAMPLES, OutcomeSample
from mpa_ray.report.summary import EvaluationSummary, ReportSummary
from mpa_ray.report.teacher import teacher_summary
from mpa_ray.run.logs import record_lost_process
from mpa_ray.run.phase_record import PassTotals, PhaseKey, PhaseRecord, add_to_record
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import Retained
from tests.conftest import scripted_tree, write_images


def annotation(number: int, **changes: Any) -> Annotation:
    row = Annotation(
        annotation_id=f"{number:03d}.png#0",
        image_id=f"{number:03d}.png",
        uri=f"/images/{number:03d}.png",
        state="kept",
        question="How many?",
        answer="2",
        second_answer="2",
        num_second_prompt_tokens=40,
        num_second_cached_tokens=30,
        num_uncached_image_tokens=32,
        first_pass_s=0.3,
        second_pass_s=0.1,
    )
    return replace(row, **changes)


def summary_of(mean: float) -> Summary:
    return Summary(mean, mean - 0.1, mean + 0.1, num_questions=80)


def scores() -> BenchmarkScores:
    def model(mean: float, lost: float, *warnings: str) -> ModelScores:
        return ModelScores({"all": summary_of(mean), "family: word": summary_of(lost)}, 0, list(warnings))

    change = {"all": summary_of(0.2), "family: word": summary_of(-0.08)}
    return BenchmarkScores(
        MetricReference.of(METRICS["anls"]),
        {"small.before": model(0.5, 0.9), "small.after": model(0.7, 0.82, "odd"), "teacher": model(0.9, 0.95)},
        [PairedDifference("small.before", "small.after", change)],
    )


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    tree = scripted_tree(write_images(tmp_path / "images", 3), tmp_path / "run")
    tree["students"][0]["arms"] = ["parity", "random"]
    return RunConfig.model_validate(tree)


@pytest.fixture
def summary(config: RunConfig) -> ReportSummary:
    """A run of three images: one kept, one that the student answers too, and one that failed."""
    run = Run.open(config.run_dir)
    run.record_config(config, {"ray": "2.60.0"})
    uris = [f"{config.source.path}/{number:03d}.png" for number in range(3)]
    run.corpus.commit("000000", [ImageRef(f"{number:03d}.png", uri) for number, uri in enumerate(uris)])
    run.write_json("corpus/manifest.json", {"num_images": 3, "num_shards": 1})
    failed = {"question": None, "answer": None, "second_answer": None}
    annotations = [annotation(number, uri=uri) for number, uri in enumerate(uris)]
    annotations[2] = replace(
        annotations[2], state="failed", reason="not_an_image", detail="<cannot identify>", **failed
    )
    run.annotations.commit("000000", annotations)
    ids = [(row.annotation_id, row.image_id, row.uri) for row in annotations]
    pair = {"question": "How many?", "answer": "2", "second_answer": "2", "teacher_agrees": True}
    verdicts = [
        Verdict(*ids[0], "kept", **pair, student_answer="3", student_agrees=False),
        Verdict(*ids[1], "dropped", "student_correct", **pair, student_answer="2", student_agrees=True),
        Verdict(*ids[2], "failed", "not_an_image", "<cannot identify>"),
    ]
    run.verdicts("small").commit("000000", verdicts)
    log = [
        {"loss": loss, "samples_per_s": speed, "step": step}
        for step, loss, speed in ((1, 0.5, 1.0), (2, 0.5, 4.0), (3, 0.6, 6.0), (4, 0.7, 8.0))
    ]
    training = {
        "step": 4,
        "num_steps": 4,
        "num_unreadable": 0,
        "best_step": 2,
        "retained": {"num": 20, "before": 20, "after": 10},
        "resumed": [{"from_step": 1, "had_reached": 2, "workers": 2}],
        "log": [*log, {"eval_loss": 0.4, "step": 2}],
    }
    run.write_json("students/small/parity/training.json", training)
    for arm in ("parity", "random"):
        run.write_json(f"students/small/{arm}/epoch/manifest.json", asdict(EpochCounts(1, 0, 0, 0, 0, 1)))
        run.mark_leveled("small", arm)
    write_scores(run, {"held": scores()})
    add_to_record(run, PhaseKey("index"), PhaseRecord(wall_s=61.0, num_attempts=1))
    add_to_record(run, PhaseKey("level", "small", "random"), PhaseRecord(wall_s=61.0, num_attempts=1))
    totals = PassTotals(
        num_images=3, num_images_by_models=3, working_s=1.5, usage=Usage(read_s=125.0, num_output_tokens=77)
    )
    add_to_record(run, PhaseKey("identify", "small"), PhaseRecord(61.0, 1, totals))
    return collect_alignment(run, config)


def test_a_report_is_stored_in_the_form_that_programs_read(summary: ReportSummary) -> None:
    report = json.loads(json.dumps(summary.to_json()))
    assert report.keys() == {
        "run_dir",
        "task",
        "teacher_model",
        "counts",
        "teacher",
        "failed_images",
        "scores",
        "coverage",
        "students",
        "leaderboard",
        "phases",
        "versions",
        "problems",
    }
    assert report["counts"]["kept"] == {"small": 1}
    assert report["counts"]["students"] == {"small": {"dropped": {"student_correct": 1}, "failed": {"not_an_image": 1}}}
    assert report["failed_images"] == [{"image": "002.png", "reason": "not_an_image", "detail": "<cannot identify>"}]
    assert report["teacher"]["cached_token_share"] == 0.75
    assert report["phases"].keys() == {"index", "identify small", "level small random"}
    assert (report["phases"]["identify small"]["images_per_s"], report["phases"]["identify small"]["read_s"]) == (
        2.0,
        125.0,
    )
    assert report["phases"]["index"] == {"wall_s": 61.0, "num_attempts": 1, "images_per_s": None}
    small = report["students"]["small"]
    assert small["cells"] == {"teacher_yes_student_no": 1, "teacher_yes_student_yes": 1, "not_judged": 1}
    assert small["dropped"] == {"student_correct": 1, "not_an_image": 1}
    assert small["measured"]["held"]["groups"]["all"].keys() == {"before", "after", "gain", "teacher"}
    assert small["training"] == {
        "losses": [
            {"step": 1, "loss": 0.5},
            {"step": 2, "loss": 0.5},
            {"step": 3, "loss": 0.6},
            {"step": 4, "loss": 0.7},
        ],
        "held_out_losses": [{"step": 2, "loss": 0.4}],
        "best_step": 2,
        "resumed": [{"from_step": 1, "had_reached": 2, "workers": 2}],
        "num_mixed_in": 0,
        "retained": {"num": 20, "before": 20, "after": 10},
        "speed": {"samples_per_s": 6.0},
    }
    assert report["scores"]["held"]["differences"][0]["from"] == "small.before"
    assert [(row["arm"], list(row["benchmarks"])) for row in report["leaderboard"]] == [
        ("parity", ["held"]),
        ("random", []),
    ]


def test_signs_of_a_failed_alignment_are_warned_of(summary: ReportSummary) -> None:
    few, loss, forgetting, family, model = summary.students["small"].warnings
    assert few.startswith("only 1 parity samples")
    assert loss.startswith("the loss did not fall")
    assert forgetting.startswith("answers 10 of the retained pairs")
    assert family.startswith("held: family: word lost 8.0 points")
    assert model == "held, after: odd"


def test_the_page_has_every_part_and_needs_no_other_file(config: RunConfig, summary: ReportSummary) -> None:
    page = render_html(config, summary)
    for part in (
        "<h2>Student small</h2>",
        "&lt;cannot identify&gt;",
        "70.0 [60.0, 80.0]",
        "student_correct",
        "<polyline points=",
        "Resumed from step 1 on 2 workers",
        "level small random",
        '<td class="n">2:05</td>',
        '<td class="n">77</td>',
        "<td>no pair to judge</td>",
        "<h2>Leaderboard</h2>",
        "ray 2.60.0",
    ):
        assert part in page
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert "src=" not in page.replace('src="data:', "")
    assert "student not asked" not in page


def test_the_page_of_a_run_without_training_and_scores_leaves_these_parts_out(
    config: RunConfig, summary: ReportSummary
) -> None:
    student = replace(summary.students["small"], training=None, measured={}, samples=[])
    page = render_html(config, replace(summary, students={"small": student}, scores={}, leaderboard=[], phases=[]))
    assert "<h2>Student small</h2>" in page
    assert "Benchmarks" not in page


def test_a_run_that_only_measures_models_has_a_report(tmp_path: Path) -> None:
    evaluate = {"benchmarks": [{"path": "q.jsonl", "name": "held"}], "models": [{"name": "rival", "model": "m"}]}
    config = EvaluationRunConfig.model_validate({"run_dir": str(tmp_path), "evaluate": evaluate})
    run = Run.open(config.run_dir)
    run.record_config(config, {"ray": "2.60.0"})
    add_to_record(run, PhaseKey("evaluate", "rival"), PhaseRecord(wall_s=61.0, num_attempts=1))
    write_scores(run, {"held": scores()})
    report(RunContext.from_checked(config))
    page = (tmp_path / "report/index.html").read_text()
    assert "<h1>Evaluation: text_vqa</h1>" in page
    assert "70.0 [60.0, 80.0]" in page
    assert not any(part in page for part in ("teacher <code>", "Types of answers", "not indexed"))
    assert json.loads((tmp_path / "report/report.json").read_text()).keys() == {
        "_digest",
        "run_dir",
        "task",
        "scores",
        "phases",
        "versions",
        "problems",
    }
    assert "evaluate rival" in render_table(collect(run, config))


def test_a_run_that_is_not_indexed_has_a_report(config: RunConfig) -> None:
    run = Run.open(config.run_dir)
    run.record_config(config, {"ray": "2.60.0"})
    page = render_html(config, collect(run, config))
    assert "The images have not been indexed yet." in page


def test_the_table_has_counts_scores_and_times(summary: ReportSummary) -> None:
    table = render_table(summary)
    lines = [" ".join(line.split()) for line in table.splitlines()]
    for line in (
        "images 3",
        "D_PA (annotated) 2",
        "D_PI (parity samples) 1",
        "not kept: student_correct 1",
        "retained pairs answered 10 of 20, 20 before training",
        "D_PI of small from D_PA: 0.000",
        "prompt tokens from cache 75.0%",
        "identify small 1:01 2.0 images/s",
        "sum 3:03 overlapping phases count in full",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("num_mixed_in", "words"),
    [(50, "replayed correct pairs 50% of D_PI"), (30, "replayed correct pairs 30% of D_PI (there were no more)")],
)
def test_the_number_of_replayed_pairs_is_that_of_the_training(
    summary: ReportSummary, num_mixed_in: int, words: str
) -> None:
    """In earlier versions, this was `level.replay_share`, even if the student had answered fewer pairs correctly."""
    small = summary.students["small"]
    assert small.training is not None
    training = replace(small.training, num_mixed_in=num_mixed_in, retained=Retained(0, 0, 0))
    small = replace(small, num_parity_samples=100, replay_share=0.5, training=training)
    lines = [" ".join(line.split()) for line in render_table(replace(summary, students={"small": small})).splitlines()]
    assert words in lines
    assert not [line for line in lines if line.startswith("retained pairs")]
    before = replace(small, training=None)
    assert "replayed correct pairs 50% of D_PI" in " ".join(
        render_table(replace(summary, students={"small": before})).split()
    )


def steps_of(config: EvaluationRunConfig, summary: EvaluationSummary) -> dict[str, str]:
    """The ways by their purposes."""
    text = render_next_steps(Run.open(config.run_dir), config, summary)
    assert text.startswith("\nnext steps\n")
    steps = {}
    for line in text.splitlines()[2:]:
        purpose, way = re.split(r"  +", line.strip())
        steps[purpose] = way
    return steps


def _no_package(name: str) -> str:
    raise PackageNotFoundError(name)


def test_the_end_of_a_run_says_what_to_do_next(
    config: RunConfig, summary: ReportSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, run_dir = steps_of(config, summary), config.run_dir
    assert steps == {
        "read the report": f"{run_dir}/report/index.html",
        "aligned student small": f"{run_dir}/students/small/parity/merged",
        "aligned student small (random)": f"{run_dir}/students/small/random/merged",
        "how to use small": f"{run_dir}/students/small/parity/merged/README.md",
        "see what is done and what is left": f"mpa-ray status {run_dir}",
        "recount every image": f"mpa-ray audit {run_dir}",
    }
    served = config.students[0].model_copy(update={"engine": VllmEngineConfig()})
    of_vllm = config.model_copy(update={"students": [served]})
    monkeypatch.setattr(next_steps, "version", {"vllm": "0.33.0"}.__getitem__)
    assert steps_of(of_vllm, summary)["serve small"] == f"vllm serve {run_dir}/students/small/parity/merged"
    assert "serve small" not in steps_of(config, summary)
    monkeypatch.setattr(next_steps, "version", _no_package)
    assert steps_of(of_vllm, summary) == steps


def test_align_ends_with_one_table_of_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, 2)
    question = {"question": "How many?", "answers": ["2"], "image": "000.png", "question_id": "q"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    rival = {"name": "rival", "model": "scripted", "engine": {"kind": "scripted"}}
    evaluation = {"benchmarks": [{"path": str(tmp_path / "questions.jsonl"), "name": "held"}], "models": [rival]}
    tree = {"run_dir": str(tmp_path / "run"), "task": "demo_world", "evaluate": evaluation}
    context = RunContext.open(EvaluationRunConfig.model_validate(tree))
    assert context.config.evaluate is not None
    write_questions(context.config.evaluate, context.run, context.places)
    answer = Prediction("q", "i", "/i", "How many?", ["2"], "all", "kept", prediction="2")
    context.run.predictions("held", "rival").commit("000000", [answer])
    score_and_report(context)
    output = capsys.readouterr().out
    assert output.count("held: exact_match, %") == 1
    assert output.count("100.0 [100.0, 100.0]") == 2
    assert "next steps" in output
    evaluate(context, score_only=True)
    assert "held: exact_match, %" in capsys.readouterr().out


def test_many_aligned_students_are_not_all_listed(config: RunConfig, summary: ReportSummary) -> None:
    rows = [replace(summary.leaderboard[0], student=f"s{number}") for number in range(9)]
    steps = steps_of(config, replace(summary, leaderboard=rows))
    assert [purpose for purpose in steps if "student" in purpose] == [
        *[f"aligned student s{number}" for number in range(4)],
        "5 more aligned students",
    ]


def test_a_run_without_aligned_students_points_to_its_report(config: RunConfig, summary: ReportSummary) -> None:
    assert list(steps_of(config, replace(summary, leaderboard=[]))) == [
        "read the report",
        "see what is done and what is left",
        "recount every image",
    ]


def test_a_second_pass_that_was_not_free_is_warned_of_with_model_and_block_size() -> None:
    model = ModelConfig(model="some/teacher", engine=VllmEngineConfig(block_size=128))
    rows = [annotation(number, num_uncached_image_tokens=32 if number < 3 else 0) for number in range(40)]
    (warning,) = teacher_summary(rows, model).warnings
    assert all(part in warning for part in ("3 of 40", "96", "some/teacher", "128"))
    assert teacher_summary(rows[3:], model).warnings == []


def test_half_of_the_sampled_verdicts_are_kept_and_the_others_are_taken_in_turn() -> None:
    sample = OutcomeSample()
    for number in range(1000):
        reason = [None, "student_correct", "teacher_inconsistent"][number % 3] if number < 990 else "no_question"
        state = "kept" if reason is None else "dropped"
        sample.add(Verdict(f"{number}#0", f"{number}", f"/{number}", state, reason))
    outcomes = [verdict.reason for verdict in sample.mixed()]
    assert len(outcomes) == NUM_SAMPLES
    assert outcomes.count(None) == NUM_SAMPLES // 2
    assert {outcomes.count(reason) for reason in ("student_correct", "teacher_inconsistent", "no_question")} == {4}


def with_benchmarks(config: RunConfig, names: list[str]) -> RunConfig:
    benchmarks = [{"path": f"{name}.jsonl", "name": name} for name in names]
    return RunConfig.model_validate({**config.model_dump(mode="json"), "evaluate": {"benchmarks": benchmarks}})


def parts_of(run: Run, config: RunConfig) -> tuple[str, str, dict[str, Any]]:
    """The page, the table and the problems of a run."""
    run.record_config(config, {})
    collected = collect(run, config)
    return render_html(config, collected), render_table(collected), collected.to_json()["problems"]


@pytest.mark.usefixtures("summary")
def test_an_unfinished_run_says_what_is_missing_and_what_continues_it(config: RunConfig) -> None:
    run = Run.open(config.run_dir)
    run.storage.delete("parity/small/manifest.json")
    page, table, problems = parts_of(run, config)
    assert "This run is not finished.</b> Missing: identify small" in page
    assert "<code>mpa-ray identify --config FILE</code>" in page
    assert "UNFINISHED: identify small. Continue with: mpa-ray identify --config FILE" in table
    assert (problems["is_done"], problems["remaining"]) == (False, ["identify small"])

    run.write_json("parity/small/manifest.json", {"num_samples": 1})
    page, table, problems = parts_of(run, config)
    assert "not finished" not in page + table
    assert problems["is_done"]


@pytest.mark.usefixtures("summary")
def test_a_model_without_a_score_is_named_with_its_reason_and_has_no_column(config: RunConfig) -> None:
    run = Run.open(config.run_dir)
    config = with_benchmarks(config, ["held", "other"])
    scored = scores()
    del scored.models["teacher"]
    other = replace(scored, models={"teacher": scored.models["small.before"]}, differences=[])
    write_scores(run, {"held": scored, "other": other})
    run.write_json("parity/small/manifest.json", {"num_samples": 1})
    for benchmark in ("held", "other"):
        run.write_json(f"evaluation/{benchmark}/manifest.json", {"num_images": 1, "num_shards": 1})
    add_to_record(run, PhaseKey("evaluate", "teacher"), PhaseRecord(1.0, 1, error="EngineCore was killed by SIGKILL"))
    run.storage.delete("students/small/random/complete.json")
    add_to_record(run, PhaseKey("level", "small", "random"), PhaseRecord(1.0, 1, error="CUDA out of memory"))
    page, table, problems = parts_of(run, config)
    reasons = {(row["model"], row["benchmark"]): row["reason"] for row in problems["unmeasured"]}
    assert reasons[("teacher", "held")] == "EngineCore was killed by SIGKILL"
    assert reasons[("small.random", "held")] == "CUDA out of memory"
    assert reasons[("small.after", "other")] == "the model has not answered it yet."
    assert ("teacher", "other") not in reasons
    assert "NOT MEASURED: teacher on held: EngineCore was killed by SIGKILL" in table.splitlines()[1:10]
    assert page.index("teacher on held: EngineCore was killed by SIGKILL") < page.index("<h2>Images</h2>")
    assert '<th class="n">teacher</th>' not in page
    assert "other: before" not in page
    assert "level small random: CUDA out of memory" in page


@pytest.mark.usefixtures("summary")
def test_deaths_that_a_run_survived_are_counted_in_its_report(config: RunConfig) -> None:
    run = Run.open(config.run_dir)
    process = WorkerProcess("engine of teacher", 7, "node", "", (), None)
    record_lost_process(run.storage, PhaseKey("annotate"), process, "<killed> by SIGKILL")
    page, table, problems = parts_of(run, config)
    assert "Processes that died while they worked for this run: 1\n(annotate: 1). Their logs are in" in page
    assert "the engine of teacher (process 7 on node): &lt;killed&gt; by SIGKILL" in page
    assert "processes that died: 1 (annotate: 1)" in table
    assert problems["deaths"]["num_by_phase"] == {"annotate": 1}


@pytest.mark.usefixtures("summary")
def test_a_model_that_got_no_reply_at_all_has_no_score(config: RunConfig) -> None:
    run = Run.open(config.run_dir)
    config = with_benchmarks(config, ["held"])
    run.write_json("evaluation/held/manifest.json", {"num_images": 1, "num_shards": 1})
    failed = Prediction("q", "i", "/i", "?", ["a"], "all", "failed", "request_failed")
    run.predictions("held", "teacher").commit("000000", [failed])
    scored = scores()
    del scored.models["teacher"]
    write_scores(run, {"held": scored})
    reasons = {row["model"]: row["reason"] for row in parts_of(run, config)[2]["unmeasured"]}
    assert reasons["teacher"] == "none of its 1 questions got a reply (request_failed: 1)."
