"""What travels to a training worker, and what is measured on the way."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import cast

import pytest
import torch
from torch import nn

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.read import Content, Reader
from mpa_ray.errors import TransientError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.loss import IGNORED_LABEL
from mpa_ray.leveling.pace import Pace
from mpa_ray.leveling.step_data import Step, StepCounts, collated
from mpa_ray.leveling.training_measurements import BestWeights
from mpa_ray.pipeline.training_data import FetchedStep, decode, fetched
from mpa_ray.records import ParitySample, Reason
from mpa_ray.run.training_log import LogEntry

COUNTS = StepCounts(
    weight=2,
    num_supervised_tokens=2,
    num_samples=1,
    num_tokens=6,
    num_computed_tokens=8,
    num_unreadable=1,
    num_changed=1,
)


def test_a_fetched_step_is_decoded_as_it_was_encoded() -> None:
    row = TrainingRow(ParitySample("a#0", "a", "/a", "?", "b", "c"), 20)
    step = FetchedStep(batches=[(row, row), (row,)], contents=[[b"1", b""], [b"3"]])
    assert decode({"content": [step.encode()["content"]]}) == step


class Files:
    """A reader whose files are in memory."""

    def __init__(self, *contents: Content) -> None:
        self._contents = contents
        self.moved = None

    def read(self, uris: Sequence[str]) -> list[Content]:
        assert len(uris) == len(self._contents)
        return list(self._contents)


def test_an_image_that_changed_since_the_teacher_saw_it_gives_no_loss() -> None:
    def row(sha256: str | None, supervised: bool = True) -> TrainingRow:
        return TrainingRow(ParitySample("a#0", "a", "/a", "?", "b", "c", content_sha256=sha256), 20, supervised)

    seen = hashlib.sha256(b"file").hexdigest()
    batches = [(row(seen), row("0" * 64)), (row(None), row("0" * 64, supervised=False))]
    files = Files(b"file", b"file", b"file", b"file")
    step = fetched(batches, cast(Reader, files))
    assert [[isinstance(content, bytes) for content in batch] for batch in step.contents] == [[True, False]] * 2
    contents = []

    def collate(rows: Sequence[TrainingRow], files: Sequence[bytes]) -> dict[str, torch.Tensor]:
        contents.extend(files)
        labels = [5 if row.supervised and file else IGNORED_LABEL for row, file in zip(rows, files, strict=True)]
        return {"labels": torch.tensor([[IGNORED_LABEL, label] for label in labels])}

    batch = collated(step, collate)
    assert contents == [b"file", b"", b"file", b""]
    assert (batch.num_unreadable, batch.num_changed) == (1, 1)


def test_a_step_counts_tokens_samples_and_padding() -> None:
    labels = torch.tensor([[IGNORED_LABEL, IGNORED_LABEL, 5, 6], [IGNORED_LABEL] * 4])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    step = Step([{"labels": labels, "attention_mask": mask}], num_unreadable=1, num_changed=1)
    assert step.counts("token") == COUNTS
    assert step.counts("sample").weight == 1


def test_speed_is_measured_since_the_last_measurement_in_fields_of_the_log() -> None:
    pace = Pace(num_workers=1)
    pace.add(COUNTS, wait_s=0.5)
    pace.add(COUNTS, wait_s=0.5)
    first, second = pace.measure(), pace.measure()
    assert first.keys() <= {field.name for field in fields(LogEntry)}
    assert first["padding_share"] == pytest.approx(0.25)
    assert first["supervised_tokens_per_s"] == pytest.approx(2 * first["samples_per_s"])
    assert (second["samples_per_s"], second["padding_share"], second["data_wait_share"]) == (0.0, 0.0, 0.0)


def test_the_best_weights_are_those_with_the_lowest_loss() -> None:
    model = nn.Linear(1, 1, bias=False)
    best = BestWeights()
    is_best = []
    for weight, loss in ((1.0, 0.5), (2.0, 0.3), (3.0, 0.4), (4.0, math.nan)):
        nn.init.constant_(model.weight, weight)
        is_best.append(best.update(loss, model))
    assert is_best == [True, True, False, False]
    assert (best.loss, best.num_worse) == (0.3, 2)
    assert best.weights["weight"].item() == 2.0


@pytest.mark.parametrize(("reason", "is_lost"), [(Reason.UNREADABLE, False), (Reason.STORAGE, True)])
def test_an_outage_ends_a_training_worker_and_loses_no_sample(
    reason: Reason, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = ImageProblem(reason, "s3://bucket/a.png: SlowDown")
    monkeypatch.setattr(Reader, "read", lambda _, uris: [b"1", problem][: len(uris)])
    batches = [[ParitySample(f"{name}#0", name, name, "?", "x", "y")] for name in "ab"]
    if is_lost:
        with pytest.raises(TransientError, match="SlowDown"):
            fetched(batches, Reader(ObjectStoreConfig()))
    else:
        assert fetched(batches, Reader(ObjectStoreConfig())).contents == [[b"1"], [problem]]
