"""Gather a run's figures from its files; needs neither Ray nor a model."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from mpa_ray.config import ModelConfig, RunConfig
from mpa_ray.records import Annotation, State, Verdict
from mpa_ray.report.coverage import coverage
from mpa_ray.report.leaderboard import leaderboard
from mpa_ray.run.audit import audit
from mpa_ray.run.phase_record import PhaseRecord, phase_records
from mpa_ray.run.run import Run
from mpa_ray.run.training_state import Retained

NUM_SAMPLES = 24
MAX_FAILED_LISTED = 200


def collect(run: Run, config: RunConfig) -> dict[str, Any]:
    """Everything that the report shows."""
    shards = run.manifest().shards
    counts = audit(run)
    scores = run.read_json("evaluation/scores.json") if run.storage.exists("evaluation/scores.json") else {}
    teacher = _teacher(run.annotations.rows(shards))
    return {
        "run_dir": run.storage.root,
        "task": config.task,
        "teacher_model": config.teacher.model,
        "counts": counts,
        "teacher": {**teacher, "warnings": teacher_warnings(teacher, config.teacher)},
        "failed_images": _failed(run.annotations.rows(shards)),
        "scores": scores,
        "coverage": coverage(run, config),
        "students": {
            s.name: {
                "model": s.model,
                "method": s.level.method.kind,
                **_student(run.verdicts(s.name).rows(shards)),
                "measured": _measured(scores, s.name),
                "replay_share": s.level.replay_share,
                "training": _training(run, run.student_dir(s.name)),
                "warnings": _warnings(
                    counts["kept"][s.name], _measured(scores, s.name), _training(run, run.student_dir(s.name))
                ),
            }
            for s in config.students
        },
        "leaderboard": leaderboard(run, config, scores),
        "phases": _phases(run),
        "versions": run.read_json("run.json")["versions"],
    }


def _teacher(rows: Iterable[Annotation]) -> dict[str, Any]:
    """Sums over the teacher's visits; times are summed over requests that overlap, so only their ratio means much."""
    states: Counter[str] = Counter()
    cached = second_prompt = uncached = visits_uncached = num_second = 0
    first_s = second_s = 0.0
    tokens = 0
    for row in rows:
        states[row.reason or row.state] += 1
        tokens += row.num_output_tokens + row.num_second_output_tokens
        first_s += row.first_pass_s
        if row.second_answer is None:
            continue
        num_second += 1
        second_s += row.second_pass_s
        cached += row.num_second_cached_tokens
        second_prompt += row.num_second_prompt_tokens
        uncached += row.num_uncached_image_tokens
        visits_uncached += row.num_uncached_image_tokens > 0
    return {
        "by_outcome": dict(states.most_common()),
        "num_second_answers": num_second,
        "cached_token_share": cached / second_prompt if second_prompt else None,
        "num_uncached_image_tokens": uncached,
        "num_visits_with_uncached_image": visits_uncached,
        "second_pass_time_share": second_s / (first_s + second_s) if first_s + second_s else None,
        "num_output_tokens": tokens,
    }


def teacher_warnings(teacher: dict[str, Any], model: ModelConfig) -> list[str]:
    """Where the second pass was not nearly free, what to look at."""
    num_visits = teacher["num_visits_with_uncached_image"]
    if not num_visits:
        return []
    block_size = getattr(model.engine, "block_size", None) or "vLLM's own; 32 on a CPU"
    return [
        f"{num_visits} of {teacher['num_second_answers']} second passes computed image tokens again "
        f"({teacher['num_uncached_image_tokens']} in all): the chat template of {model.model} puts too little between "
        f"image and question for blocks of the KV cache of this size (block_size: {block_size}), or the cache is too "
        "small for the images in flight"
    ]


def _failed(rows: Iterable[Annotation]) -> list[dict[str, Any]]:
    failed = (r for r in rows if r.state == State.FAILED)
    return [
        {"image": r.image_id, "reason": r.reason, "detail": r.detail}
        for r, _ in zip(failed, range(MAX_FAILED_LISTED), strict=False)
    ]


