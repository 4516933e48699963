"""Draw a collected report as one HTML page without outside files, and as a table for the terminal."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template

from mpa_ray.config import RunConfig
from mpa_ray.corpus.read import Content, Reader
from mpa_ray.imaging.decode import ImageProblem, prepare
from mpa_ray.observability.progress import clock
from mpa_ray.report.leaderboard import render_leaderboard
from mpa_ray.report.scores import percent, render_scores
from mpa_ray.run.run import Run

_THUMBNAIL_PIXELS = 160 * 160
_CELLS = (
    ("teacher_yes_student_no", "teacher agrees with itself, student does not", "kept: a knowledge gap"),
    ("teacher_yes_student_yes", "teacher agrees with itself, student too", "dropped: student_correct"),
    ("teacher_no_student_no", "teacher contradicts itself, student disagrees", "dropped: teacher_inconsistent"),
    ("teacher_no_student_yes", "teacher contradicts itself, student agrees", "dropped: teacher_inconsistent"),
    ("teacher_no_student_not_asked", "teacher contradicts itself, student not asked", "dropped: teacher_inconsistent"),
)

_COLOURS = ("#4263eb", "#f08c00", "#2b8a3e", "#c92a2a", "#862e9c", "#0b7285", "#868e96", "#ced4da")
"""Of the types of answers, in their order."""


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template("page.html")


def render_html(run: Run, config: RunConfig, summary: dict[str, Any]) -> str:
    """The report as a page; sample images are inlined as small JPEGs."""
    reader = Reader(config.object_store, max_bytes=config.source.max_bytes)
    uris = list({sample["uri"] for student in summary["students"].values() for sample in student["samples"]})
    thumbnails = {uri: _thumbnail(content) for uri, content in zip(uris, reader.read(uris), strict=True)}
    return _template().render(
        summary=summary,
        config=config.model_dump_json(indent=2),
        thumbnails=thumbnails,
        cells=_CELLS,
        losses={name: _polyline(s["training"]) for name, s in summary["students"].items()},
        stacks=_stacks(summary["coverage"]),
        colours=_COLOURS,
        percent=percent,
        clock=clock,
        root=run.storage.root,
    )


def _thumbnail(content: Content) -> str | None:
    image = content if isinstance(content, ImageProblem) else prepare(content, 1, _THUMBNAIL_PIXELS)
    if isinstance(image, ImageProblem):
        return None
    buffer = io.BytesIO()
    image.image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _polyline(training: dict[str, Any] | None, width: int = 560, height: int = 140) -> str | None:
    """Loss against step as the points of an SVG polyline."""
    rows = training["losses"] if training else []
    if len(rows) < 2:
        return None
    steps, losses = [r["step"] for r in rows], [r["loss"] for r in rows]
    top = max(losses) or 1.0
    return " ".join(
        f"{width * (s - steps[0]) / (steps[-1] - steps[0]):.1f},{height * (1 - v / top):.1f}"
        for s, v in zip(steps, losses, strict=True)
    )


def render_table(summary: dict[str, Any]) -> str:
    """The report as text: counts, drops, scores before and after, and what the second teacher pass cost."""
    teacher, counts = summary["teacher"], summary["counts"]
    lines = [
        "",
        f"images                       {counts['images']:>8}",
        f"D_PA (annotated)             {counts['annotated']:>8}",
    ]
    for name, student in summary["students"].items():
        lines += ["", f"student {name} ({student['model']}, {student['method']})"]
        lines += [f"  teacher-consistent         {student['num_consistent']:>8}"]
        lines += [f"  D_PI (parity samples)      {student['num_parity_samples']:>8}"]
        if student["replay_share"]:
            lines += [f"  replayed against forgetting{student['replay_share']:>8.0%} of D_PI"]
        lines += [f"  not kept: {reason:<17}{n:>8}" for reason, n in student["dropped"].items()]
        retained = student["training"]["retained"] if student["training"] else {}
        if retained.keys() >= {"before", "after"}:
            lines += [
                f"  retained pairs answered    {retained['after']:>8} of {retained['num']}, {retained['before']} before"
            ]
        lines += [f"  WARNING: {warning}" for warning in student["warnings"]]
    scores = render_scores(summary["scores"]) if summary["scores"] else "\nno benchmark was measured"
    lines += [*_divergence_lines(summary["coverage"]), scores]
    lines += ["", *_second_pass_lines(teacher), *_phase_lines(summary["phases"])]
    if len(summary["leaderboard"]) > 1:
        lines += ["", "before, after and gain in %", render_leaderboard(summary["leaderboard"])]
    return "\n".join(lines)


def _divergence_lines(coverage: dict[str, Any]) -> list[str]:
    lines = ["", "answers' types: divergence in bits (0 alike, 1 nothing in common)"]
    for name, found in coverage["divergences"].items():
        if name.startswith("D_PI"):
            lines += [f"  {name} from {base}: {bits:.3f}" for base, bits in found.items()]
    return lines


def _stacks(coverage: dict[str, Any]) -> list[dict[str, Any]]:
    """The sets' answers by type as widths in pixels and colours."""
    return [
        {
            "name": name,
            "total": sum(counts.values()),
            "parts": [
                (480 * counts.get(kind, 0) / sum(counts.values()), colour)
                for kind, colour in zip(coverage["types"], _COLOURS, strict=True)
            ],
        }
        for name, counts in coverage["sets"].items()
        if counts
    ]


def _second_pass_lines(teacher: dict[str, Any]) -> list[str]:
    if not teacher["num_second_answers"]:
        return []
    return [
        "teacher's second pass",
        f"  prompt tokens from cache   {teacher['cached_token_share']:>8.1%}",
        f"  image tokens computed again{teacher['num_uncached_image_tokens']:>8}",
        f"  share of the teacher's time{teacher['second_pass_time_share']:>8.1%}",
        *(f"  WARNING: {warning}" for warning in teacher["warnings"]),
    ]


def _phase_lines(phases: dict[str, Any]) -> list[str]:
    total = sum(phase["wall_s"] for phase in phases.values())
    return [
        "time",
        *(f"  {n:<27}{clock(p['wall_s']):>8}{_rate(p)}" for n, p in phases.items()),
        f"  {'sum':<27}{clock(total):>8}",
    ]


def _rate(phase: dict[str, Any]) -> str:
    return f"{phase['images_per_s']:9.1f} images/s" if phase["images_per_s"] else ""
