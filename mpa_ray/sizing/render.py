"""The sizing page as text."""

from __future__ import annotations

from mpa_ray.sizing.memory import MemoryCheck
from mpa_ray.sizing.plan import Phase, Sizing


def render_sizing(sizing: Sizing) -> str:
    """A table of phases, the memory checks, and what it all rests on."""
    width = max(len(phase.name) for phase in sizing.phases)
    price = sizing.gpu_hour_price
    lines = [
        f"{'phase':<{width}} {'how many':>20} {'tokens':>9} {'a replica does':>16} {'':<10} {'replicas':>8} "
        f"{'starts':>6} {'time':>9} {'GPU-hours':>10}" + ("" if price is None else f" {'cost':>10}")
    ]
    lines += [_phase(phase, width, price) for phase in sizing.phases]
    told = "all" if sizing.is_complete else "all that is known"
    lines.append(
        f"{told:<{width}} {'':>20} {'':>9} {'':>16} {'':<10} {'':>8} {'':>6} {_time(sizing.wall_s):>9} "
        f"{sizing.gpu_hours:>10.2f}" + _cost(sizing.gpu_hours, price)
    )
    if not sizing.is_complete:
        missing = ", ".join(phase.name for phase in sizing.phases if phase.wall_s is None)
        lines.append(
            f"not known: {missing}. Give plan.from_run (a run of some hundred images measures all), or rates "
            "(plan.teacher_images_per_s, ...); only GPUs of a known kind are estimated"
        )
    if any(phase.rate.origin == "estimated" for phase in sizing.phases):
        lines.append(
            "estimated: from parameters and a share of the GPU's peak (plan.efficiency), without rendering "
            "images, reading and scheduling; expect less"
        )
    lines += ["", "memory of one GPU, GiB (estimates)"]
    for check in sizing.checks:
        lines += _check(check)
    return "\n".join([*lines, "", *(f"note: {note}" for note in sizing.notes)])


def _phase(phase: Phase, width: int, price: float | None) -> str:
    count = "?" if phase.count is None else f"{phase.count:,.0f} {phase.unit}"
    rate = "?" if phase.rate.value is None else f"{phase.rate.value:,.4g}/s"
    tokens = "" if phase.tokens is None else _short(phase.tokens)
    wall = "?" if phase.wall_s is None else _time(phase.wall_s)
    hours = "?" if phase.gpu_hours is None else f"{phase.gpu_hours:.2f}"
    starts = str(phase.num_starts or "")
    return (
        f"{phase.name:<{width}} {count:>20} {tokens:>9} {rate:>16} {phase.rate.origin:<10} {phase.replicas:>8} "
        f"{starts:>6} {wall:>9} {hours:>10}" + _cost(phase.gpu_hours, price)
    )


def _cost(gpu_hours: float | None, price: float | None) -> str:
    if price is None:
        return ""
    return f" {'?' if gpu_hours is None else f'{gpu_hours * price:.2f}':>10}"


def _check(check: MemoryCheck) -> list[str]:
    where = f" on {check.gpu}" if check.gpu else ""
    available = f", {check.available_gib:.1f} available" if check.available_gib is not None else ""
    lines = [f"  {check.name}{where}: {check.verdict}{available}"]
    if check.needed_gib:
        lines.append("    " + ", ".join(f"{name} {gib:.1f}" for name, gib in check.needed_gib.items()))
    lines += [f"    {check.told}"] if check.told else []
    lines += [f"    remedy: {', or '.join(check.remedies)}"] if check.remedies else []
    return lines


def _time(seconds: float) -> str:
    """Hours, minutes and seconds, such as 2:05:09."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f}"
