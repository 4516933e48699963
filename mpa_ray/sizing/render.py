"""The sizing of a run as text."""

from __future__ import annotations

from mpa_ray.observability.rate import format_rate
from mpa_ray.sizing.memory import MemoryCheck
from mpa_ray.sizing.sizing import PhaseSizing, Sizing

_UNKNOWN = "-"
"""Shown in place of a number that is not known."""


def render_sizing(sizing: Sizing) -> str:
    """A table of phases, the memory checks and the notes."""
    width = max(len(phase.key.label) for phase in sizing.phases)
    lines = _table(sizing, width)
    if not sizing.is_complete:
        missing = ", ".join(phase.key.label for phase in sizing.phases if phase.wall_s is None)
        remedy = "Set plan.from_run (a run with a few hundred images measures everything)"
        if sizing.from_run is not None:
            remedy = f"{sizing.from_run} was too small to measure this: set plan.from_run to a run with more images"
        lines.append(
            f"not known: {missing}. {remedy}, or rates (plan.teacher_images_per_s, ...). Rates are estimated only for "
            "known kinds of GPU"
        )
    if any(phase.rate.origin == "estimated" for phase in sizing.phases):
        lines.append(
            "estimated: from parameters and a share of the GPU's peak (plan.efficiency), without rendering "
            "images, reading and scheduling; expect lower rates"
        )
    lines.append("the total adds up the phases; align runs phases at the same time where they fit on the cluster")
    lines += ["", "memory of one GPU, GiB (estimates)"]
    for check in sizing.checks:
        lines += _check_lines(check)
    return "\n".join([*lines, "", *(f"note: {note}" for note in sizing.notes)])


def _table(sizing: Sizing, width: int) -> list[str]:
    price = sizing.gpu_hour_price
    header = (
        f"{'phase':<{width}} {'count':>20} {'tokens':>9} {'one replica does':>16} {'':<10} {'replicas':>8} "
        f"{'starts':>6} {'time':>9} {'GPU-hours':>10}" + ("" if price is None else f" {'cost':>10}")
    )
    total = "total" if sizing.is_complete else "total of known"
    is_any_known = any(phase.wall_s is not None for phase in sizing.phases)
    wall_s, gpu_hours = (sizing.wall_s, sizing.gpu_hours) if is_any_known else (None, None)
    footer = (
        f"{total:<{width}} {'':>20} {'':>9} {'':>16} {'':<10} {'':>8} {'':>6} {_duration(wall_s):>9} "
        f"{_hours(gpu_hours):>10}" + _cost(gpu_hours, price)
    )
    return [header, *(_row(phase, width, price) for phase in sizing.phases), footer]


def _row(phase: PhaseSizing, width: int, price: float | None) -> str:
    count = _UNKNOWN if phase.count is None else f"{phase.count:,.0f} {phase.unit}"
    tokens = "" if phase.tokens is None else _short(phase.tokens)
    starts = str(phase.num_starts or "")
    return (
        f"{phase.key.label:<{width}} {count:>20} {tokens:>9} {_per_s(phase.rate.value):>16} {phase.rate.origin:<10} "
        f"{phase.replicas:>8} {starts:>6} {_duration(phase.wall_s):>9} {_hours(phase.gpu_hours):>10}"
        + _cost(phase.gpu_hours, price)
    )


def _cost(gpu_hours: float | None, price: float | None) -> str:
    if price is None:
        return ""
    return f" {_UNKNOWN if gpu_hours is None else f'{gpu_hours * price:.2f}':>10}"


def _per_s(rate: float | None) -> str:
    return _UNKNOWN if rate is None else f"{format_rate(rate)}/s"


def _hours(gpu_hours: float | None) -> str:
    return _UNKNOWN if gpu_hours is None else f"{gpu_hours:.2f}"


def _check_lines(check: MemoryCheck) -> list[str]:
    on_gpu = f" on {check.gpu}" if check.gpu else ""
    available = f", {check.available_gib:.1f} available" if check.available_gib is not None else ""
    lines = [f"  {check.name}{on_gpu}: {check.result}{available}"]
    if check.needed_gib:
        lines.append("    " + ", ".join(f"{purpose} {gib:.1f}" for purpose, gib in check.needed_gib.items()))
    if check.detail:
        lines.append(f"    {check.detail}")
    if check.remedies:
        lines.append(f"    remedy: {', or '.join(check.remedies)}")
    return lines


def _duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, such as 2:05:09."""
    if seconds is None:
        return _UNKNOWN
    if 0 < seconds < 1:
        return "< 1 s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _short(number: float) -> str:
    """A number with one decimal and a unit, such as 1.5 M; numbers under 1000 have no decimals and no unit."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f}"
