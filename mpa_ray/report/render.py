"""Render a report as one HTML page without external files, and as a table for the terminal."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mpa_ray.config import MAX_IMAGE_PIXELS, EvaluationRunConfig, RunConfig
from mpa_ray.corpus.read import Content, Reader
from mpa_ray.corpus.source_root import MovedRoot
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.imaging.prepare import prepare
from mpa_ray.observability.progress import clock
from mpa_ray.observability.rate import format_rate
from mpa_ray.redaction import without_secret_values
from mpa_ray.report.coverage import Coverage, parity_set
from mpa_ray.report.leaderboard import render_leaderboard
from mpa_ray.report.render_problems import named_error, problem_lines
from mpa_ray.report.scores import percent, render_scores
from mpa_ray.report.student import StudentSummary
from mpa_ray.report.summary import EvaluationSummary, PhaseSummary, ReportSummary
from mpa_ray.report.teacher import TeacherSummary
from mpa_ray.report.training import TrainingSummary
from mpa_ray.run.left_out_counts import left_out_in_words
from mpa_ray.stages.image_work import unless_changed

if TYPE_CHECKING:
    from jinja2 import Template

_THUMBNAIL_PIXELS = 160 * 160
_STACK_WIDTH = 480
_NOT_ASKED = "teacher_no_student_not_asked"
_CELLS = (
    ("teacher_yes_student_no", "teacher consistent, student disagrees", "kept: a knowledge gap"),
    ("teacher_yes_student_yes", "teacher consistent, student agrees", "dropped: student_correct"),
    ("teacher_no_student_no", "teacher inconsistent, student disagrees", "dropped: teacher_inconsistent"),
    ("teacher_no_student_yes", "teacher inconsistent, student agrees", "dropped: teacher_inconsistent"),
    (_NOT_ASKED, "teacher inconsistent, student not asked", "dropped: teacher_inconsistent"),
    ("not_judged", "no pair to judge", "see the teacher's results"),
)
"""The values of `Verdict.cell`, each with its description and result."""

_COLOURS = ("#4263eb", "#f08c00", "#2b8a3e", "#c92a2a", "#862e9c", "#0b7285", "#868e96", "#ced4da")
"""Colours of the types of answers, in the order of `mpa_ray.metrics.answer_types.TYPES`."""


@dataclass(frozen=True)
class Stack:
    """The bar that shows one set's answers by type."""

    name: str
    num_answers: int
    parts: list[tuple[float, str]]
    """Width in pixels and colour of each type."""


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html")


def render_html(config: EvaluationRunConfig, summary: EvaluationSummary, moved: MovedRoot | None = None) -> str:
    """Render the report as an HTML page, with the sample images inlined as small JPEGs.

    Args:
        config: The run's configuration.
        summary: The figures.
        moved: Where the images of the corpus have moved since they were indexed; None if they have not moved.
    """
    aligns_students = isinstance(config, RunConfig)
    alignment = summary if isinstance(summary, ReportSummary) else None
    students = alignment.students if alignment is not None else {}
    return _template().render(
        summary=summary,
        alignment=alignment,
        title="Model Parity Alignment" if aligns_students else "Evaluation",
        is_indexed=alignment is not None or not aligns_students,
        config=json.dumps(without_secret_values(config.model_dump(mode="json")), indent=2, ensure_ascii=False),
        thumbnails=_thumbnails(config, students.values(), moved),
        cells={name: _cells(student) for name, student in students.items()},
        loss_curves={name: _polyline(student.training) for name, student in students.items()},
        stacks=_stacks(alignment.coverage) if alignment is not None else [],
        colours=_COLOURS,
        led_benchmarks=_measured_benchmarks(alignment),
        named_error=named_error,
        percent=percent,
        clock=clock,
        left_out_in_words=left_out_in_words,
        format_rate=format_rate,
    )


def _measured_benchmarks(alignment: ReportSummary | None) -> list[str]:
    """Return the benchmarks for which the leaderboard has the gain of at least one student."""
    rows = alignment.leaderboard if alignment is not None else []
    return list(dict.fromkeys(name for row in rows for name in row.benchmarks))


def _thumbnails(
    config: EvaluationRunConfig, students: Iterable[StudentSummary], moved: MovedRoot | None
) -> dict[str, str | None]:
    """Return the images of the students' sample pairs as `data:` URIs, by the URI of the image.

    The value is None for an image that cannot be shown or has changed.
    """
    reader = Reader(config.object_store, config.reading.num_threads)
    if isinstance(config, RunConfig):
        source = config.source
        reader = replace(reader, max_bytes=source.max_bytes, follow_redirects="redirects" in source.allow, moved=moved)
    models = [config.teacher, *config.students] if isinstance(config, RunConfig) else []
    max_image_pixels = max((model.max_image_pixels for model in models), default=MAX_IMAGE_PIXELS)
    seen = {verdict.uri: verdict.content_sha256 for student in students for verdict in student.samples}
    contents = zip(seen.items(), reader.read(list(seen)), strict=True)
    return {uri: _thumbnail(content, sha256, max_image_pixels) for (uri, sha256), content in contents}


