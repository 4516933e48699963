"""The dashboard uses metrics and labels that this version of mpa_ray and of Ray export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import ray.dashboard.modules.metrics.dashboards as dashboards_of_ray

from mpa_ray.observability.usage import Load, Usage
from mpa_ray.pipeline import telemetry

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster/grafana/mpa_ray.json").read_text())
OF_EVERY_METRIC = {"SessionName", "instance"}
"""Labels that Ray adds to every metric."""


class Recording:
    """Stands for Ray's counters and gauges, and records their names, labels and label values."""

    tags: ClassVar[dict[str, set[str]]] = {}
    values: ClassVar[set[tuple[str, str]]] = set()

    def __init__(self, name: str, _: str, tags: tuple[str, ...]) -> None:
        self.tags[f"ray_{name}"] = set(tags)

    def inc(self, _: float, tags: dict[str, str]) -> None:
        self.values.update(tags.items())


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    class Total(Recording):
        def __init__(self, name: str, description: str, tags: tuple[str, ...]) -> None:
            super().__init__(f"{name}_total", description, tags)

    monkeypatch.setattr(telemetry, "Counter", Total)
    monkeypatch.setattr(telemetry, "Gauge", Recording)
    usage = Usage(*range(1, 10))
    telemetry.Counters("annotate:teacher").count(8, {("kept", ""): 8}, usage)
    telemetry.Gauges("annotate:teacher", Load())
    return Recording


def targets() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """The metrics of an expression, each with the content of its braces."""
    yield from re.findall(r"\b((?:ray|autoscaler)_\w+)(?:\{(.*?)\})?", expression)


def test_every_metric_is_exported_with_the_labels_that_are_asked_for(ours: type[Recording]) -> None:
    of_ray = "".join(path.read_text() for path in Path(dashboards_of_ray.__file__).parent.glob("*.py"))
    used = set()
    for title, expression in targets():
        (grouping,) = set(re.findall(r"by \((.*?)\)", expression))
        for metric, selector in selectors(expression):
            used.add(metric)
            labels = {*re.findall(r"(\w+)=", selector), *grouping.split(", ")}
            if metric not in ours.tags:
                assert re.search(rf"\b{metric}\b", of_ray), (title, metric)
                continue
            assert labels <= ours.tags[metric] | OF_EVERY_METRIC, (title, metric, labels)
            selected = {("kind", kind) for kind in re.findall(r'kind="(\w+)"', selector)}
            assert selected <= ours.values, (title, selected)
    assert set(ours.tags) <= used, "a metric of ours is on no panel"


def test_panels_lie_side_by_side_and_use_the_variables_that_there_are() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} <= variables
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_legends_name_labels_that_are_left_after_summing() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            (grouping,) = set(re.findall(r"by \((.*?)\)", target["expr"]))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= set(grouping.split(", "))