def _student(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    cells: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    samples: dict[str, list[Verdict]] = {}
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for verdict in verdicts:
        cells[verdict.cell] += 1
        outcome = verdict.reason or verdict.state
        reasons[outcome] += verdict.state != State.KEPT
        # A uniform sample of each outcome in one pass (reservoir sampling).
        seen[outcome] += 1
        chosen = samples.setdefault(outcome, [])
        if len(chosen) < NUM_SAMPLES:
            chosen.append(verdict)
        elif (slot := rng.randrange(seen[outcome])) < NUM_SAMPLES:
            chosen[slot] = verdict
    return {
        "num_annotations": sum(cells.values()),
        "num_consistent": cells["teacher_yes_student_no"] + cells["teacher_yes_student_yes"],
        "num_parity_samples": cells["teacher_yes_student_no"],
        "cells": dict(cells),
        "dropped": {reason: n for reason, n in reasons.most_common() if n},
        "samples": [asdict(v) for v in _mix(samples)],
    }


def _mix(samples: dict[str, list[Verdict]]) -> list[Verdict]:
    """Half of the samples kept, the others from every other outcome in turn."""
    kept = samples.pop(State.KEPT.value, [])
    others: list[Verdict] = []
    queues = [list(rows) for _, rows in sorted(samples.items())]
    while any(queues) and len(others) < NUM_SAMPLES:
        others += [queue.pop(0) for queue in queues if queue]
    num_kept = max(NUM_SAMPLES // 2, NUM_SAMPLES - len(others))
    chosen = kept[:num_kept]
    return chosen + others[: NUM_SAMPLES - len(chosen)]


def _measured(scores: dict[str, Any], student: str) -> dict[str, Any]:
    """What came of a student on each benchmark: before, after and the paired gain by group of questions."""
    found = {}
    for benchmark, scored in scores.items():
        before, after, teacher = (scored["models"].get(n) for n in (f"{student}.before", f"{student}.after", "teacher"))
        gains = [pair["groups"] for pair in scored["differences"] if pair["to"] == f"{student}.after"]
        if before is None or after is None or not gains:
            continue
        found[benchmark] = {
            "metric": scored["metric"],
            "groups": {
                group: {
                    "before": before["groups"][group],
                    "after": after["groups"][group],
                    "gain": gains[0][group],
                    "teacher": teacher["groups"][group] if teacher else None,
                }
                for group in before["groups"]
            },
            "warnings": [
                f"{when}: {warning}"
                for when, model in (("before", before), ("after", after))
                for warning in model["warnings"]
            ],
        }
    return found


def _training(run: Run, folder: str) -> dict[str, Any] | None:
    path = f"{folder}/training.json"
    if not run.storage.exists(path):
        return None
    training = run.read_json(path)
    told = [row for row in training["log"] if "loss" in row]
    speeds = (
        "samples_per_s",
        "supervised_tokens_per_s",
        "padding_share",
        "data_wait_share",
        "memory_gib",
        "tflops_per_s",
        "mfu",
    )
    return {
        "losses": [{"step": row["step"], "loss": row["loss"]} for row in told],
        "held_out_losses": [
            {"step": row["step"], "loss": row["eval_loss"]} for row in training["log"] if "eval_loss" in row
        ],
        "best_step": training["best_step"],
        "resumed": training["resumed"],
        "retained": training["retained"],
        # The first rows tell of warming up.
        "speed": {
            name: statistics.median(row[name] for row in told[1:] or told)
            for name in speeds
            if told and name in told[0]
        },
    }


def _warnings(num_parity: int, measured: dict[str, Any], training: dict[str, Any] | None) -> list[str]:
    """The failure signatures that the method's authors name."""
    found = []
    if num_parity < 100:
        found.append(f"only {num_parity} parity samples: too few to learn from (under 100)")
    losses = [row["loss"] for row in training["losses"]] if training else []
    quarter = len(losses) // 4
    if quarter and statistics.fmean(losses[-quarter:]) >= statistics.fmean(losses[:quarter]):
        found.append("the loss did not fall: lower the learning rate, or look at the samples")
    if training and (warning := Retained(**training["retained"]).forgetting_warning()) is not None:
        found.append(warning)
    for benchmark, result in measured.items():
        for group, row in result["groups"].items():
            gain = 100 * row["gain"]["mean"]
            if group == "all" and gain <= 0:
                found.append(f"{benchmark}: no gain after leveling")
            elif group.startswith("family: ") and gain < -5:
                found.append(f"{benchmark}: {group} lost {-gain:.1f} points (forgetting): lower the learning rate")
        found += [f"{benchmark}, {warning}" for warning in result["warnings"]]
    return found


def _phases(run: Run) -> dict[str, Any]:
    return {key.label: _phase(record) for key, record in phase_records(run)}


def _phase(record: PhaseRecord) -> dict[str, Any]:
    """A phase's sums over all attempts, with its rate while engines were at work (their start left out)."""
    return {**record.to_json(), "images_per_s": record.totals.images_per_s if record.totals is not None else None}