def _cells(student: StudentSummary) -> list[tuple[str, int, str]]:
    """Return the description, the number of pairs and the result of each cell.

    The cell `_NOT_ASKED` is left out if no pair is in it.
    """
    return [
        (description, student.cells.get(cell, 0), result)
        for cell, description, result in _CELLS
        if cell in student.cells or cell != _NOT_ASKED
    ]


def _thumbnail(content: Content, sha256: str | None, max_image_pixels: int) -> str | None:
    if isinstance(content, bytes):
        content = unless_changed(content, sha256)
    image = content if isinstance(content, ImageProblem) else prepare(content, 1, _THUMBNAIL_PIXELS, max_image_pixels)
    if isinstance(image, ImageProblem):
        return None
    buffer = io.BytesIO()
    image.image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _polyline(training: TrainingSummary | None, width: int = 560, height: int = 140) -> str | None:
    """Return the points of an SVG polyline of loss against step; None if there are fewer than two losses."""
    points = training.losses if training is not None else []
    if len(points) < 2:
        return None
    first, last = points[0].step, points[-1].step
    top = max(point.loss for point in points) or 1.0
    return " ".join(
        f"{width * (point.step - first) / (last - first):.1f},{height * (1 - point.loss / top):.1f}" for point in points
    )


def _stacks(coverage: Coverage) -> list[Stack]:
    return [
        Stack(name, sum(counts.values()), _parts(counts, coverage.types))
        for name, counts in coverage.sets.items()
        if counts
    ]


def _parts(counts: dict[str, int], types: Sequence[str]) -> list[tuple[float, str]]:
    total = sum(counts.values())
    return [(_STACK_WIDTH * counts.get(kind, 0) / total, colour) for kind, colour in zip(types, _COLOURS, strict=True)]


def render_table(summary: EvaluationSummary) -> str:
    """Render the report as text: problems, counts, scores, the cost of second answers, times and the leaderboard."""
    scores = render_scores(summary.scores) if summary.scores else "\nno benchmark was measured"
    problems = list(problem_lines(summary.problems, summary.run_dir))
    if not isinstance(summary, ReportSummary):
        return "\n".join([*problems, scores, "", *_phase_lines(summary.phases)])
    lines = [
        "",
        *problems,
        f"images                       {summary.counts.num_images:>8}",
        f"D_PA (annotated)             {summary.counts.num_annotated:>8}",
    ]
    if summary.counts.left_out_files:
        lines.append(left_out_in_words(summary.counts.left_out_files))
    for name, student in summary.students.items():
        lines += _student_lines(name, student)
    lines += _divergence_lines(summary.coverage, [parity_set(name) for name in summary.students])
    lines += [scores, *_second_pass_lines(summary.teacher), "", *_phase_lines(summary.phases)]
    if len(summary.leaderboard) > 1:
        lines += ["", "before, after and gain in %; the cost is the sum of all phases, including waiting time"]
        lines.append(render_leaderboard(summary.leaderboard))
    return "\n".join(lines)


def _student_lines(name: str, student: StudentSummary) -> list[str]:
    lines = [
        "",
        f"student {name} ({student.model}, {student.method})",
        f"  teacher-consistent         {student.num_consistent:>8}",
        f"  D_PI (parity samples)      {student.num_parity_samples:>8}",
    ]
    if student.replay_share:
        few = " (there were no more)" if student.has_too_few_to_replay else ""
        lines.append(f"  replayed correct pairs     {student.replayed_share:>8.0%} of D_PI{few}")
    lines += [f"  not kept: {reason:<17}{number:>8}" for reason, number in student.dropped.items()]
    retained = student.training.retained if student.training is not None else None
    if retained is not None and retained.num and retained.before is not None and retained.after is not None:
        lines.append(
            f"  retained pairs answered    {retained.after:>8} of {retained.num}, {retained.before} before training"
        )
    return [*lines, *(f"  WARNING: {warning}" for warning in student.warnings)]


def _divergence_lines(coverage: Coverage, sets: Sequence[str]) -> list[str]:
    return [
        "",
        "types of answers: Jensen-Shannon divergence in bits (0: equal shares, 1: nothing in common)",
        *(
            f"  {name} from {reference}: {bits:.3f}"
            for name in sets
            for reference, bits in coverage.divergences.get(name, {}).items()
        ),
    ]


def _second_pass_lines(teacher: TeacherSummary) -> list[str]:
    if teacher.cached_token_share is None or teacher.second_pass_time_share is None:
        return []
    return [
        "",
        "teacher's second answers",
        f"  prompt tokens from cache   {teacher.cached_token_share:>8.1%}",
        f"  image tokens computed again{teacher.num_uncached_image_tokens:>8}",
        f"  share of the teacher's time{teacher.second_pass_time_share:>8.1%}",
        *(f"  WARNING: {warning}" for warning in teacher.warnings),
    ]


def _phase_lines(phases: Sequence[PhaseSummary]) -> list[str]:
    total_s = sum(phase.record.wall_s for phase in phases)
    return [
        "time, and images/s without the start of engines",
        *(f"  {phase.key.label:<27}{clock(phase.record.wall_s):>8}{_rate(phase)}" for phase in phases),
        f"  {'sum':<27}{clock(total_s):>8}    overlapping phases count in full",
    ]


def _rate(phase: PhaseSummary) -> str:
    return f"{format_rate(phase.images_per_s):>9} images/s" if phase.images_per_s else ""
