"""A run whose images move twice: between indexing and annotation, and between identification and leveling."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpa_ray.config import RunConfig
from mpa_ray.leveling.epoch_plan import plan_epoch
from mpa_ray.leveling.job import TrainingJob
from mpa_ray.phases.annotate import annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.identify import identify
from mpa_ray.phases.index import index
from mpa_ray.phases.level import sample_sources
from mpa_ray.phases.report import report
from mpa_ray.pipeline.training_data import fetched
from mpa_ray.run.audit import audit
from tests.conftest import scripted_tree, write_images
from tests.sources import as_tars

pytestmark = pytest.mark.usefixtures("local_ray")
NUM_IMAGES = 24


def test_a_run_continues_while_its_images_move(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", NUM_IMAGES)
    places = [tmp_path / name for name in ("first", "second", "third")]
    places[0].mkdir()
    tars = as_tars([path.read_bytes() for path in sorted(images.iterdir())], places[0])

    def context_at(place: Path) -> RunContext[RunConfig]:
        tree = scripted_tree(place / tars.relative_to(places[0]), tmp_path / "run")
        return RunContext.open(RunConfig.model_validate(tree))

    index(context_at(places[0]))
    places[0].rename(places[1])
    annotate(context_at(places[1]))
    identify(context_at(places[1]))
    begun = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.parquet")}
    fingerprints = {file: file.read_bytes() for file in (tmp_path / "run/fingerprints").iterdir()}
    places[1].rename(places[2])

    context = context_at(places[2])
    run, student = context.run, context.config.students[0]
    context.begin(writes=["students/small/parity"], reads=["corpus", "annotations", "verdicts/small"])
    plan = plan_epoch(run, "students/small/parity", sample_sources(context, student), student.level)
    job = TrainingJob.of(run, context.config, student, context.task, plan, "students/small/parity", {True: "a card"})
    steps = list(plan.steps(0, plan.num_steps))
    contents = [content for batch in fetched(steps, job.reader).contents for content in batch]
    assert contents
    # Reading compares each file with the digest of what the teacher saw.
    assert all(isinstance(content, bytes) for content in contents)
    report(context_at(places[2]))
    assert "data:image/jpeg" in run.storage.read("report/index.html").decode()

    for phase in (index, annotate, identify):
        phase(context_at(places[2]))
    assert {file: file.read_bytes() for file in begun} == begun
    assert {file: file.read_bytes() for file in fingerprints} == fingerprints
    counts = audit(run).to_json()
    assert (counts["problems"], counts["images"], counts["failed"]) == ([], NUM_IMAGES, {})
    uris = {ref.uri for ref in run.corpus.rows(run.manifest().shards)}
    assert uris == {row.uri for row in run.annotations.rows(run.manifest().shards)}
    assert all(uri.startswith(str(places[0])) for uri in uris)
