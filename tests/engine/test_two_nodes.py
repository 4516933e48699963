"""The demo as a user submits it: to a cluster of two nodes with a token, its run at s3://, and a node that dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.local_cluster import Cluster, wait_until
from mpa_ray.config import ObjectStoreConfig
from mpa_ray.store.parity import read_parity
from mpa_ray.store.run import Run
from mpa_ray.store.storage import open_storage
from tests.s3_server import CREDENTIALS, s3_server, upload

ROOT = Path(__file__).parents[2]
NUM_IMAGES, SHARD_SIZE = 192, 16
LARGEST_UPLOAD = 40 * 2**20


@dataclass(frozen=True)
class Arena:
    """A cluster, an object store, and the demo's images in it."""

    cluster: Cluster
    endpoint: str
    heldout: Path

    def words(self, run: str) -> list[str]:
        """Overrides of the demo. The teacher is greedy, so that a second run asks the same questions."""
        settings = {
            "run_dir": f"s3://bucket/{run}",
            "source.path": "s3://bucket/unlabeled",
            "source.shard_size": SHARD_SIZE,
            "annotate.sampling.temperature": 0,
            "students.0.level.retained_samples": 8,
            "evaluate.benchmarks.0.path": self.heldout / "questions.jsonl",
            "evaluate.teacher": False,
        }
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    def ray(self, *words: str) -> str:
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", *words]
        environment = self.cluster.submitter_environment
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, name: str, *command: str) -> None:
        self.ray("submit", "--submission-id", name, "--no-wait", "--working-dir", ".",
                 "--runtime-env", "cluster/runtime_env.yaml", "--", *command)  # fmt: skip

    def wait(self, name: str, timeout_s: float) -> str:
        """Until the job has ended; its logs."""

        def has_ended() -> bool:
            told = self.ray("status", name)
            assert f"'{name}' failed" not in told, self.ray("logs", name)
            return f"'{name}' succeeded" in told

        wait_until(has_ended, name, timeout_s)
        return self.ray("logs", name)

    def open_run(self, run: str) -> Run:
        return Run(open_storage(f"s3://bucket/{run}", ObjectStoreConfig(endpoint_url=self.endpoint)))


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """The head has no CPUs, as in the files for clouds: engines and trainings are on the other node."""
    folder = tmp_path_factory.mktemp("two-nodes")
    patch = pytest.MonkeyPatch()
    for name, value in CREDENTIALS.items():
        patch.setenv(name, value)
    command = [sys.executable, "-m", "mpa_ray.demo.images", "--out", str(folder), "--num-images", str(NUM_IMAGES),
               "--num-heldout-per-family", "1"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with s3_server() as endpoint:
        upload(folder / "unlabeled", endpoint, "unlabeled")
        python_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "PATH": python_first}
        with Cluster(folder, head_cpus=0, worker_cpus=3, takes_jobs=True, environment=environment) as cluster:
            cluster.wait_until_whole()
            yield Arena(cluster, endpoint, folder / "heldout")
    patch.undo()


@pytest.mark.timeout(900)
def test_a_node_dies_in_the_middle_of_a_submitted_demo(arena: Arena) -> None:
    arena.submit("struck", "python", "jobs/align.py", "--config", "mpa_ray/demo/demo.yaml", *arena.words("struck"))
    run, num_shards = arena.open_run("struck"), NUM_IMAGES // SHARD_SIZE
    wait_until(lambda: any(run.storage.list("annotations/commits")), "the first shard", timeout_s=180)
    engines = arena.cluster.model_actors_of_worker()
    assert engines, "no engine is on the worker node"
    arena.cluster.replace_worker_node()
    assert len(list(run.storage.list("annotations/commits"))) < num_shards, "the node died too late"
    logs = arena.wait("struck", 600)
    assert not any(process.is_running() for process in engines)

    audited = subprocess.run([sys.executable, "jobs/audit.py", "s3://bucket/struck"], cwd=ROOT, text=True, check=False,
                             capture_output=True, env={**os.environ, "AWS_ENDPOINT_URL": arena.endpoint})  # fmt: skip
    counts = json.loads(audited.stdout)
    assert (audited.returncode, counts["images"], counts["problems"]) == (0, NUM_IMAGES, [])
    assert run.storage.exists("students/small/parity/complete.json")
    assert run.storage.exists("report/report.json")
    told = logs.splitlines()
    assert "level small: done" in logs
    assert "heldout: exact_match" in logs
    assert any(line.startswith("annotate: starting") for line in told), "nothing tells of the wait"

    # What went up: the code and the bundled models, and nothing that lies beside them.
    (package,) = [
        path for path in (arena.cluster.session / "runtime_resources/working_dir_files").iterdir() if path.is_dir()
    ]
    files = [path for path in package.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST_UPLOAD
    assert {path.name for path in package.iterdir()}.isdisjoint({".venv", ".git", "tests", "runs"})

    # The same steps, each a job of its own, and nobody dies.
    for step in ("index", "annotate", "identify"):
        arena.submit(
            f"calm-{step}", "python", f"jobs/{step}.py", "--config", "mpa_ray/demo/demo.yaml", *arena.words("calm")
        )
        arena.wait(f"calm-{step}", 180)
    found, expected = (
        {s.annotation_id for s in read_parity(arena.open_run(name), "small")} for name in ("struck", "calm")
    )
    assert found == expected
    assert len(expected) >= 8
