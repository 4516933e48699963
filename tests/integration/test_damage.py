"""A whole run, on disk and in a bucket: damage is named exactly, and the same command makes the results again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpa_ray.config import ObjectStoreConfig
from mpa_ray.models.checkpoints import model_identity
from mpa_ray.run.audit import audit
from mpa_ray.run.audit_deep import audit_deep
from mpa_ray.run.run import Run
from mpa_ray.storage.open import open_storage
from tests.conftest import write_images
from tests.damage import checked_files, different_results, flipped, kind_of, one_of_each_kind, rows_of
from tests.integration.test_jobs import ROOT, leveling_tree
from tests.s3_server import environment, keys_of, s3_server_of_user

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
NUM_IMAGES = 20


TRAINING = "students/small/parity"
WEIGHTS = f"{TRAINING}/merged/model.safetensors"
OF_WEIGHTS = (f"{TRAINING}/", "evaluation/held/predictions/small.after", "evaluation/scores.json")
"""The results that depend on a trained student's weights."""


class Place:
    """A run directory and what it holds, on disk or in a bucket."""

    def __init__(self, folder: Path, endpoint: str | None) -> None:
        self.run_dir = "s3://bucket/runs/one" if endpoint else str(folder / "run")
        self.is_fast = endpoint is None
        """Whether all files are read in little time."""
        self._folder, self._endpoint, self._num_copies = folder, endpoint, 0
        self.object_store = ObjectStoreConfig(endpoint_url=endpoint)
        self._storage = open_storage(self.run_dir, self.object_store)
        write_images(folder / "images", NUM_IMAGES)
        questions = [
            {"question_id": number, "image": f"images/{number:03d}.png", "question": "?", "answers": ["a"]}
            for number in range(NUM_IMAGES)
        ]
        (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
        tree: dict[str, Any] = leveling_tree(folder / "images", Path(self.run_dir))
        tree["run_dir"] = self.run_dir
        benchmark = {"name": "held", "kind": "questions", "path": str(folder / "questions.jsonl")}
        tree["evaluate"] = {"benchmarks": [benchmark], "shard_size": 8}
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))

    def align(self) -> None:
        done = self._job("align", "--config", str(self._folder / "config.yaml"))
        assert done.returncode == 0, done.stderr

    def repair(self) -> list[dict[str, Any]]:
        """The findings of `mpa-ray audit RUN --repair`."""
        done = self._job("audit", self.run_dir, "--repair")
        assert done.returncode in (0, 1), done.stderr
        damage: list[dict[str, Any]] = json.loads(done.stdout).get("damage", [])
        return damage

    def copy(self) -> Path:
        """A copy of the run on disk."""
        self._num_copies += 1
        copy = self._folder / f"copy-{self._num_copies}"
        for path in self._paths():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_bytes(self._storage.read(path))
        return copy

    def flip(self, path: str) -> Callable[[], None]:
        """Flip a bit in the middle of a file. Returns what restores the file."""
        content = self._storage.read(path)
        self._storage.write(path, flipped(content, 8 * (len(content) // 2)))
        return lambda: self._storage.write(path, content)

    def run(self) -> Run:
        return Run(self._storage, allows_damage=True)

    def damage(self) -> list[str]:
        return sorted(finding.path for finding in audit_deep(self.run()))

    def _paths(self) -> list[str]:
        if self._endpoint is None:
            root = Path(self.run_dir)
            return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        return keys_of(self._endpoint, "runs/one/")

    def _job(self, job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, f"jobs/{job}.py", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            env=None if self._endpoint is None else environment(self._endpoint),
        )


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "disk":
        yield Place(tmp_path, None)
        return
    with s3_server_of_user() as endpoint:
        yield Place(tmp_path, endpoint)


def rows_are_of_newest_weights(place: Place) -> bool:
    """Whether the answers of the trained student were made with its exported weights."""
    run = place.run()
    fingerprint = run.fingerprints.fixed(run.predictions("held", "small.after").folder)
    return fingerprint is not None and fingerprint["model"] == model_identity(
        run.merged_model("small"), place.object_store
    )


def test_the_same_command_makes_damaged_files_of_each_kind_again(place: Place) -> None:
    place.align()
    assert place.damage() == []
    whole = place.copy()
    names = one_of_each_kind(whole)
    # The checkpoints of a training that has finished are not made again.
    made_again = {kind_of(name) for name in names if "/checkpoint_" not in name}
    folders = {kind_of(name).partition("/")[0] for name in names}
    assert folders >= {"run.json", "fingerprints", "phases", "corpus", "annotations", "verdicts", "parity", "students"}
    assert folders >= {"evaluation", "report"}
    assert any(name.endswith("merged/model.safetensors") for name in names)

    for name in names if place.is_fast else ():
        restore = place.flip(name)
        assert place.damage() == [name]
        restore()

    # A fingerprint is restored from its copy in run.json, and markers show that the copy is right.
    fingerprints = {name for name in names if name.startswith("fingerprints/")}
    for damaged in (set(names) - fingerprints - {"run.json"}, fingerprints, {"run.json"}):
        before = rows_of(place.copy())
        for name in damaged:
            place.flip(name)
        # A file whose checksum is in a damaged file is made again unread.
        while repaired := {finding["file"] for finding in place.repair() if finding["repaired"]}:
            assert repaired <= damaged
            if repaired == {"run.json"}:
                # Until the same command writes it again, the directory holds no run.
                break
        place.align()
        assert place.damage() == []
        assert audit(place.run()).problems == []
        again = place.copy()
        assert set(map(kind_of, checked_files(again))) >= made_again
        after = rows_of(again)
        # A training that is resumed from an earlier checkpoint is the same up to rounding.
        is_trained_again = WEIGHTS in different_results(before, after)
        of_weights = {name for name in before.keys() | after.keys() if name.startswith(OF_WEIGHTS)}
        assert different_results(before, after, of_weights if is_trained_again else ()) == []
        assert not is_trained_again or damaged & {WEIGHTS}
        assert rows_are_of_newest_weights(place)
