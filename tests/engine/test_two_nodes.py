"""The demo as a user submits it: to a cluster of two nodes with a token, its run at s3://, a node that dies, a stop."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import pytest

from benchmarks.local_cluster import Cluster, wait_until
from mpa_ray.config import ObjectStoreConfig
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.run import Run
from mpa_ray.storage.open import open_storage
from tests.s3_server import CREDENTIALS, SECRET, keys_containing, s3_server, upload

ROOT = Path(__file__).parents[2]
CONFIG = "mpa_ray/demo/demo.yaml"
LARGEST_UPLOAD = 40 * 2**20
POLL_S = 0.3
"""The pause between two requests about the state of a job or of a run. They share the cores with the cluster."""


@dataclass(frozen=True)
class Size:
    """How many of the images a run uses."""

    num_images: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        return self.num_images // self.shard_size


PASS, DEMO = Size(96, 8), Size(192, 16)
"""Leveling and evaluation need more images than a pass."""


def scripted_teacher(latency_s: float) -> dict[str, str]:
    """Settings of a teacher whose engine starts at once and is as slow as a test needs it."""
    return {"teacher": f"{{model: scripted, engine: {{kind: scripted, latency_s: {latency_s}}}}}"}


@dataclass(frozen=True)
class Arena:
    """A cluster, an object store, and the demo's images in it."""

    cluster: Cluster
    endpoint: str
    heldout: Path

    def words(self, run: str, size: Size, **changes: object) -> list[str]:
        """Overrides of the demo. The teacher is greedy, so that a second run asks the same questions."""
        settings = {
            "run_dir": f"s3://bucket/{run}",
            "source.path": "s3://bucket/unlabeled",
            "source.shard_size": size.shard_size,
            "source.limit": size.num_images,
            "annotate.sampling.temperature": 0,
            "students.0.level.retained_samples": 8,
            "evaluate.benchmarks.0.path": self.heldout / "questions.jsonl",
            "evaluate.teacher": False,
            **changes,
        }
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    def ray(self, *words: str) -> str:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", *words]
        environment = self.cluster.submitter_environment
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def here(self, job: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a job outside of the cluster, as a user does with a job that needs no Ray."""
        return subprocess.run(
            [sys.executable, f"jobs/{job}.py", *words],
            cwd=ROOT,
            text=True,
            check=False,
            capture_output=True,
            env={**os.environ, "AWS_ENDPOINT_URL": self.endpoint},
        )

    def submit(self, name: str, jobs: Sequence[str], words: Sequence[str]) -> None:
        commands = [["python", f"jobs/{job}.py", "--config", CONFIG, *words] for job in jobs]
        command = commands[0] if len(commands) == 1 else ["sh", "-c", " && ".join(map(shlex.join, commands))]
        self.ray(
            "submit",
            "--submission-id",
            name,
            "--no-wait",
            "--working-dir",
            ".",
            "--runtime-env",
            "cluster/runtime_env.yaml",
            "--",
            *command,
        )

    def wait(self, name: str, timeout_s: float) -> str:
        """Wait until the job has ended, and return its logs."""

        def has_ended() -> bool:
            time.sleep(POLL_S)
            status = self.status(name)
            assert status != "FAILED", self.ray("logs", name)
            return status == "SUCCEEDED"

        wait_until(has_ended, name, timeout_s)
        return self.ray("logs", name)

    def status(self, name: str) -> str:
        """The job's status. `ray job status` prints the same, but each call would start an interpreter."""
        token = self.cluster.submitter_environment["RAY_AUTH_TOKEN"]
        request = urllib.request.Request(
            f"{self.cluster.dashboard}/api/jobs/{name}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(json.load(response)["status"])

    def open_run(self, run: str) -> Run:
        return Run(open_storage(f"s3://bucket/{run}", ObjectStoreConfig(endpoint_url=self.endpoint)))


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """The head has no CPUs, as in the files for clouds: engines and training are on the other node."""
    folder = tmp_path_factory.mktemp("two-nodes")
    patch = pytest.MonkeyPatch()
    for name, value in CREDENTIALS.items():
        patch.setenv(name, value)
    command = [
        sys.executable,
        "-m",
        "mpa_ray.demo.images",
        "--out",
        str(folder),
        "--num-images",
        str(DEMO.num_images),
        "--num-heldout-per-family",
        "1",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with s3_server() as endpoint:
        upload(folder / "unlabeled", endpoint, "unlabeled")
        python_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "PATH": python_first}
        with Cluster(folder, head_cpus=0, worker_cpus=3, takes_jobs=True, environment=environment) as cluster:
            cluster.wait_until_whole()
            yield Arena(cluster, endpoint, folder / "heldout")
    patch.undo()


def _num_commits(run: Run) -> int:
    return len(list(run.storage.list("annotations/commits")))


def _wait_for_commits(run: Run, number: int, what: str) -> None:
    def are_there() -> bool:
        time.sleep(POLL_S)
        return _num_commits(run) >= number

    wait_until(are_there, what, timeout_s=180)


def test_nobody_submits_without_the_token(arena: Arena) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{arena.cluster.dashboard}/api/jobs/", timeout=10)
    assert refused.value.code == HTTPStatus.UNAUTHORIZED


@dataclass(frozen=True)
class Strike:
    """A run that loses its node, is stopped, and is continued."""

    name: str
    """Of the run and of the first submission."""
    size: Size
    first: Sequence[str]
    """The jobs of the first submission."""
    second: Sequence[str]
    slow: Mapping[str, object]
    """Settings of the first submission. They slow the teacher, so that the node's death and the stop find work
    undone."""
    fast: Mapping[str, object]


def _strike(arena: Arena, strike: Strike) -> tuple[str, list[str]]:
    """Submit jobs, replace the node that they run on, stop them, and submit jobs that continue the run.

    Returns:
        The log of the last submission, and the problems that the audit finds.
    """
    name, size = strike.name, strike.size
    arena.submit(name, strike.first, arena.words(name, size, **strike.slow))
    run = arena.open_run(name)

    _wait_for_commits(run, 1, "the first shard")
    engines = arena.cluster.model_actors_of_worker()
    assert engines, "no engine is on the worker node"
    arena.cluster.replace_worker_node(all_at_once=True)
    arena.cluster.wait_until_whole()
    before = _num_commits(run)
    assert before < size.num_shards, "the node died too late"
    _wait_for_commits(run, before + 1, "a shard from the new node")
    engines += arena.cluster.model_actors_of_worker()
    arena.ray("stop", name)
    assert "was stopped" in arena.ray("status", name)
    lines = arena.ray("logs", name).splitlines()
    assert any(line.startswith("annotate: starting") for line in lines), "no line about the wait"
    assert "Interrupted: run the same command again to continue." in lines
    assert not any(line.startswith("Traceback") for line in lines), "\n".join(lines[-60:])
    wait_until(lambda: not any(process.is_running() for process in engines), "the engines' end")
    done = _num_commits(run)
    assert done < size.num_shards, "the job was stopped too late"

    arena.submit(f"{name}-again", strike.second, arena.words(name, size, **strike.fast))
    logs = arena.wait(f"{name}-again", 600)
    assert f"annotate: {size.num_images} images, {done * size.shard_size} already done" in logs.splitlines()

    # What the dead attempts left is collected, and nothing that is needed below.
    audited = arena.here("audit", f"s3://bucket/{name}", "--collect", "--older-than-hours", "0")
    counts = json.loads(audited.stdout)
    assert counts["images"] == size.num_images
    assert audited.returncode == bool(counts["problems"])
    assert SECRET not in logs + "".join(lines)
    assert keys_containing(SECRET, arena.endpoint, f"{name}/") == []
    return logs, counts["problems"]


def _check_uploads(arena: Arena) -> None:
    """The code and the bundled models were uploaded, and nothing that lies beside them."""
    packages = (arena.cluster.session / "runtime_resources/working_dir_files").iterdir()
    brought = [path for path in packages if path.is_dir()]
    assert brought
    for package in brought:
        assert {"jobs", "mpa_ray"} <= {path.name for path in package.iterdir()}
        assert {path.name for path in package.iterdir()}.isdisjoint({".venv", ".git", "tests", "runs"})
        assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) < LARGEST_UPLOAD


@pytest.mark.timeout(600)
def test_a_submitted_pass_outlives_its_node_and_a_stop(arena: Arena) -> None:
    """The student, whose engine is vLLM, answers after the stop."""
    slow, fast = scripted_teacher(latency_s=0.5), scripted_teacher(latency_s=0)
    indexed = arena.here("index", "--config", CONFIG, *arena.words("pass", PASS, **slow))
    assert indexed.returncode == 0, indexed.stderr
    in_flight = {"teacher.max_images_in_flight": 2}
    strike = Strike("pass", PASS, ["annotate"], ["annotate", "identify"], slow | in_flight, fast)
    logs, problems = _strike(arena, strike)
    assert problems == []
    assert f"identify small: {PASS.num_images} images" in logs
    _check_uploads(arena)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_submitted_demo_outlives_its_node_and_a_stop(arena: Arena) -> None:
    slow, fast = ({"teacher.max_images_in_flight": number} for number in (2, 4))
    logs, problems = _strike(arena, Strike("demo", DEMO, ["align"], ["align"], slow, fast))
    assert problems == []
    run = arena.open_run("demo")
    assert run.storage.exists("students/small/parity/complete.json")
    assert run.storage.exists("report/report.json")
    assert "level small: done" in logs
    assert "heldout: exact_match" in logs
    merged = {Path(path).name for path in run.storage.list("students/small/parity/merged")}
    assert merged >= {"model.safetensors", "config.json", "tokenizer.json"}
    arena.submit("repeated", ["align"], arena.words("demo", DEMO, **fast))
    repeated = arena.wait("repeated", 180).splitlines()
    assert {"annotate: already done", "identify small: already done", "level small: already done"} <= set(repeated)
    _check_uploads(arena)

    # The same steps, and no process dies.
    arena.submit("calm", ["index", "annotate", "identify"], arena.words("calm", DEMO, **fast))
    arena.wait("calm", 300)
    resumed, expected = (
        {s.annotation_id for s in read_parity(arena.open_run(name), "small")} for name in ("demo", "calm")
    )
    assert resumed == expected
    assert len(expected) >= 8
