"""Render the status of a run as text."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from mpa_ray.observability.progress import clock
from mpa_ray.observability.rate import format_rate
from mpa_ray.report.phase_status import PhaseStatus, Status
from mpa_ray.report.render_problems import death_lines, error_lines

_MAX_NAMED = 6


def render_status(status: Status) -> str:
    """Render a status: a line for each phase, the phases that remain, the commands that run, and how to continue."""
    width = max((len(phase.name) for phase in status.phases), default=0)
    lines = [status.run_dir]
    lines += [f"  {phase.name:<{width}}  {', '.join(_parts(phase, status.now))}".rstrip() for phase in status.phases]
    lines += [
        f"  rows of {phase.name}: {', '.join(f'{number} {outcome}' for outcome, number in phase.counts.items())}"
        for phase in status.phases
        if phase.counts
    ]
    lines += error_lines({phase.name: phase.error for phase in status.remaining if phase.error})
    lines += death_lines(status.deaths, status.run_dir)
    if status.finished or status.unfinished:
        begun = f"; unfinished: {', '.join(status.unfinished)}" if status.unfinished else ""
        lines.append(f"students leveled: {', '.join(status.finished) or 'none'}{begun}")
    signs = [(phase.last_sign, phase.name) for phase in status.phases if phase.last_sign is not None]
    if signs:
        last, name = max(signs)
        lines.append(f"last activity: {last:%Y-%m-%d %H:%M:%S} UTC, {_age(status.now, last)} ago ({name})")
    lines.append(f"remaining: {_names([phase.name for phase in status.remaining])}")
    lines += [
        f"running: {command.name} on {command.process}, begun {_age(status.now, command.begun)} ago"
        for command in status.commands
    ]
    if status.command is not None:
        condition = "if no command runs any more, " if status.commands else ""
        lines.append(f"{condition}continue with: {status.command}   (or mpa-ray align for all remaining phases)")
    return "\n".join(lines)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return (", ".join(names[:_MAX_NAMED]) or "nothing") + more


def _parts(phase: PhaseStatus, now: datetime) -> Iterator[str]:
    yield f"{phase.state:<9}"
    if phase.state != "not begun":
        yield from _counts(phase)
    if phase.attempt_ended is not None:
        yield f"the last attempt ended {_age(now, phase.attempt_ended)} ago without finishing"
    elif phase.state == "begun" and phase.last_sign is not None:
        yield f"last written {_age(now, phase.last_sign)} ago"


def _counts(phase: PhaseStatus) -> Iterator[str]:
    if phase.num_done is not None:
        yield f"{phase.num_done}{_of(phase.num_total)} {phase.unit}"
    if phase.num_shards_done is not None:
        yield f"{phase.num_shards_done}{_of(phase.num_shards)} shards"
    if phase.per_s:
        yield f"{format_rate(phase.per_s)} {'samples' if phase.unit == 'steps' else phase.unit}/s"
    if phase.note:
        yield phase.note


def _of(total: int | None) -> str:
    return f" of {total}" if total is not None else ""


def _age(now: datetime, then: datetime) -> str:
    seconds = max(0.0, (now - then).total_seconds())
    hours, rest = divmod(int(seconds), 3600)
    return clock(seconds) if hours == 0 else f"{hours} h {rest // 60} min"
