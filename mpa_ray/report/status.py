"""How far a run has come, from its files alone: needs neither Ray nor a model, and reads no rows unless asked to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from mpa_ray.config import Arm, measured_as
from mpa_ray.observability.progress import clock
from mpa_ray.run.dataset import ShardedDataset, prefetch
from mpa_ray.run.phase_record import PhaseKey
from mpa_ray.run.recorded_config import student_names
from mpa_ray.run.run import Run

PhaseState = Literal["done", "begun", "not begun"]

_LEFT_TOLD = 6


@dataclass(frozen=True)
class PhaseStatus:
    """A step of a run. `begun` is running now, or stopped: files cannot tell; the last sign of life can."""

    name: str
    state: PhaseState
    command: str
    """What begins or continues it."""
    num_shards_done: int | None = None
    num_shards: int | None = None
    num_done: int | None = None
    """Images, or steps of a training, that are done; None where the step does not count any."""
    num_total: int | None = None
    unit: str = "images"
    per_s: float | None = None
    """Units a second while engines were at work, over all attempts; of a training samples a second."""
    num_attempts: int | None = None
    """That ended, whether or not they finished the step."""
    last_sign: datetime | None = None
    """When its newest file was written."""
    attempt_ended: datetime | None = None
    """When an attempt ended without finishing the step (failed, or interrupted) and nothing was written since."""
    counts: dict[str, int] | None = None
    """Rows by outcome: `kept`, or the reason why not. Of all committed shards where rows were counted."""
    note: str = ""


@dataclass(frozen=True)
class Status:
    """The steps of a run in their order."""

    run_dir: str
    steps: list[PhaseStatus]
    now: datetime

    @property
    def finished(self) -> list[str]:
        """Students that are leveled."""
        return [name for name, state in self._leveled() if state == "done"]

    @property
    def unfinished(self) -> list[str]:
        """Students whose training was begun and is not done."""
        return [name for name, state in self._leveled() if state == "begun"]

    @property
    def command(self) -> str | None:
        """What continues the first step that is not done."""
        return next((step.command for step in self.steps if step.state != "done"), None)

    def _leveled(self) -> Iterator[tuple[str, PhaseState]]:
        return ((s.name.removeprefix("level "), s.state) for s in self.steps if s.name.startswith("level "))

    def record(self) -> dict[str, Any]:
        """For programs: plain values, times as ISO 8601."""
        steps = [{k: v.isoformat() if isinstance(v, datetime) else v for k, v in asdict(s).items()} for s in self.steps]
        left = [step.name for step in self.steps if step.state != "done"]
        return {
            "run_dir": self.run_dir,
            "at": self.now.isoformat(),
            "is_done": not left,
            "left": left,
            "students": {"leveled": self.finished, "begun": self.unfinished},
            "continue_with": self.command,
            "steps": steps,
        }


def status(run: Run, count_rows: bool = False, now: datetime | None = None) -> Status:
    """The state of every step of the run's latest configuration.

    It lists the markers of each dataset and reads those of the corpus while there are images left to count, O(shards)
    small files in all.

    Args:
        count_rows: Also read two columns of every committed shard, for how many rows were kept, dropped and failed.

    Raises:
        ConfigError: the directory holds no run.
    """
    names = student_names(run)
    looked = _Look(run, run.read_json("run.json")["config"], count_rows)
    steps: list[PhaseStatus] = []
    if "source" in looked.config:
        steps += [looked.index(), looked.annotate()]
        steps += [looked.identify(name) for name in names]
        steps += [looked.level(name, arm) for name in names for arm in looked.arms(name)]
    steps += list(looked.evaluate(names))
    if "source" in looked.config:
        steps.append(looked.report())
    return Status(run.storage.root, steps, now or datetime.now(UTC))


class _Look:
    """What the listings of a run show, each taken once."""

    def __init__(self, run: Run, config: dict[str, Any], count_rows: bool) -> None:
        self._run, self.config, self._count_rows = run, config, count_rows
        self._phases = {file.path: file.modified for file in run.storage.details("phases")}
        self._sizes: dict[str, dict[str, int]] = {}
        self._manifest = self._json("corpus/manifest.json")

    def index(self) -> PhaseStatus:
        markers = self._markers(self._run.corpus)
        num_images = self._manifest["num_images"] if self._manifest else sum(self._images("corpus").values())
        step = PhaseStatus(
            "index",
            _state(self._manifest is not None, bool(markers)),
            _job("index"),
            len(markers),
            self._manifest["num_shards"] if self._manifest else None,
            num_images,
            num_images if self._manifest else self.config["source"]["limit"],
        )
        return self._timed(step, markers.values())

    def annotate(self) -> PhaseStatus:
        return self._pass("annotate", "annotate", "corpus", self._run.annotations)

    def identify(self, student: str) -> PhaseStatus:
        step = self._pass(f"identify {student}", "identify", "corpus", self._run.verdicts(student))
        parity = self._json(f"{self._run.parity_dir(student)}/manifest.json")
        if step.state == "done" and parity is None:
            return replace(step, state="begun", note="D_PI is not exported yet")
        if parity is not None:
            step = replace(step, note=f"{parity['num_samples']} parity samples")
        return step

    def arms(self, student: str) -> list[Arm]:
        """On what a student is trained; of one that is not in the latest configuration, on D_PI."""
        found: list[Arm]
        found = next((s["arms"] for s in self.config["students"] if s["name"] == student and "arms" in s), ["parity"])
        return found

    def level(self, student: str, arm: Arm) -> PhaseStatus:
        folder = self._run.student_dir(student, arm)
        key = PhaseKey("level", student, arm)
        files = {file.path: file.modified for file in self._run.storage.details(folder)}
        training = self._json(f"{folder}/training.json") if f"{folder}/training.json" in files else None
        is_done = f"{folder}/complete.json" in files
        begun = bool(files) or key.path in self._phases
        step = PhaseStatus(key.label, _state(is_done, begun), _job("level"), unit="steps")
        if training is not None:
            told = [row for row in training["log"] if "loss" in row]
            # The first row tells of warming up.
            speeds = sorted(row["samples_per_s"] for row in told[1:] or told)
            note = f"loss {told[-1]['loss']:.3g}" if told else ""
            is_trained = training["step"] >= training["num_steps"]
            if is_trained and not is_done:
                note += ", trained, not checked in the engine yet"
            step = replace(
                step,
                num_done=training["step"],
                num_total=training["num_steps"],
                note=note,
                per_s=speeds[len(speeds) // 2] if speeds else None,
            )
            if is_trained and key.path in self._phases:
                return self._timed(step, files.values(), PhaseKey("check", student, arm))
        return self._timed(step, files.values(), key)

    def evaluate(self, students: list[str]) -> Iterator[PhaseStatus]:
        settings = self.config.get("evaluate")
        if settings is None:
            return
        trained = {name: [measured_as(arm) for arm in self.arms(name)] for name in students}
        models = [f"{name}.{when}" for name in students for when in ("before", *trained[name])]
        models += ["teacher"] * ("teacher" in self.config and settings["teacher"])
        models += [model["name"] for model in settings["models"]]
        for benchmark in settings["benchmarks"]:
            label = benchmark["name"] or benchmark["kind"]
            for model in models:
                dataset = self._run.predictions(label, model)
                step = self._pass(f"evaluate {model} on {label}", "evaluate", self._run.benchmark_dir(label), dataset)
                yield step
        scores = self._modified("evaluation", "scores.json")
        yield PhaseStatus(
            "score", _state(scores is not None, False), _job("evaluate", "--score-only"), last_sign=scores
        )

    def report(self) -> PhaseStatus:
        written = self._modified("report", "report.json")
        return PhaseStatus("report", _state(written is not None, False), _job("report"), last_sign=written)

    def _pass(self, name: str, job: str, source: str, dataset: ShardedDataset[Any]) -> PhaseStatus:
        """A pass of a model over the shards below `source`, whose images its manifest counts."""
        manifest = self._manifest if source == "corpus" else self._json(f"{source}/manifest.json")
        markers = self._markers(dataset)
        is_done = manifest is not None and len(markers) >= manifest["num_shards"]
        num_shards, num_images = (manifest[n] if manifest else None for n in ("num_shards", "num_images"))
        step = PhaseStatus(
            name, _state(is_done, bool(markers)), _job(job), len(markers), num_shards, num_total=num_images
        )
        if is_done:
            step = replace(step, num_done=step.num_total)
        elif source == "corpus":
            sizes = self._images("corpus") if markers else {}
            step = replace(step, num_done=sum(sizes.get(shard, 0) for shard in markers))
        if self._count_rows and source == "corpus":
            step = replace(step, counts=dict(_outcomes(dataset, markers).most_common()))
        return self._timed(step, markers.values())

    def _timed(self, step: PhaseStatus, written: Iterable[datetime], key: PhaseKey | None = None) -> PhaseStatus:
        """With rate and times from the files and from the record of the attempts that ended."""
        # One pass of a model answers all benchmarks.
        kind, _, model = step.name.partition(" on ")[0].partition(" ")
        path = (key or PhaseKey(kind, model or None)).path  # type: ignore[arg-type]
        last, ended = max(written, default=None), self._phases.get(path)
        phase = self._json(path) if ended is not None else None
        if phase is not None:
            step = replace(step, num_attempts=round(phase["num_attempts"]))
            if step.per_s is None and phase.get("working_s"):
                step = replace(step, per_s=phase["num_images"] / phase["working_s"])
        stopped = step.state != "done" and ended is not None and (last is None or ended >= last)
        state: PhaseState = "begun" if stopped else step.state
        return replace(step, state=state, last_sign=last or ended, attempt_ended=ended if stopped else None)

    def _markers(self, dataset: ShardedDataset[Any]) -> dict[str, datetime]:
        """The committed shards, and when each was."""
        found = self._run.storage.details(f"{dataset.folder}/commits")
        named = ((file.path.rpartition("/")[2], file.modified) for file in found)
        return {name.removesuffix(".json"): modified for name, modified in named if not name.startswith(".")}

    def _images(self, folder: str) -> dict[str, int]:
        """Of each shard of the corpus, by its marker."""
        if folder not in self._sizes:
            shards = sorted(self._markers(self._run.corpus))
            commits = prefetch(self._run.corpus.commit_of, shards)
            self._sizes[folder] = {commit.shard: commit.num_rows for commit in commits if commit is not None}
        return self._sizes[folder]

    def _json(self, path: str) -> dict[str, Any] | None:
        try:
            return self._run.read_json(path)
        except FileNotFoundError:
            return None

    def _modified(self, folder: str, name: str) -> datetime | None:
        found = self._run.storage.details(folder)
        return next((file.modified for file in found if file.path == f"{folder}/{name}"), None)


def _state(is_done: bool, is_begun: bool) -> PhaseState:
    return "done" if is_done else "begun" if is_begun else "not begun"


def _job(name: str, *flags: str) -> str:
    return " ".join([f"python jobs/{name}.py --config FILE", *flags])


def _outcomes(dataset: ShardedDataset[Any], shards: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for rows in prefetch(partial(dataset.columns, names=["state", "reason"]), sorted(shards)):
        counts.update(row["reason"] or row["state"] for row in rows)
    return counts


def render_status(found: Status) -> str:
    """The status as text: a line for each step, what is left, and what continues it."""
    width = max(len(step.name) for step in found.steps) if found.steps else 0
    lines = [found.run_dir, *(f"  {step.name:<{width}}  {_told(step, found.now)}" for step in found.steps)]
    lines += [
        f"  rows of {step.name}: {', '.join(f'{n} {name}' for name, n in step.counts.items())}"
        for step in found.steps
        if step.counts
    ]
    if found.finished or found.unfinished:
        begun = f"; begun and not done: {', '.join(found.unfinished)}" if found.unfinished else ""
        lines.append(f"students leveled: {', '.join(found.finished) or 'none'}{begun}")
    signs = [(step.last_sign, step.name) for step in found.steps if step.last_sign is not None]
    if signs:
        last, name = max(signs)
        lines.append(f"last sign of life: {last:%Y-%m-%d %H:%M:%S} UTC, {_ago(found.now, last)} ago ({name})")
    left = [step.name for step in found.steps if step.state != "done"]
    more = f" and {len(left) - _LEFT_TOLD} more" if len(left) > _LEFT_TOLD else ""
    lines.append(f"left: {', '.join(left[:_LEFT_TOLD]) or 'nothing'}{more}")
    if found.command is not None:
        lines.append(f"continue with: {found.command}   (or jobs/align.py, for all of it)")
    return "\n".join(lines)


def _told(step: PhaseStatus, now: datetime) -> str:
    parts = [f"{step.state:<9}"]
    if step.state != "not begun":
        done = f"{step.num_done}" if step.num_done is not None else ""
        if step.num_total is not None and step.num_done is not None:
            done += f" of {step.num_total}"
        parts += [f"{done} {step.unit}"] if done else []
        if step.num_shards_done is not None:
            of = f" of {step.num_shards}" if step.num_shards is not None else ""
            parts.append(f"{step.num_shards_done}{of} shards")
        unit = "samples" if step.unit == "steps" else step.unit
        parts += [f"{step.per_s:.1f} {unit}/s"] if step.per_s else []
        parts += [step.note] if step.note else []
    if step.attempt_ended is not None:
        parts.append(f"an attempt ended unfinished {_ago(now, step.attempt_ended)} ago")
    elif step.state == "begun" and step.last_sign is not None:
        parts.append(f"last written {_ago(now, step.last_sign)} ago")
    return ", ".join(parts).rstrip()


def _ago(now: datetime, then: datetime) -> str:
    seconds = max(0.0, (now - then).total_seconds())
    hours, rest = divmod(int(seconds), 3600)
    return clock(seconds) if hours == 0 else f"{hours} h {rest // 60} min"
