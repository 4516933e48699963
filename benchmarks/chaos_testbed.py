"""What the trials of chaos run on: an object store behind a faulty proxy, a Ray cluster of two nodes, and images."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import boto3

from benchmarks.chaos_driver import CONFIG
from benchmarks.chaos_proxy import ChaosProxy
from benchmarks.local_cluster import CREDENTIALS, NODE_CPUS, Cluster, object_store_server
from mpa_ray.config import ObjectStoreConfig
from mpa_ray.demo.world import WorldSpec, paint, sample_scene
from mpa_ray.run.run import Run

ROOT = Path(__file__).resolve().parents[1]
STUDENT = "small"
IMAGES = "images"
"""The bucket of the images."""
OTHER = "other"
"""The name of a second driver's output."""
STORE_SETTINGS = {"first_pause_s": 0.05, "read_timeout_s": 5}
LEVEL = {
    "batch_size": 4,
    "checkpoint_every_steps": 1,
    "learning_rate": 1e-3,
    "tokens_per_micro_batch": 400,
    "num_workers": 2,
}
NUM_REPLICAS = 2
REPLICA_CPUS = NODE_CPUS - 0.25
"""Leaves room on each node for one replica, and one worker for the tasks before and after the model."""


@dataclass(frozen=True)
class Setting:
    """The images and models of the trials with one kind of engine."""

    num_images: int
    shard_size: int
    teacher: dict[str, Any]
    student: dict[str, Any]
    driver_timeout_s: float
    """A driver that takes longer counts as hung: it is killed and started again."""

    @property
    def is_scripted(self) -> bool:
        return bool(self.teacher["engine"].get("kind") == "scripted")


_PIXELS = {"min_pixels": 3136, "max_pixels": 12544}


def _scripted(model: str, latency_s: float, **rates: float) -> dict[str, Any]:
    engine = {"kind": "scripted", "latency_s": latency_s, **rates}
    return {"model": model, "engine": engine, "max_images_in_flight": 8, **_PIXELS}


def _bundled(name: str) -> dict[str, Any]:
    # One image at a time: otherwise models this small are done before anything can be killed.
    return {
        "model": f"bundled:demo/models/{name}",
        "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8},
        "max_images_in_flight": 1,
        **_PIXELS,
    }


SETTINGS = {
    "scripted": Setting(
        num_images=96,
        shard_size=6,
        teacher=_scripted("scripted", 0.2, inconsistent_rate=0.2, unparsable_rate=0.05, truncated_rate=0.05),
        student=_scripted("bundled:demo/models/student", 0.4, wrong_rate=0.4),
        driver_timeout_s=300,
    ),
    "vllm": Setting(
        num_images=96,
        shard_size=6,
        teacher=_bundled("teacher"),
        student=_bundled("student"),
        driver_timeout_s=900,
    ),
}


