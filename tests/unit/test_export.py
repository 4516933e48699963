"""What an export refuses, with and without `python -O`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from mpa_ray.errors import RunError
from mpa_ray.leveling import export
from mpa_ray.leveling.export import load_trained_weights
from mpa_ray.leveling.parallel import check_parallel


def test_weights_have_to_be_those_of_the_model() -> None:
    model = nn.Linear(2, 1)
    weights = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    assert torch.equal(load_trained_weights(model, weights).weight, weights["weight"])
    with pytest.raises(RunError, match="training gave no weights for bias"):
        load_trained_weights(model, {"weight": weights["weight"]})
    with pytest.raises(RunError, match="it does not have the trained weights other"):
        load_trained_weights(model, {**weights, "other": torch.ones(1)})


def test_a_model_has_to_be_spread_over_the_workers_as_configured() -> None:
    model = nn.Linear(2, 1)
    check_parallel(model, "ddp", 1)
    with pytest.raises(RunError, match="2 workers train a Linear without DDP"):
        check_parallel(model, "ddp", 2)
    with pytest.raises(RunError, match="2 parameters are not sharded"):
        check_parallel(model, "fsdp", 2)


def test_checks_of_an_export_hold_under_python_o(monkeypatch: pytest.MonkeyPatch) -> None:
    optimized = ModuleType("optimized_export")
    monkeypatch.setitem(sys.modules, optimized.__name__, optimized)
    source = Path(export.__file__).read_text()
    # What `python -O` does: the code has no assert statements.
    exec(compile(source + "\nassert False\n", export.__file__, "exec", optimize=1), optimized.__dict__)
    with pytest.raises(RunError, match="training gave no weights for bias, weight"):
        optimized.load_trained_weights(nn.Linear(2, 1), {})
