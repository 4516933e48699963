"""A campaign of eight students against eight runs with one student each: time, the teacher's work, accuracy.

    python benchmarks/campaign.py [--images 500] [--students 8] [--faults] [--scratch DIR]

Both are `jobs/align.py` on the same unlabeled images and held-out questions of the bundled world, with the same
settings. The students are the two bundled checkpoints, LoRA adapters on them that are made beforehand (not timed), and
the same models with other training settings. Half of the runs with one student go before the campaign, half behind it,
so that a machine that gets slower or faster favours neither; nothing else may run beside it. Each run has its own cache
for the models that it merges. The teacher draws its questions, and an engine on CPUs cannot repeat draws: runs ask as
many questions, not the same ones, so that a student's D_PI and accuracy differ by that between any two runs.

With `--faults` another campaign, with a ninth student whose checkpoint is not there, is killed once the first student
is leveled, and the same command is given again: what was done again, what is left behind, who failed?

A killed benchmark goes on where it was (`--scratch`): runs that were measured to their end are kept, others begin anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bundled_world import (
    BENCHMARK,
    FULL,
    INTERNVL,
    LORA,
    QWEN,
    ROOT,
    align_command,
    conditions,
    make_images,
    score,
    tree_of,
    write_results,
)
from benchmarks.process_tree import ProcessTree
from mpa_ray.models.checkpoints import CACHE_VARIABLE
from mpa_ray.observability.progress import clock, say
from mpa_ray.report.status import status
from mpa_ray.run.run import Run

REPLAYED = {**LORA, "replay_share": 0.5}
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adapter-internvl": (INTERNVL, LORA),
    "adapter-qwen-a": (QWEN, LORA),
    "adapter-qwen-b": (QWEN, {**LORA, "learning_rate": 3e-4}),
}
"""Made beforehand, by aligning on half as many images of another seed."""
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen-lora": (QWEN, REPLAYED),
    "internvl-adapter": ("adapter-internvl", REPLAYED),
    "qwen-lora-slow": (QWEN, {**REPLAYED, "learning_rate": 3e-4}),
    "qwen-adapter-a": ("adapter-qwen-a", REPLAYED),
    "internvl-lora": (INTERNVL, REPLAYED),
    "qwen-full": (QWEN, {**FULL, "replay_share": 0.5}),
    "qwen-adapter-b": ("adapter-qwen-b", {**LORA, "replay_share": 0.0}),
    "internvl-full": (INTERNVL, {**FULL, "replay_share": 0.5}),
}
Measure = Callable[[Path, dict[str, Any]], dict[str, Any]]
"""Runs a configuration in a folder, and tells what came of it."""
ABSENT = "absent"
NO_MODEL = "./no/such/model"
SHARD_SIZE = 64
LOOK_S, TELL_S, GONE_S = 0.5, 15.0, 180.0
"""Seconds between looks at a run's processes, between lines about it, and until its processes have to be gone."""


