"""A campaign of eight students against eight runs of one student each: time, the teacher's work, accuracy.

    python benchmarks/campaign.py [--images 500] [--students 8] [--faults] [--scratch DIR]

Both run `jobs/align.py` on the same unlabeled images and held-out questions of the bundled world, with the same
settings. The students are the two bundled checkpoints, LoRA adapters on them (trained first, and not timed), and the
same models with other training settings. Half of the single-student runs come before the campaign and half after it,
so that a machine that slows down favours neither; run nothing else at the same time. Each run has its own cache of
merged models. The teacher samples its questions, and an engine on CPUs cannot repeat a sample: all runs have the same
number of questions, but not the same ones, so a student's D_PI and accuracy differ between runs.

`--faults` adds a campaign with a ninth student, whose checkpoint does not exist. It is killed once the first student is
leveled, and the same command is run again. The benchmark reports which work was repeated, which processes were left
and which students failed.

With `--scratch`, a benchmark that was killed continues: runs that were measured completely are kept, and the others
start again.
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
from mpa_ray.observability.progress import clock, say
from mpa_ray.report.status import status
from mpa_ray.run.phase_record import PhaseKey, phase_records
from mpa_ray.run.run import Run
from mpa_ray.storage.user_cache import CACHE_VARIABLE

REPLAYED = {**LORA, "replay_share": 0.5}
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adapter-internvl": (INTERNVL, LORA),
    "adapter-qwen-a": (QWEN, LORA),
    "adapter-qwen-b": (QWEN, {**LORA, "learning_rate": 3e-4}),
}
"""Trained before the measurement, on half as many images of another seed: base model and training settings."""
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
"""Runs a configuration in a folder and returns the measurements."""
ABSENT = "absent"
NO_MODEL = "./no/such/model"
SHARD_SIZE = 64
POLL_S = 0.5
"""Seconds between two checks of a run's processes."""
REPORT_S = 15.0
"""Seconds between two progress lines about a run."""
EXIT_TIMEOUT_S = 180.0
"""How long a run's processes may take to end."""


