"""What the driver sends to the training workers."""

from __future__ import annotations

from pathlib import Path

from mpa_ray.config import RunConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.leveling.arms import SampleSources
from mpa_ray.leveling.epoch_plan import plan_epoch
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.run.run import Run
from mpa_ray.tasks.library import TASKS
from tests.conftest import scripted_tree


def test_workers_read_images_with_the_configured_settings(tmp_path: Path) -> None:
    tree = scripted_tree(tmp_path, tmp_path / "run")
    tree |= {"reading": {"num_threads": 3}, "object_store": {"region": "eu-north-1"}}
    config = RunConfig.model_validate(tree)
    run = Run.open(config.run_dir)
    student = config.students[0]
    plan = plan_epoch(run, "students/small/parity", SampleSources(list, list), student.level)
    job = TrainingJob.of(run, config, student, TASKS["demo_world"], plan, "students/small/parity", {True: "a card"})
    assert job.reader == Reader(config.object_store, num_threads=3)


def test_workers_render_prompts_as_the_students_engine_does(tmp_path: Path) -> None:
    tree = scripted_tree(tmp_path, tmp_path / "run")
    tree["students"][0] |= {"chat_template_args": {"enable_thinking": False}, "max_reasoning_tokens": 64}
    config = RunConfig.model_validate(tree)
    run, student = Run.open(config.run_dir), config.students[0]
    plan = plan_epoch(run, "students/small/parity", SampleSources(list, list), student.level)
    job = TrainingJob.of(run, config, student, TASKS["demo_world"], plan, "students/small/parity", {True: "a card"})
    assert (job.chat_template_args, job.max_reasoning_tokens) == ({"enable_thinking": False}, 64)