@dataclass(frozen=True)
class Testbed:
    """What all trials share."""

    __test__: ClassVar[bool] = False
    """pytest collects no tests from a class whose name begins with Test."""
    setting: Setting
    folder: Path
    server_url: str
    proxy: ChaosProxy
    cluster: Cluster

    def open_run(self, name: str) -> Run:
        """The run of a trial, without the proxy in between."""
        return Run.open(f"s3://{name}/run", ObjectStoreConfig(endpoint_url=self.server_url))

    def make_folder(self, name: str) -> Path:
        """Make a run's bucket and its folder on this machine; returns the folder."""
        folder = self.folder / name
        folder.mkdir()
        self.client.create_bucket(Bucket=name)
        return folder

    def configure(self, folder: Path, endpoint_url: str, more: dict[str, Any]) -> None:
        """Write the configuration of a run into its folder.

        Args:
            folder: The folder; the run's bucket has the same name.
            endpoint_url: Where the store is.
            more: Settings to add, with the settings of the student in `student`.
        """
        replicas = {"num_replicas": NUM_REPLICAS, "cpus_per_replica": REPLICA_CPUS}
        config: dict[str, Any] = {
            "run_dir": f"s3://{folder.name}/run",
            "task": "demo_world",
            "source": {"path": f"s3://{IMAGES}", "shard_size": self.setting.shard_size},
            "object_store": {"endpoint_url": endpoint_url, **STORE_SETTINGS},
            "annotate": {"sampling": {"temperature": 0.0, "max_new_tokens": 48}},
            "teacher": self.setting.teacher | replicas,
            "student": {"name": STUDENT, **self.setting.student, **replicas, "level": LEVEL},
        }
        config = deep_merge(config, more)
        config["students"] = [config.pop("student")]
        (folder / CONFIG).write_text(json.dumps(config))

    @contextmanager
    def driver(self, folder: Path, name: str, jobs: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A driver of a run; it is killed at the end if it still runs. Its output is in NAME.out and NAME.err."""
        with self._start(folder, CONFIG, name, jobs) as driver:
            try:
                yield driver
            finally:
                driver.kill()

    def start_other(self, folder: Path, config: str, jobs: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start another driver, whose output is in `other.out` and `other.err`."""
        return self._start(folder, config, OTHER, jobs)

    def _start(self, folder: Path, config: str, name: str, jobs: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.chaos_driver", str(folder / config), *jobs]
        environment = self.cluster.driver_environment
        with (folder / f"{name}.out").open("w") as output, (folder / f"{name}.err").open("w") as errors:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors)

    def audit(self, name: str, *options: str) -> dict[str, Any]:
        """What `mpa-ray audit` prints about a run. The proxy is not in between."""
        endpoint = f"--object_store.endpoint_url={self.server_url}"
        command = [sys.executable, "jobs/audit.py", f"s3://{name}/run", *options, endpoint]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1) or not done.stdout:
            return {"problems": [f"audit ended with {done.returncode}: {done.stderr.strip()}"]}
        counts: dict[str, Any] = json.loads(done.stdout)
        return counts

    def copy_run(self, name: str, to: str) -> None:
        """Copy all files of a run into the bucket of another one."""
        for path in self.files_of(name):
            self.client.copy_object(Bucket=to, Key=path, CopySource={"Bucket": name, "Key": path})

    def files_of(self, name: str) -> list[str]:
        """The keys of all files in a run's bucket that are not empty."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=name)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ()) if entry["Size"]]

    @property
    def client(self) -> Any:
        """A client of boto3, without the proxy in between."""
        return boto3.client("s3", endpoint_url=self.server_url)


@contextmanager
def open_testbed(setting: Setting, seed: int, web_faults: float, folder: Path) -> Iterator[Testbed]:
    """Start everything, and upload the source's images; at the end only logs in the folder are left."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, CREDENTIALS))
        server_url = stack.enter_context(object_store_server(folder / "server.log"))
        proxy = stack.enter_context(ChaosProxy(server_url, web_faults, seed))
        cluster = stack.enter_context(Cluster(folder))
        testbed = Testbed(setting, folder, server_url, proxy, cluster)
        upload_images(testbed.client, setting.num_images, seed)
        yield testbed


def upload_images(client: Any, num_images: int, seed: int) -> None:
    """Paint images into the bucket of the source; every tenth has the bytes of an earlier one."""
    client.create_bucket(Bucket=IMAGES)
    draws = random.Random(seed)
    contents: list[bytes] = []
    for number in range(num_images):
        image = io.BytesIO()
        paint(sample_scene(WorldSpec(), draws)).save(image, "PNG")
        contents.append(draws.choice(contents) if number % 10 == 9 else image.getvalue())
        client.put_object(Bucket=IMAGES, Key=f"{number:04d}.png", Body=contents[-1])


def deep_merge(*trees: dict[str, Any]) -> dict[str, Any]:
    """Settings of several trees; those of later trees take precedence."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for name, value in tree.items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = deep_merge(merged[name], value) if both else value
    return merged