def watched(
    command: list[str], folder: Path, name: str, is_time_to_kill: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Run a command, and wait until all processes that it started have ended.

    Args:
        command: The command line.
        folder: Gets the log and the model cache.
        name: The name of the log.
        is_time_to_kill: Called every `POLL_S`; once it returns true, the command's own process gets SIGKILL.
    """
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {CACHE_VARIABLE: str(folder / "cache")}
    log, started, reported_s = folder / f"{name}.log", time.monotonic(), 0.0
    with log.open("w") as out, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out) as driver:
        tree = ProcessTree(driver.pid)
        try:
            while driver.poll() is None:
                tree.update()
                if is_time_to_kill():
                    break
                if (wall_s := time.monotonic() - started) > reported_s + REPORT_S:
                    reported_s = wall_s
                    say(f"{folder.name} {name}: {clock(wall_s)}, {_last_line(log)}")
                time.sleep(POLL_S)
        finally:
            driver.kill()
    wall_s = time.monotonic() - started
    gone, left = tree.wait_until_gone(EXIT_TIMEOUT_S)
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
    """The measurements of a folder. A folder without complete measurements is emptied and measured again."""
    record = folder / "measured.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write_text(json.dumps(measure(), indent=2))
    measurements: dict[str, Any] = json.loads(record.read_text())
    return measurements


def tree_for(names: Sequence[str], models: Mapping[str, str], data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """The settings of a run with these students; the teacher annotates, and is not evaluated."""
    students = {
        name: {"model": models.get(model, model), "level": {"batch_size": 16, "seed": seed, **level}}
        for name, (model, level) in ((name, (ADAPTERS | STUDENTS)[name]) for name in names)
    }
    tree = tree_of(seed, data, folder / "run", students)
    tree["source"]["shard_size"] = SHARD_SIZE
    tree["evaluate"]["teacher"] = False
    return tree


def make_adapters(names: Sequence[str], num_images: int, folder: Path, seed: int) -> dict[str, str]:
    """Train the adapters that the students start from; returns their folders by name."""
    needed = sorted({STUDENTS[name][0] for name in names} & ADAPTERS.keys())
    if needed:
        make_images(folder / "data", num_images, seed)
        tree = tree_for(needed, {}, folder / "data", folder, seed)
        del tree["evaluate"]
        subprocess.run(align_command(tree, folder / "align.yaml"), cwd=ROOT, check=True)
    return {name: str(folder / f"run/students/{name}/parity/adapter") for name in needed}


def undisturbed(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Measure a complete run."""
    processes = watched(align_command(tree, folder / "align.yaml"), folder, "align")
    if processes["exit_code"]:
        raise SystemExit(f"{folder.name} failed: {_last_line(folder / 'align.log')} ({folder / 'align.log'})")
    return {**processes, **outcome(Run.open(tree["run_dir"]), [student["name"] for student in tree["students"]])}


def outcome(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """The teacher's work, the engine starts and the students' accuracy, from the run's own records.

    Every pass has one engine, so each attempt at a pass is one start of an engine.
    """
    phases = {Path(key.path).stem: record.to_json() for key, record in phase_records(run)}
    passes = {name: phase for name, phase in phases.items() if "num_images" in phase}
    annotations = list(run.annotations.rows(run.manifest().shards))
    teacher = {name: round(phases["annotate"][f"num_{name}"]) for name in ("images", "prompt_tokens", "output_tokens")}
    requests = sum((row.num_prompt_tokens > 0) + (row.num_second_prompt_tokens > 0) for row in annotations)
    models = run.read_json("evaluation/scores.json")[BENCHMARK]["models"]
    return {
        "teacher": {**teacher, "requests": requests},
        "engine_starts": round(sum(phase["num_attempts"] for phase in passes.values())),
        "identification_passes": sum(name.startswith("identify.") for name in passes),
        "phase_s": round(sum(phase["wall_s"] for phase in phases.values()), 1),
        "students": {
            name: {
                "num_parity": run.read_json(f"parity/{name}/manifest.json")["num_samples"],
                **{when: score(models[f"{name}.{when}"]["groups"], ["all"]) for when in ("before", "after")},
            }
            for name in names
        },
    }


def faulted(folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Measure a campaign that is killed once a student is leveled, and its rerun; one student has no checkpoint."""
    names = [student["name"] for student in tree["students"]]
    tree["students"].append({**tree["students"][0], "name": ABSENT, "model": NO_MODEL})
    run_dir, command = Path(tree["run_dir"]), align_command(tree, folder / "align.yaml")
    killed = watched(command, folder, "killed", lambda: bool(_leveled(run_dir)))
    leveled, before = _leveled(run_dir), finished_files(run_dir)
    phases = status(Run.open(str(run_dir))).phases
    again = watched(command, folder, "again")
    after, lines = finished_files(run_dir), (folder / "again.log").read_text().splitlines()
    scores = Run.open(str(run_dir)).read_json("evaluation/scores.json")[BENCHMARK]["models"]
    return {
        "killed": killed,
        "leveled_at_the_kill": leveled,
        "done_at_the_kill": [phase.name for phase in phases if phase.state == "done"],
        "begun_at_the_kill": [phase.name for phase in phases if phase.state == "begun"],
        "finished_files_at_the_kill": len(before),
        "written_again": sorted(name for name, at in before.items() if after.get(name) != at),
        "again": again,
        "lines_already_done": [line for line in lines if line.endswith(": already done")],
        "lines_resumed": [line for line in lines if re.search(r", \d+ already done$|: resumed from step", line)],
        "error": next((line for line in lines if line.startswith("RunError: ")), ""),
        "complete": [name for name in names if name in _leveled(run_dir) and f"{name}.after" in scores],
        "incomplete": [name for name in names if name not in _leveled(run_dir) or f"{name}.after" not in scores],
    }


def _leveled(run_dir: Path) -> list[str]:
    return sorted(marker.parent.parent.name for marker in run_dir.glob("students/*/parity/complete.json"))


def finished_files(run_dir: Path) -> dict[str, int]:
    """When each file of finished work was last written, by the file's path in the run.

    Those files are the markers of committed shards (each names one data file), exported D_PIs, the weights of leveled
    students, and the records of phases, to which every attempt at a phase adds a file. A record counts as one file.
    """
    paths = [*run_dir.glob("**/commits/[!.]*.json"), *run_dir.glob("parity/*/manifest.json")]
    times = {str(path.relative_to(run_dir)): path.stat().st_mtime_ns for path in paths}
    records: dict[str, int] = {}
    for path in run_dir.glob("phases/[!.]*.json"):
        name = PhaseKey.from_path(str(path.relative_to(run_dir))).path
        records[name] = max(records.get(name, 0), path.stat().st_mtime_ns)
    # A student is leveled once its export has been checked, so these two phases finish together.
    trained = ("phases/level.", "phases/check.")
    times |= {name: at for name, at in records.items() if not name.startswith(trained)}
    for student in _leveled(run_dir):
        folder = run_dir / Run.student_dir(student)
        times |= {name: records[name] for name in (PhaseKey(kind, student).path for kind in ("level", "check"))}
        files = [folder / "complete.json", *folder.glob("adapter/*.safetensors"), *folder.glob("merged/*.safetensors")]
        times |= {str(path.relative_to(run_dir)): path.stat().st_mtime_ns for path in files}
    return times


def problems_of(faults: Mapping[str, Any]) -> list[str]:
    """What went wrong with the killed campaign and its rerun; empty if nothing did."""
    problems = [f"{name} was written again" for name in faults["written_again"]]
    problems += [f"{name} is not complete" for name in faults["incomplete"]]
    problems += [f"left behind: {name}" for part in ("killed", "again") for name in faults[part]["left_behind"]]
    if faults["killed"]["exit_code"] != -signal.SIGKILL:
        problems.append(f"the first command was not killed: exit code {faults['killed']['exit_code']}")
    if faults["again"]["exit_code"] != 1 or not faults["error"].startswith(f"RunError: {ABSENT} failed; "):
        problems.append(f"exit code {faults['again']['exit_code']}, {faults['error']!r}")
    return problems


def summary(campaign: Mapping[str, Any], separate: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each quantity of the campaign, its sum over the single-student runs, and the ratio of the two."""
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
        "time of all phases, s": lambda run: run["phase_s"],
    }
    rows = {}
    for name, quantity_of in quantities.items():
        values = [quantity_of(run) for run in separate.values()]
        rows[name] = {
            "campaign": quantity_of(campaign),
            "separate": round(sum(values), 1),
            "least": min(values),
            "most": max(values),
            "ratio": round(sum(values) / quantity_of(campaign), 2),
        }
    return rows


def table(campaign: Mapping[str, Any], separate: Mapping[str, Mapping[str, Any]]) -> str:
    """Two Markdown tables: the quantities, and the students."""
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
        "| student | model | method | D_PI: campaign, alone | before | after: campaign, alone | alone, s |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, run in separate.items():
        model, level = STUDENTS[name]
        together, alone = campaign["students"][name], run["students"][name]
        lines.append(
            f"| {name} | {model.rpartition('/')[2]} | {level['method']['kind']} | {together['num_parity']}, "
            f"{alone['num_parity']} | {together['before']:.1f} | {together['after']:.1f}, {alone['after']:.1f} | "
            f"{run['wall_s']:.0f} |"
        )
    scores_together = [campaign["students"][name]["after"] for name in separate]
    scores_alone = [run["students"][name]["after"] for name, run in separate.items()]
    differences = [abs(one - other) for one, other in zip(scores_together, scores_alone, strict=True)]
    lines += [
        "",
        f"Mean accuracy after leveling: {statistics.fmean(scores_together):.1f} in the campaign, "
        f"{statistics.fmean(scores_alone):.1f} alone. The largest difference of one student is {max(differences):.1f} "
        "points.",
    ]
    return "\n".join(lines)


def render_faults(faults: Mapping[str, Any]) -> str:
    """A Markdown list of what the kill and the rerun resulted in."""
    killed, again = faults["killed"], faults["again"]
    gone, left = killed["outlived_it_s"], killed["left_behind"]
    num_students = len(faults["complete"]) + len(faults["incomplete"])
    resumed = dict.fromkeys(line.partition(":")[0] for line in faults["lines_resumed"])
    lines = [
        f"The driver was killed after {killed['wall_s']:.0f} s, when {', '.join(faults['leveled_at_the_kill'])} was "
        f"leveled. {len(faults['done_at_the_kill'])} phases were done; in progress: "
        f"{', '.join(faults['begun_at_the_kill']) or 'none'}.",
        f"{len(left)} of its {len(gone) + len(left)} processes were left after {EXIT_TIMEOUT_S:.0f} s.",
        f"The same command then took {again['wall_s']:.0f} s. It wrote {len(faults['written_again'])} of "
        f"{faults['finished_files_at_the_kill']} files of finished work again, and found "
        f"{len(faults['lines_already_done'])} phases already done.",
        f"It resumed: {', '.join(resumed) or 'nothing'}.",
        f"Exit code {again['exit_code']}. {len(faults['complete'])} of {num_students} students with a checkpoint are "
        f"complete. The error: `{faults['error']}`",
        f"Problems: {'; '.join(problems_of(faults)) or 'none'}.",
    ]
    if gone:
        middle, last = gone[len(gone) // 2], gone[-1]
        lines[1] += f" Half had ended after {middle[1]} s, the last ({last[0]}) after {last[1]} s."
    return "\n".join(f"- {line}" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--students", type=int, default=len(STUDENTS), help="use only the first ones")
    parser.add_argument("--heldout-per-family", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", action="store_true", help="also kill a campaign, with a student without checkpoint")
    parser.add_argument("--scratch", type=Path, help="continue in this folder, and keep it; by default a temporary one")
    options = parser.parse_args()
    # A SIGTERM must also end the commands that this process runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    names = list(STUDENTS)[: options.students]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (options.scratch or Path(temporary)).resolve()
        scratch /= f"{options.images}-images-{options.heldout_per_family}-heldout-seed-{options.seed}"
        results = measure(names, options, scratch)
    report = table(results["campaign"], results["separate"])
    if options.faults:
        report += f"\n\n{render_faults(results['faults'])}"
    write_results("campaign", results, report)
    say(report)
    return 1 if options.faults and problems_of(results["faults"]) else 0


def measure(names: Sequence[str], options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure all runs, one after another."""
    data, seed = scratch / "data", options.seed
    make_images(data, options.images, seed, options.heldout_per_family)
    models = make_adapters(names, options.images // 2, scratch / "adapters", seed + 1000)

    def run(name: str, students: Sequence[str], measure_run: Measure) -> dict[str, Any]:
        folder = scratch / name
        return measured_once(folder, lambda: measure_run(folder, tree_for(students, models, data, folder, seed)))

    middle = len(names) // 2
    load = os.getloadavg()[0]
    separate = {name: run(f"alone-{name}", [name], undisturbed) for name in names[:middle]}
    campaign = run(f"campaign-of-{len(names)}", names, undisturbed)
    separate |= {name: run(f"alone-{name}", [name], undisturbed) for name in names[middle:]}
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
