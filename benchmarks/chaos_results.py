"""The records of chaos trials, their summary, table and plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class InjectedFault:
    """A fault that happened in a trial."""

    kind: str
    moment: str
    is_kill: bool
    num_actors: int
    """Model actors that it killed."""
    num_in_flight: int
    """Shards that may be redone because of it: those that the actors worked on; if the driver was killed, all that they
    had begun and that were not committed."""

    def __str__(self) -> str:
        return f"{self.kind} {self.moment}"


@dataclass(frozen=True)
class Ended:
    """A driver that ended without being killed and before the run was done."""

    code: int
    line: str
    """Its last words."""
    action: str | None
    """What a person did then; None if the line did not say what."""
    is_expected: bool = True
    """Whether the faults of the trial may end a command."""

    @property
    def is_good(self) -> bool:
        return self.action is not None and self.is_expected


@dataclass(frozen=True)
class Trial:
    """One trial."""

    number: int
    kinds: list[str]
    """The planned faults."""
    faults: list[InjectedFault]
    """The faults that happened."""
    is_finished: bool
    ended: list[Ended]
    num_lost: int
    num_doubled: int
    num_mixed: int
    """Datasets with rows that were made with different settings."""
    num_differing: int
    """Verdicts, and weights of students, that differ from those of the undisturbed run."""
    num_unnoticed: int
    """Damaged files that changed a result and that neither the command nor `audit --deep` reported."""
    num_harmless: int
    """Damaged files that nothing reported and that changed no result."""
    recount: dict[str, Any]
    """The counts of `chaos_recount.py`."""
    num_redone_shards: int
    num_redone_images: int
    """Visits to images beyond the first of each."""
    num_needless: int
    """Shards that were redone after a kill although they were not in flight, or more than once."""
    num_extra_files: int
    """Files of rows that no marker names."""
    num_restarts: int
    problems: list[str]
    """Those that `mpa-ray audit --deep` found at the end."""
    elapsed_s: float

    @property
    def num_in_flight(self) -> int:
        return sum(fault.num_in_flight for fault in self.faults)

    @property
    def is_good(self) -> bool:
        counts = (self.num_lost, self.num_doubled, self.num_mixed, self.num_differing, self.num_unnoticed)
        return self.is_finished and not any((*counts, self.num_needless, self.problems)) and self.num_unexplained == 0

    @property
    def num_unexplained(self) -> int:
        """Drivers that ended although no fault may end them, or without a line that says what a person must do."""
        return sum(not ended.is_good for ended in self.ended)

    def __str__(self) -> str:
        lines = [f"{ended.code}: {ended.line} -> {ended.action}" for ended in self.ended]
        return (
            f"{'; '.join(map(str, self.faults)) or f'nothing happened of {self.kinds}'}: "
            f"{'finished' if self.is_finished else 'NOT FINISHED'}, {self.num_lost} lost, {self.num_doubled} doubled, "
            f"{self.num_mixed} mixed, {self.num_differing} differing, {self.num_unnoticed} unnoticed, "
            f"{self.num_redone_shards} of {self.num_in_flight} shards in flight redone, "
            f"{self.num_needless} without need, "
            f"{self.num_restarts} restarts, {self.elapsed_s:.0f} s" + "".join(f"\n    {s}" for s in lines)
        ) + "".join(f"\n    problem: {problem}" for problem in self.problems)


def trial_from_json(content: dict[str, Any]) -> Trial:
    """A trial as a results file holds it."""
    faults = [InjectedFault(**fault) for fault in content["faults"]]
    return Trial(**{**content, "faults": faults, "ended": [Ended(**ended) for ended in content["ended"]]})


def summarise(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for the trials with each fault alone, and one for all trials."""
    kinds = sorted({trial.kinds[0] for trial in trials if len(trial.kinds) == 1})
    groups = [(kind, [trial for trial in trials if trial.kinds == [kind]]) for kind in kinds]
    return [_summary(name, group) for name, group in [*groups, ("all", list(trials))] if group]


def _summary(name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "fault": name,
        "trials": len(trials),
        "happened": sum(len(t.faults) for t in trials),
        "finished": sum(t.is_finished for t in trials),
        "a_person_acted": sum(any(ended.is_good for ended in t.ended) for t in trials),
        "unexplained_ends": sum(t.num_unexplained for t in trials),
        "lost": sum(t.num_lost for t in trials),
        "doubled": sum(t.num_doubled for t in trials),
        "mixed": sum(t.num_mixed for t in trials),
        "differing": sum(t.num_differing for t in trials),
        "unnoticed": sum(t.num_unnoticed for t in trials),
        "shards_in_flight": sum(t.num_in_flight for t in trials),
        "redone_shards": sum(t.num_redone_shards for t in trials),
        "needless_shards": sum(t.num_needless for t in trials),
        "median_s": round(statistics.median(t.elapsed_s for t in trials), 1),
    }


def render_table(results: dict[str, Any]) -> str:
    """The summary of each engine's trials as a Markdown table."""
    lines = []
    for engine, result in results.items():
        columns = list(result["summary"][0])
        done, seed = len(result["trials"]), result["conditions"]["seed"]
        lines += [f"Engine: {engine}. {done} of {result['conditions']['num_trials']} trials, seed {seed}.", ""]
        lines += ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |"]
        lines += ["|---" + "|---:" * (len(columns) - 1) + "|"]
        lines += ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in result["summary"]]
        lines += [""]
    return "\n".join(lines)


def read_trials(out: Path, engine: str, seed: int) -> tuple[list[Trial], list[dict[str, Any]]]:
    """The trials of one engine that a results file holds, and its parts.

    Raises:
        ValueError: they have another seed.
    """
    result = json.loads(out.read_text()).get(engine) if out.exists() else None
    if result is None:
        return [], []
    if result["conditions"]["seed"] != seed:
        raise ValueError(f"{out} has trials of seed {result['conditions']['seed']}: give that seed, or another --out.")
    return [trial_from_json(trial) for trial in result["trials"]], result["parts"]


def write_results(
    out: Path, engine: str, conditions: dict[str, Any], parts: list[dict[str, Any]], trials: Sequence[Trial]
) -> None:
    """Write one engine's trials, keeping those of the others, and update the table of all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(out.read_text()) if out.exists() else {}
    in_order = sorted(trials, key=lambda trial: trial.number)
    results[engine] = {
        "conditions": conditions,
        "parts": parts,
        "summary": summarise(in_order),
        "trials": [asdict(trial) for trial in in_order],
    }
    out.write_text(json.dumps(results, indent=1) + "\n")
    out.with_suffix(".md").write_text(render_table(results))