def watched(
    command: list[str], folder: Path, name: str, is_time_to_kill: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Run a command, or kill it by SIGKILL to its first process, and wait for all that it started to end.

    Args:
        command: Its words.
        folder: Holds its log and the caches that it fills.
        name: Of the log; tells of it.
        is_time_to_kill: Asked again and again.
    """
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {CACHE_VARIABLE: str(folder / "cache")}
    log, started, told_s = folder / f"{name}.log", time.monotonic(), 0.0
    with log.open("w") as out, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out) as driver:
        tree = ProcessTree(driver.pid)
        try:
            while driver.poll() is None:
                tree.look()
                if is_time_to_kill():
                    break
                if (wall_s := time.monotonic() - started) > told_s + TELL_S:
                    told_s = wall_s
                    say(f"{folder.name} {name}: {clock(wall_s)}, {_last_line(log)}")
                time.sleep(LOOK_S)
        finally:
            driver.kill()
    wall_s = time.monotonic() - started
    gone, left = tree.wait_until_gone(GONE_S)
    say(f"{folder.name} {name}: ended after {clock(wall_s)} with exit code {driver.returncode}")
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(tree.cpu_s, 1),
        "exit_code": driver.returncode,
        "outlived_it_s": gone,
        "left_behind": left,
    }


def _last_line(log: Path) -> str:
    return next(reversed(log.read_text().splitlines()), "")


def measured_once(folder: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured in a folder; what was not measured to its end is deleted and begun anew."""
    record = folder / "measured.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = measure()
        record.write_text(json.dumps(found, indent=2))
    read: dict[str, Any] = json.loads(record.read_text())
    return read


def tree_for(names: Sequence[str], models: Mapping[str, str], data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """A run with these students; the teacher is asked for its annotations alone."""
    students = {
        name: {"model": models.get(model, model), "level": {"batch_size": 16, "seed": seed, **level}}
        for name, (model, level) in ((name, (ADAPTERS | STUDENTS)[name]) for name in names)
    }
    tree = tree_of(seed, data, folder / "run", students)
    tree["source"]["shard_size"] = SHARD_SIZE
    tree["evaluate"]["teacher"] = False
    return tree


def make_adapters(names: Sequence[str], num_images: int, folder: Path, seed: int) -> dict[str, str]:
    """The folders of the adapters that the students need."""
    needed = sorted({STUDENTS[name][0] for name in names} & ADAPTERS.keys())
    if needed:
        make_images(folder / "data", num_images, seed)
        tree = tree_for(needed, {}, folder / "data", folder, seed)
        del tree["evaluate"]
        subprocess.run(align_command(tree, folder / "align.yaml"), cwd=ROOT, check=True)
    return {name: str(folder / f"run/students/{name}/parity/adapter") for name in needed}


def undisturbed(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """A run from its beginning to its end."""
    found = watched(align_command(tree, folder / "align.yaml"), folder, "align")
    if found["exit_code"]:
        raise SystemExit(f"{folder.name} failed: {_last_line(folder / 'align.log')} ({folder / 'align.log'})")
    return {**found, **outcome(Run.open(tree["run_dir"]), [student["name"] for student in tree["students"]])}


def outcome(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """What a run came to, by its own records.

    Every pass has one engine, so that an attempt at a pass is an engine's start.
    """
    phases = {Path(path).name.removesuffix(".json"): run.read_json(path) for path in run.storage.list("phases")}
    passes = {name: phase for name, phase in phases.items() if "num_images" in phase}
    annotations = list(run.annotations.rows(run.manifest().shards))
    teacher = {name: round(phases["annotate"][f"num_{name}"]) for name in ("images", "prompt_tokens", "output_tokens")}
    requests = sum((row.num_prompt_tokens > 0) + (row.num_second_prompt_tokens > 0) for row in annotations)
    models = run.read_json("evaluation/scores.json")[BENCHMARK]["models"]
    return {
        "teacher": {**teacher, "requests": requests},
        "engine_starts": round(sum(phase["num_attempts"] for phase in passes.values())),
        "identification_passes": sum(name.startswith("identify.") for name in passes),
        "step_s": round(sum(phase["wall_s"] for phase in phases.values()), 1),
        "students": {
            name: {
                "num_parity": run.read_json(f"parity/{name}/manifest.json")["num_samples"],
                **{when: score(models[f"{name}.{when}"]["groups"], ["all"]) for when in ("before", "after")},
            }
            for name in names
        },
    }


def faulted(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """A campaign with a student whose checkpoint is not there, killed once a student is leveled, and continued."""
    names = [student["name"] for student in tree["students"]]
    tree["students"].append({**tree["students"][0], "name": ABSENT, "model": NO_MODEL})
    run_dir, command = Path(tree["run_dir"]), align_command(tree, folder / "align.yaml")
    killed = watched(command, folder, "killed", lambda: bool(_leveled(run_dir)))
    leveled, before = _leveled(run_dir), finished_files(run_dir)
    phases = status(Run.open(str(run_dir))).phases
    again = watched(command, folder, "again")
    after, told = finished_files(run_dir), (folder / "again.log").read_text().splitlines()
    scores = Run.open(str(run_dir)).read_json("evaluation/scores.json")[BENCHMARK]["models"]
    return {
        "killed": killed,
        "leveled_at_the_kill": leveled,
        "done_at_the_kill": [phase.name for phase in phases if phase.state == "done"],
        "begun_at_the_kill": [phase.name for phase in phases if phase.state == "begun"],
        "finished_files_at_the_kill": len(before),
        "written_again": sorted(name for name, at in before.items() if after.get(name) != at),
        "again": again,
        "told_already_done": [line for line in told if line.endswith(": already done")],
        "told_went_on": [line for line in told if re.search(r", \d+ already done$|: went on from step", line)],
        "error": next((line for line in told if line.startswith("RunError: ")), ""),
        "complete": [name for name in names if name in _leveled(run_dir) and f"{name}.after" in scores],
        "incomplete": [name for name in names if name not in _leveled(run_dir) or f"{name}.after" not in scores],
    }


def _leveled(run_dir: Path) -> list[str]:
    return sorted(marker.parent.parent.name for marker in run_dir.glob("students/*/parity/complete.json"))


def finished_files(run_dir: Path) -> dict[str, int]:
    """When the files were written that belong to what is finished.

    Those are the markers of committed shards (each names its one data file), exported D_PIs, the weights of leveled
    students, and the records of steps, which every attempt at a step adds to.
    """
    found = [*run_dir.glob("**/commits/[!.]*.json"), *run_dir.glob("parity/*/manifest.json")]
    # A student is leveled once its export has been checked, which has a record of its own.
    found += (path for path in run_dir.glob("phases/[!.]*.json") if not path.name.startswith(("level.", "check.")))
    for marker in run_dir.glob("students/*/parity/complete.json"):
        student = marker.parent.parent.name
        found += [marker, *(run_dir / f"phases/{step}.{student}.json" for step in ("level", "check"))]
        found += [*marker.parent.glob("adapter/*.safetensors"), *marker.parent.glob("merged/*.safetensors")]
    return {str(path.relative_to(run_dir)): path.stat().st_mtime_ns for path in found}


def problems_of(faults: Mapping[str, Any]) -> list[str]:
    """What did not come out as a campaign promises."""
    found = [f"{name} was written again" for name in faults["written_again"]]
    found += [f"{name} is not complete" for name in faults["incomplete"]]
    found += [f"left behind: {told}" for part in ("killed", "again") for told in faults[part]["left_behind"]]
    if faults["killed"]["exit_code"] != -signal.SIGKILL:
        found.append(f"the first command ended by itself, with exit code {faults['killed']['exit_code']}")
    if faults["again"]["exit_code"] != 1 or not faults["error"].startswith(f"RunError: {ABSENT} failed; "):
        found.append(f"exit code {faults['again']['exit_code']}, {faults['error']!r}")
    return found


def summary(campaign: Mapping[str, Any], separate: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of each quantity the campaign's, the sum over the runs with one student, and their ratio."""
    quantities: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "wall time, s": lambda run: run["wall_s"],
        "CPU time of all processes, s": lambda run: run["cpu_s"],
        "images that the teacher annotated": lambda run: run["teacher"]["images"],
        "the teacher's requests": lambda run: run["teacher"]["requests"],
        "the teacher's tokens, prompts and replies": lambda run: (
            run["teacher"]["prompt_tokens"] + run["teacher"]["output_tokens"]
        ),
        "engines started": lambda run: run["engine_starts"],
        "passes of identification": lambda run: run["identification_passes"],
        "time of all steps, s": lambda run: run["step_s"],
    }
    rows = {}
    for name, of in quantities.items():
        each = [of(run) for run in separate.values()]
        rows[name] = {
            "campaign": of(campaign),
            "separate": round(sum(each), 1),
            "least": min(each),
            "most": max(each),
            "ratio": round(sum(each) / of(campaign), 2),
        }
    return rows


def table(campaign: Mapping[str, Any], separate: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        f"| | campaign of {len(separate)} | {len(separate)} runs of 1, sum | a run of 1 | sum over campaign |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in summary(campaign, separate).items():
        least, most = f"{row['least']:,.0f}", f"{row['most']:,.0f}"
        each = least if least == most else f"{least} to {most}"
        lines.append(f"| {name} | {row['campaign']:,.0f} | {row['separate']:,.0f} | {each} | {row['ratio']:.2f} |")
    lines += [
        "",
        "| student | model | method | D_PI: campaign, by itself | before | after: campaign, by itself | by itself, s |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, run in separate.items():
        model, level = STUDENTS[name]
        here, itself = campaign["students"][name], run["students"][name]
        lines.append(
            f"| {name} | {model.rpartition('/')[2]} | {level['method']['kind']} | {here['num_parity']}, "
            f"{itself['num_parity']} | {here['before']:.1f} | {here['after']:.1f}, {itself['after']:.1f} | "
            f"{run['wall_s']:.0f} |"
        )
    together = [campaign["students"][name]["after"] for name in separate]
    alone = [run["students"][name]["after"] for name, run in separate.items()]
    apart = max(abs(one - other) for one, other in zip(together, alone, strict=True))
    lines += [
        "",
        f"Mean accuracy after: {statistics.fmean(together):.1f} in the campaign, {statistics.fmean(alone):.1f} by "
        f"themselves; a student's differ by {apart:.1f} points at most.",
    ]
    return "\n".join(lines)


def told_faults(faults: Mapping[str, Any]) -> str:
    killed, again = faults["killed"], faults["again"]
    gone, left = killed["outlived_it_s"], killed["left_behind"]
    ended = (
        f"; half had ended after {gone[len(gone) // 2][1]} s, the last ({gone[-1][0]}) after {gone[-1][1]} s"
        if gone
        else ""
    )
    lines = [
        f"The driver was killed after {killed['wall_s']:.0f} s, when {', '.join(faults['leveled_at_the_kill'])} was "
        f"leveled: {len(faults['done_at_the_kill'])} steps were done; begun: "
        f"{', '.join(faults['begun_at_the_kill']) or 'none'}.",
        f"Of {len(gone) + len(left)} processes below it {len(left)} were left after {GONE_S:.0f} s{ended}.",
        f"The same command then took {again['wall_s']:.0f} s. Of {faults['finished_files_at_the_kill']} files of "
        f"finished work it wrote {len(faults['written_again'])} again; it found "
        f"{len(faults['told_already_done'])} steps already done.",
        f"It went on with: {'; '.join(faults['told_went_on']) or 'nothing that was begun'}.",
        f"Exit code {again['exit_code']}; {len(faults['complete'])} of "
        f"{len(faults['complete']) + len(faults['incomplete'])} students are complete besides the one without a "
        f"checkpoint: `{faults['error']}`",
        f"Otherwise than a campaign promises: {'; '.join(problems_of(faults)) or 'nothing'}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--students", type=int, default=len(STUDENTS), help="take the first so many")
    parser.add_argument("--heldout-per-family", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", action="store_true", help="also kill a campaign, with a student that is not there")
    parser.add_argument("--scratch", type=Path, help="kept, and gone on with; by default a folder that is deleted")
    options = parser.parse_args()
    # So that what it runs ends with this process, however it is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    names = list(STUDENTS)[: options.students]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (options.scratch or Path(temporary)).resolve()
        scratch /= f"{options.images}-images-{options.heldout_per_family}-heldout-seed-{options.seed}"
        results = measure(names, options, scratch)
    told = table(results["campaign"], results["separate"])
    if options.faults:
        told += f"\n\n{told_faults(results['faults'])}"
    write_results("campaign", results, told)
    say(told)
    return 1 if options.faults and problems_of(results["faults"]) else 0


def measure(names: Sequence[str], options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All runs, one after the other."""
    data, seed = scratch / "data", options.seed
    make_images(data, options.images, seed, options.heldout_per_family)
    models = make_adapters(names, options.images // 2, scratch / "adapters", seed + 1000)

    def run(name: str, students: Sequence[str], how: Measure) -> dict[str, Any]:
        folder = scratch / name
        return measured_once(folder, lambda: how(folder, tree_for(students, models, data, folder, seed)))

    middle = len(names) // 2
    load = os.getloadavg()[0]
    separate = {name: run(f"by-itself-{name}", [name], undisturbed) for name in names[:middle]}
    campaign = run(f"campaign-of-{len(names)}", names, undisturbed)
    separate |= {name: run(f"by-itself-{name}", [name], undisturbed) for name in names[middle:]}
    results: dict[str, Any] = {
        "conditions": {
            **conditions(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "load_before": round(load, 2),
            "images": options.images,
            "held_out_questions_per_family": options.heldout_per_family,
            "images_per_shard": SHARD_SIZE,
            "teacher_measured_on_held_out": False,
            "order": [*names[:middle], "campaign", *names[middle:]],
            "students": {name: {"model": STUDENTS[name][0], "level": STUDENTS[name][1]} for name in names},
            "adapters": {name: {"model": model, "level": level} for name, (model, level) in ADAPTERS.items()},
        },
        "summary": summary(campaign, separate),
        "campaign": campaign,
        "separate": separate,
    }
    if options.faults:
        results["faults"] = run(f"faults-of-{len(names)}", names, faulted)
    return results


if __name__ == "__main__":
    sys.exit(main())
