"""Two drivers with different settings on one run: only the rows of one of them are published."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpa_ray.config import ObjectStoreConfig, RunConfig
from mpa_ray.corpus.index import index_shards
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import FingerprintMismatch
from mpa_ray.leveling.arms import SampleSources
from mpa_ray.leveling.epoch_plan import plan_epoch
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.model_groups import copy_same_model_rows
from mpa_ray.pipeline.commit import CommitShard
from mpa_ray.pipeline.graph_rows import FetchedShard, ShardFailed, VisitedShard, decode_result, encode
from mpa_ray.pipeline.run_pass import Outstanding, run_missing
from mpa_ray.pipeline.settings_watch import SettingsWatch
from mpa_ray.records import ImageRef, ParitySample
from mpa_ray.run.audit import audit
from mpa_ray.run.joined_datasets import DatasetsOfModels, JoinedDatasets
from mpa_ray.run.run import FORMAT, Run
from tests.conftest import scripted_tree
from tests.s3_server import s3_server_of_user

ONE, OTHER = {"prompt": "Ask.", "top_p": 0.9}, {"prompt": "Beg.", "top_p": 0.9}
SHARD = "000000"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server_of_user() as endpoint:
        yield endpoint


OpenRun = Callable[[], Run]


@pytest.fixture(params=["folder", "bucket"])
def open_run(request: pytest.FixtureRequest, tmp_path: Path) -> OpenRun:
    """Opens the same run again and again, as several drivers do."""
    if request.param == "folder":
        return lambda: Run.open(str(tmp_path))
    store = ObjectStoreConfig(endpoint_url=request.getfixturevalue("server"))
    return lambda: Run.open(f"s3://bucket/{tmp_path.name}", store)


def digests(run: Run, folder: str) -> list[str]:
    """The fingerprint's digest in each marker."""
    return [json.loads(run.storage.read(path)).get("fingerprint", "") for path in run.storage.list(f"{folder}/commits")]


def test_of_two_drivers_only_the_one_that_commits_first_publishes_rows(open_run: OpenRun) -> None:
    """Both register before there are rows. In earlier versions, the second to register replaced the fingerprint, and
    both went on."""
    one, other = open_run(), open_run()
    one.register_fingerprint("annotations", ONE)
    other.register_fingerprint("annotations", OTHER)
    assert one.annotations.commit(SHARD, [])
    with pytest.raises(FingerprintMismatch, match=r"annotations was made with other settings: prompt: was 'Ask\.'"):
        other.annotations.commit("000001", [])
    with pytest.raises(FingerprintMismatch, match="prompt") as caught:
        other.register_fingerprint("annotations", OTHER)
    assert "top_p" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert one.annotations.commit("000002", [])
    third = open_run()
    third.register_fingerprint("annotations", ONE)
    assert third.annotations.commit("000003", [])
    assert third.annotations.committed() == [SHARD, "000002", "000003"]
    assert digests(third, "annotations") == [third.fingerprints.digest("annotations")] * 3
    assert third.fingerprints.fixed("annotations") == ONE


def test_many_drivers_at_the_same_moment_never_mix_their_rows(open_run: OpenRun) -> None:
    """Eight drivers with two different settings each commit a different shard at the same moment."""
    barrier = threading.Barrier(8)

    def drive(number: int) -> bool:
        run = open_run()
        run.register_fingerprint("annotations", (ONE, OTHER)[number % 2])
        barrier.wait()
        try:
            return run.annotations.commit(f"{number:06d}", [])
        except FingerprintMismatch:
            return False

    with ThreadPoolExecutor(8) as threads:
        committed = list(threads.map(drive, range(8)))
    assert committed in ([True, False] * 4, [False, True] * 4)
    assert len(set(digests(open_run(), "annotations"))) == 1


PROCESS = """
import sys
from mpa_ray.errors import FingerprintMismatch
from mpa_ray.run.run import FORMAT, Run
run = Run.open(sys.argv[1])
run.register_fingerprint("annotations", {"prompt": sys.argv[2]})
print("ready", flush=True)
sys.stdin.readline()
try:
    for number in range(20):
        run.annotations.commit(f"{number:06d}", [])
except FingerprintMismatch as error:
    sys.exit(str(error))
"""


