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
from typing import Any
from unittest.mock import patch

import boto3

from benchmarks.chaos_driver import CONFIG
from benchmarks.faulty_proxy import FaultyProxy
from benchmarks.local_cluster import CREDENTIALS, NODE_CPUS, Cluster, object_store_server
from mpa_ray.config import ObjectStoreConfig
from mpa_ray.demo.world import WorldSpec, paint, sample_scene
from mpa_ray.run.run import Run

ROOT = Path(__file__).resolve().parents[1]
STUDENT = "small"
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


def _scripted(latency_s: float, **rates: float) -> dict[str, Any]:
    engine = {"kind": "scripted", "latency_s": latency_s, **rates}
    return {"model": "scripted", "engine": engine, "max_images_in_flight": 8}


def _bundled(name: str) -> dict[str, Any]:
    # One image at a time: otherwise models this small are done before anything can be killed.
    return {
        "model": f"bundled:demo/models/{name}",
        "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8},
        "max_images_in_flight": 1,
        "min_pixels": 3136,
        "max_pixels": 12544,
    }


SETTINGS = {
    "scripted": Setting(
        num_images=96,
        shard_size=6,
        teacher=_scripted(0.2, inconsistent_rate=0.2, unparsable_rate=0.05, truncated_rate=0.05),
        student=_scripted(0.4, wrong_rate=0.4),
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
class FatalImage:
    """An image on which a scripted engine dies once."""

    phase: str
    image_id: str

    def marks(self, folder: Path) -> Path:
        """The folder in which a death leaves a file."""
        return folder / f"{self.phase}.deaths"


@dataclass(frozen=True)
class Testbed:
    """What all trials share."""

    setting: Setting
    folder: Path
    server_url: str
    proxy: FaultyProxy
    cluster: Cluster

    def open_run(self, name: str) -> Run:
        """The run of a trial, without the proxy in between."""
        return Run.open(f"s3://{name}/run", ObjectStoreConfig(endpoint_url=self.server_url))

    def configure(self, name: str, endpoint_url: str, fatal_images: Sequence[FatalImage] = ()) -> Path:
        """Make a trial's bucket and its folder with the configuration; returns the folder."""
        folder = self.folder / name
        folder.mkdir()
        self.client.create_bucket(Bucket=name)
        replicas = {"num_replicas": NUM_REPLICAS, "cpus_per_replica": REPLICA_CPUS}
        models = {"annotate": self.setting.teacher | replicas, "identify": self.setting.student | replicas}
        for image in fatal_images:
            image.marks(folder).mkdir()
            death = {"die_on": [image.image_id], "die_once_in": str(image.marks(folder))}
            models[image.phase] |= {"engine": models[image.phase]["engine"] | death}
        config = {
            "run_dir": f"s3://{name}/run",
            "task": "demo_world",
            "source": {"path": "s3://images", "shard_size": self.setting.shard_size},
            "object_store": {"endpoint_url": endpoint_url, "first_pause_s": 0.05, "read_timeout_s": 5},
            "annotate": {"sampling": {"temperature": 0.0, "max_new_tokens": 48}},
            "teacher": models["annotate"],
            "students": [{"name": STUDENT, **models["identify"]}],
        }
        (folder / CONFIG).write_text(json.dumps(config))
        return folder

    @contextmanager
    def driver(self, folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A driver of a trial; it is killed at the end if it still runs."""
        command = [sys.executable, "-m", "benchmarks.chaos_driver", str(folder)]
        environment = self.cluster.driver_environment
        with (
            log.open("w") as output,
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output) as driver,
        ):
            try:
                yield driver
            finally:
                driver.kill()

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
        proxy = stack.enter_context(FaultyProxy(server_url, web_faults, seed))
        cluster = stack.enter_context(Cluster(folder))
        testbed = Testbed(setting, folder, server_url, proxy, cluster)
        upload_images(testbed.client, setting.num_images, seed)
        yield testbed


def upload_images(client: Any, num_images: int, seed: int) -> None:
    """Paint images into the bucket of the source; every tenth has the bytes of an earlier one."""
    client.create_bucket(Bucket="images")
    draws = random.Random(seed)
    contents: list[bytes] = []
    for number in range(num_images):
        image = io.BytesIO()
        paint(sample_scene(WorldSpec(), draws)).save(image, "PNG")
        contents.append(draws.choice(contents) if number % 10 == 9 else image.getvalue())
        client.put_object(Bucket="images", Key=f"{number:04d}.png", Body=contents[-1])
