"""What travels to a training worker, and what is measured on the way."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import nn

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.corpus.read import Reader
from mpa_ray.errors import TransientError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.leveling.batching import TrainingRow
from mpa_ray.leveling.loss import IGNORED_LABEL
from mpa_ray.leveling.pace import Pace
from mpa_ray.leveling.step_data import Step, StepCounts
from mpa_ray.leveling.watched import BestWeights
from mpa_ray.pipeline.training_data import FetchedStep, _fetched, decode
from mpa_ray.records import ImageRef, ParitySample, Reason
from mpa_ray.run.training_state import LogEntry


def test_a_fetched_step_is_decoded_as_it_was_encoded() -> None:
    row = TrainingRow(ParitySample("a#0", "a", "/a", "?", "b", "c"), 20)
    step = FetchedStep(batches=[(row, row), (row,)], contents=[[b"1", b""], [b"3"]])
    assert decode({"content": [step.encode()["content"]]}) == step


def test_a_step_counts_tokens_samples_and_padding() -> None:
    labels = torch.tensor([[IGNORED_LABEL, IGNORED_LABEL, 5, 6], [IGNORED_LABEL] * 4])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    step = Step([{"labels": labels, "attention_mask": mask}], num_unreadable=1)
    counts = step.counts("token")
    assert counts == StepCounts(
        weight=2, num_supervised_tokens=2, num_samples=1, num_tokens=6, num_computed_tokens=8, num_unreadable=1
    )
    assert step.counts("sample").weight == 1


def test_speed_is_measured_since_the_last_measurement_in_fields_of_the_log() -> None:
    pace = Pace(num_workers=1)
    counts = StepCounts(
        weight=2, num_supervised_tokens=2, num_samples=1, num_tokens=6, num_computed_tokens=8, num_unreadable=1
    )
    pace.add(counts, wait_s=0.5)
    pace.add(counts, wait_s=0.5)
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
    batches = [[ImageRef("a", "a")], [ImageRef("b", "b")]]
    if is_lost:
        with pytest.raises(TransientError, match="SlowDown"):
            _fetched(batches, Reader(ObjectStoreConfig()))
    else:
        assert _fetched(batches, Reader(ObjectStoreConfig())).contents == [[b"1"], [b""]]