def test_two_processes_with_different_settings_never_mix_their_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    drivers = [subprocess.Popen([*command, prompt], text=True, **pipes) for prompt in ("Ask.", "Beg.")]
    for driver in drivers:
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:
        driver.stdin.write("go\n")
        driver.stdin.flush()
    errors = [driver.communicate(timeout=60)[1] for driver in drivers]
    assert sorted(driver.returncode for driver in drivers) == [0, 1], errors
    (line,) = "".join(errors).splitlines()
    assert "prompt: was" in line
    assert len(set(digests(Run.open(str(tmp_path)), "annotations"))) == 1


def test_the_tasks_of_a_pass_commit_with_the_settings_of_their_driver(tmp_path: Path) -> None:
    one, other = Run.open(str(tmp_path)), Run.open(str(tmp_path))
    one.register_fingerprint("annotations", ONE)
    other.register_fingerprint("annotations", OTHER)
    results = []
    for number, run in enumerate((one, other)):
        commit = pickle.loads(pickle.dumps(CommitShard(run.annotations)))
        results.append(decode_result(commit(encode(VisitedShard(FetchedShard(f"{number:06d}"))))))
    failed = results[1]
    assert isinstance(failed, ShardFailed)
    assert isinstance(failed.failure.ends_command, FingerprintMismatch)
    assert not failed.failure.may_pass
    assert digests(one, "annotations") == [one.fingerprints.digest("annotations")] != [""]


def test_each_dataset_of_a_shared_pass_is_compared(tmp_path: Path) -> None:
    one, other = Run.open(str(tmp_path)), Run.open(str(tmp_path))
    one.register_fingerprint("verdicts/b", ONE)
    one.verdicts("b").commit(SHARD, [])
    for name in "ab":
        # Registered as it was before the other driver's commit.
        other.fingerprints._registered[f"verdicts/{name}"] = OTHER
    parts = {name: other.verdicts(name) for name in "ab"}
    for target in (DatasetsOfModels(parts), JoinedDatasets(parts)):
        with pytest.raises(FingerprintMismatch, match="verdicts/b"):
            target.check_fingerprint()


def test_a_pass_ends_before_its_first_commit_once_another_driver_has_committed(tmp_path: Path) -> None:
    one, other = Run.open(str(tmp_path)), Run.open(str(tmp_path))
    one.register_fingerprint("annotations", ONE)
    other.register_fingerprint("annotations", OTHER)
    failures: list[Any] = []
    given_up = threading.Event()

    def give_up(failure: Any) -> None:
        failures.append(failure)
        given_up.set()

    coordinator = SimpleNamespace(give_up=SimpleNamespace(remote=give_up))
    watches = [SettingsWatch(run.annotations, coordinator, interval_s=0.01) for run in (one, other)]
    assert not failures
    one.annotations.commit(SHARD, [])
    assert given_up.wait(60)
    for watch in watches:
        # The comparison of the winner ends, too: a fixed fingerprint never changes.
        watch._thread.join(60)
        assert not watch._thread.is_alive()
    (failure,) = failures
    assert isinstance(failure.ends_command, FingerprintMismatch)


def test_a_driver_whose_work_another_has_done_with_other_settings_is_not_done(tmp_path: Path) -> None:
    """Nothing is missing, so nothing would be committed. In earlier versions, the driver printed "already done"."""
    one, other = Run.open(str(tmp_path)), Run.open(str(tmp_path))
    one.register_fingerprint("annotations", ONE)
    other.register_fingerprint("annotations", OTHER)
    one.annotations.commit(SHARD, [])
    work: Any = SimpleNamespace(target=other.annotations, key=SimpleNamespace(label="annotate"))
    with pytest.raises(FingerprintMismatch):
        run_missing(other, work, Outstanding([], [SHARD]))


def test_rows_of_the_same_model_are_not_copied_once_another_driver_has_made_them(tmp_path: Path) -> None:
    """The other driver commits after the settings were compared for the first time."""
    one, other = Run.open(str(tmp_path)), Run.open(str(tmp_path))
    one.register_fingerprint("verdicts/a", ONE)
    other.register_fingerprint("verdicts/b", OTHER)
    source: Any = one.verdicts("b")

    def missing(shards: list[str]) -> list[str]:
        other.verdicts("b").commit(SHARD, [])
        return list(type(source).missing(source, shards))

    namesake: Any = SimpleNamespace(folder=source.folder, missing=missing, read_commit=source.read_commit)
    copy_same_model_rows(one, "identify a", one.verdicts("a"), {"b": namesake}, ONE, [SHARD])
    assert one.verdicts("a").missing([SHARD]) == [SHARD]


