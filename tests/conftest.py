"""Helpers that tests of every tier use."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from mpa_ray.config import RunConfig, SourceConfig
from mpa_ray.corpus.index import index_shards
from mpa_ray.corpus.places.places import Places
from mpa_ray.demo.world import WorldSpec, paint, sample_scene
from mpa_ray.run.run import Run

# The time that an example takes does not decide a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# The modules that tests import hold millions of objects until the end. The garbage collector would search them again
# and again, which takes almost a third of the time of the unit tests. So it starts after the imports and skips them.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def write_images(folder: Path, num_images: int, seed: int = 0) -> Path:
    """Bundled-world images 000.png, 001.png, ... in a folder."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_images):
        paint(sample_scene(WorldSpec(), rng)).save(folder / f"{index:03d}.png")
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server of a folder's files, by its URL. It ignores queries, and so signatures."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def scripted_tree(images: Path, run_dir: Path, **teacher: Any) -> dict[str, Any]:
    """A configuration whose models are scripted, as a YAML file would hold it."""
    return {
        "run_dir": str(run_dir),
        "task": "demo_world",
        "source": {"path": str(images), "shard_size": 8},
        "teacher": {"model": "scripted", "engine": {"kind": "scripted", **teacher}},
        "students": [{"name": "small", "model": "scripted", "engine": {"kind": "scripted", "wrong_rate": 0.4}}],
    }


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 60)


@pytest.fixture
def scripted_config(images: Path, tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(scripted_tree(images, tmp_path / "run"))


def indexing_until(dataset: str) -> Callable[[SourceConfig, Run, Places], Iterator[str]]:
    """Lists a source's shards as `index_shards`, but the last only when the run's dataset has a shard."""

    def slowly(source: SourceConfig, run: Run, places: Places) -> Iterator[str]:
        *most, last = index_shards(source, run, places)
        yield from most
        deadline = time.monotonic() + 120
        while not any(run.storage.list(f"{dataset}/commits")):
            assert time.monotonic() < deadline, f"{dataset} has no shard while the last is not known"
            time.sleep(0.1)
        yield last

    return slowly