def test_an_index_that_another_driver_has_made_with_other_settings_is_not_completed(
    images: Path, tmp_path: Path
) -> None:
    """The manifest would be that of both."""
    tree = scripted_tree(images, tmp_path / "run")
    tree["source"]["limit"] = 16
    configs = [RunConfig.model_validate({**tree, "source": {**tree["source"], "seed": seed}}) for seed in (0, 1)]
    contexts = [RunContext.from_checked(config) for config in configs]
    for context in contexts:
        context.begin(writes=["corpus"])
    first = index_shards(configs[0].source, contexts[0].run, Places(configs[0].object_store))
    assert [next(first), next(first)] == [SHARD, "000001"]
    with pytest.raises(FingerprintMismatch, match="seed: was 0, now 1"):
        list(index_shards(configs[1].source, contexts[1].run, Places(configs[1].object_store)))
    assert not contexts[1].run.is_indexed()


def test_the_plan_of_an_epoch_is_not_used_with_other_settings(tmp_path: Path) -> None:
    one, other = Run.open(str(tmp_path)), Run.open(str(tmp_path))
    for run, fingerprint in ((one, ONE), (other, OTHER)):
        run.register_fingerprint("students/small/parity", fingerprint)
    level = RunConfig.model_validate(scripted_tree(tmp_path, tmp_path)).students[0].level
    sample = ParitySample("0.png#0", "0.png", "/0.png", "?", "a", "b", num_prompt_tokens=4)
    sources = SampleSources(parity=lambda: [sample], verdicts=list)
    plan_epoch(one, "students/small/parity", sources, level)
    with pytest.raises(FingerprintMismatch, match="students/small/parity"):
        plan_epoch(other, "students/small/parity", sources, level)
    again = Run.open(str(tmp_path))
    again.register_fingerprint("students/small/parity", ONE)
    plan_epoch(again, "students/small/parity/again-1", sources, level)
    assert (
        digests(again, "students/small/parity/again-1/epoch") == digests(again, "students/small/parity/epoch") != [""]
    )


def audited(tmp_path: Path) -> Run:
    """An annotated run of two shards without images."""
    run = Run.open(str(tmp_path))
    run.write_json("run.json", {"format": FORMAT, "config": {"students": [{"name": "small"}]}})
    run.write_json("corpus/manifest.json", {"num_images": 0, "num_shards": 2})
    run.register_fingerprint("annotations", ONE)
    for shard in (SHARD, "000001"):
        run.corpus.commit(shard, list[ImageRef]())
        run.annotations.commit(shard, [])
    return run


def settings_problems(run: Run) -> list[str]:
    return [problem for problem in audit(run).problems if "settings" in problem or "fingerprint" in problem]


def test_the_audit_finds_rows_that_were_made_with_other_settings(tmp_path: Path) -> None:
    run = audited(tmp_path)
    assert settings_problems(run) == []
    path = "annotations/commits/000001.json"
    marker = run.read_json(path)
    run.write_json(path, {**marker, "fingerprint": "0123456789abcdef"})
    (problem,) = settings_problems(run)
    assert problem.startswith("annotations: 1 shards were made with other settings than the dataset")
    assert "0123456789abcdef" in problem
    assert "000001" in problem
    run.write_json(path, marker)
    run.storage.delete("fingerprints/annotations.json")
    (problem,) = settings_problems(run)
    assert "the fingerprint of annotations is missing" in problem


def test_rows_of_earlier_versions_are_read_and_continued(tmp_path: Path) -> None:
    """Their markers have no digest."""
    run = audited(tmp_path)
    for path in list(run.storage.list("annotations/commits")):
        run.write_json(path, {name: value for name, value in run.read_json(path).items() if name != "fingerprint"})
    assert settings_problems(run) == []
    again = Run.open(str(tmp_path))
    with pytest.raises(FingerprintMismatch):
        again.register_fingerprint("annotations", OTHER)
    again.register_fingerprint("annotations", ONE)
    assert again.annotations.read(SHARD) == []
    assert again.annotations.commit("000002", [])
    assert digests(again, "annotations") == ["", "", again.fingerprints.digest("annotations")]
