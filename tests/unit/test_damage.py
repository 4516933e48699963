"""Damaged and missing files: each one is found, named with a remedy, and made again by the same command."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from botocore.client import BaseClient

from mpa_ray.campaign.end_of_campaign import CountsDiffer, score_and_report
from mpa_ray.cli.arguments import parse
from mpa_ray.cli.commands import COMMANDS
from mpa_ray.cli.handlers import HANDLERS
from mpa_ray.config import ObjectStoreConfig, RunConfig
from mpa_ray.errors import ConfigError, DamagedFile
from mpa_ray.leveling.checkpoint_folders import inherited_checkpoint
from mpa_ray.observability.progress import Progress
from mpa_ray.phases.annotate import index_and_annotate
from mpa_ray.phases.context import RunContext
from mpa_ray.phases.evaluate import evaluate
from mpa_ray.phases.identify import identify
from mpa_ray.phases.level import level_student
from mpa_ray.phases.rematch import rematch
from mpa_ray.records import LabelledQuestion, Prediction
from mpa_ray.run.audit import audit
from mpa_ray.run.audit_deep import audit_deep
from mpa_ray.run.audit_students import student_findings
from mpa_ray.run.checkpoint_files import PROGRESS, check_files, write_checksums
from mpa_ray.run.checksums import FILES, checksums_of
from mpa_ray.run.damage import Finding
from mpa_ray.run.export_check import CheckedAnswer, ExportCheck
from mpa_ray.run.garbage import collect_garbage
from mpa_ray.run.parity_export import read_parity
from mpa_ray.run.redo import outdated
from mpa_ray.run.run import EXPORT, Run
from mpa_ray.run.training_log import LogEntry
from mpa_ray.run.training_state import Retained, TrainingState
from mpa_ray.storage.local import LocalStorage
from mpa_ray.storage.object_store import ObjectStore
from mpa_ray.storage.s3 import S3Storage
from tests.conftest import scripted_tree, write_images
from tests.damage import (
    checked_files,
    different_results,
    flip,
    flipped,
    kind_of,
    one_of_each_kind,
    rows_of,
    values_of,
)
from tests.local_stream import without_ray
from tests.s3_server import CREDENTIALS, client, keys_of, s3_server

NUM_IMAGES = 20
SHARD = "000001"
NOW = datetime.now(UTC)
TRAINING = "students/small/parity"


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setattr("mpa_ray.leveling.driver.fine_tune", fine_tune)
        patch.setattr("mpa_ray.phases.level.check_export", check_export)
        patch.setattr("mpa_ray.pipeline.cluster.start_ray", lambda: None)
        yield patch


def fine_tune(run: Run, _: Any, __: Any, ___: Any, ____: Any, plan: Any, folder: str, *_____: Any) -> None:
    """Writes what a training and its export write, in the order in which they do, without a model."""
    before = TrainingState.read(run, folder)
    if before is not None and before.is_exported and run.storage.exists(f"{folder}/merged/config.json"):
        return
    entries = [LogEntry(step=step, loss=1 / step) for step in range(1, 140)]
    state = TrainingState(num_steps=plan.num_steps)
    for entry in entries:
        state = state.logged(entry, run, folder)
    write_checkpoint(run, folder)
    ExportCheck((CheckedAnswer("0#0", "0", "/0", "?", "a"),)).write(run, folder)
    with TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "config.json").write_text('{"model_type": "x"}')
        (scratch / "model.safetensors").write_bytes(random.Random(0).randbytes(5000))
        (scratch / "README.md").write_text("card")
        checksums = checksums_of(scratch, "merged/", ["README.md"])
        run.storage.put_folder(scratch, f"{folder}/merged")
    run.write_json(f"{folder}/{EXPORT}", {FILES: checksums})
    done = TrainingState(**{**vars(state), "num_unreadable": 0, "retained": Retained(0, 0, 0)})
    done.write(run, folder)


def write_checkpoint(run: Run, folder: str, name: str = "checkpoint_2026-01-01") -> str:
    """Writes what a training with two workers and Ray Train write for a checkpoint. Returns its folder."""
    for rank in range(2):
        with TemporaryDirectory() as scratch:
            local = Path(scratch)
            (local / f"__{rank}_0.distcp").write_bytes(random.Random(rank).randbytes(3000))
            if rank == 0:
                (local / ".metadata").write_bytes(random.Random(2).randbytes(100))
                (local / PROGRESS).write_text('{"num_unreadable": 0}')
            write_checksums(local, rank)
            run.storage.put_folder(local, f"{folder}/checkpoints/{name}")
    snapshot, result = f"{folder}/checkpoints/checkpoint_manager_snapshot.json", {"checkpoint_dir_name": name}
    earlier = json.loads(run.storage.read(snapshot))["checkpoint_results"] if run.storage.exists(snapshot) else []
    results = [*(known for known in earlier if known != result), result]
    run.storage.write(
        snapshot, json.dumps({"checkpoint_results": results, "latest_checkpoint_result": result}).encode()
    )
    return f"{folder}/checkpoints/{name}"


def check_export(context: RunContext[RunConfig], *_: object) -> None:
    """Writes what the check of an export writes, without an engine."""
    question = LabelledQuestion("0#0", "0", "/0", "?", ["a"], "all")
    context.run.dataset(f"{TRAINING}/check/questions", LabelledQuestion).commit_missing("000000", [question])
    answer = Prediction("0#0", "0", "/0", "?", ["a"], "all", "kept")
    context.run.dataset(f"{TRAINING}/check/answers", Prediction).commit_missing("000000", [answer])


def config_of(folder: Path, run_dir: Path | str) -> RunConfig:
    images = folder / "images"
    tree = {**scripted_tree(images, folder), "run_dir": str(run_dir)}
    tree["source"]["skip_duplicates"] = False
    tree["evaluate"] = {
        "benchmarks": [{"name": "held", "kind": "questions", "path": str(folder / "questions.jsonl")}],
        "shard_size": 8,
    }
    return RunConfig.model_validate(tree)


def command(config: RunConfig) -> Run:
    """What `mpa-ray align` does, without Ray."""
    context = RunContext.from_checked(config)
    index_and_annotate(context)
    identify(context, lambda *_: [])
    level_student(context, config.students[0], "parity")
    evaluate(context.with_finished_rounds())
    failures = score_and_report(context.with_finished_rounds())
    assert not failures
    return context.run


def write_inputs(folder: Path) -> None:
    """Write the images and the questions of the configuration."""
    write_images(folder / "images", NUM_IMAGES)
    questions = [
        {"question_id": number, "image": f"images/{number:03d}.png", "question": "?", "answers": ["a"]}
        for number in range(NUM_IMAGES)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001
    """The folder of a finished run in `run`, its images, and its questions."""
    folder = tmp_path_factory.mktemp("damage")
    write_inputs(folder)
    command(config_of(folder, folder / "run"))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the run, in the folder that the command uses."""
    return shutil.copytree(original / "run", tmp_path / "run")


def mpa_ray_audit(folder: Path, *options: str) -> int | None:
    """The exit code of the command."""
    try:
        return HANDLERS["audit"](parse(COMMANDS["audit"], [str(folder), *options]))
    except ConfigError:
        return 2


def deep(folder: Path) -> list[Finding]:
    return audit_deep(Run(LocalStorage(str(folder)), allows_damage=True))


def test_an_undamaged_run_is_clean(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deep(folder) == []
    assert mpa_ray_audit(folder, "--deep") == 0
    assert "damage" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("num_bits", [1, pytest.param(8, marks=pytest.mark.long)])
def test_every_flipped_bit_is_noticed(folder: Path, num_bits: int) -> None:
    rng = random.Random(1)
    noticed: Counter[str] = Counter()
    for name in one_of_each_kind(folder):
        path = folder / name
        whole = path.read_bytes()
        for bit in rng.sample(range(8 * len(whole)), num_bits):
            flip(path, bit)
            found = {finding.path for finding in deep(folder)}
            is_harmless = path.suffix == ".json" and values_of(path) == json.loads(whole)
            assert found == {name} or is_harmless or name in found, f"bit {bit} of {name}: {found}"
            noticed[kind_of(name)] += name in found
            path.write_bytes(whole)
    assert len(noticed) > 30
    assert min(noticed.values()) > 0 or num_bits == 1


@pytest.mark.long
@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"{}", b"[1]", b'{"shard": 3}', b"PAR1"])
def test_no_content_ends_an_audit_with_a_traceback(folder: Path, content: bytes) -> None:
    for name in one_of_each_kind(folder):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(content)
        # A whole JSON object without a digest may be that of an older version.
        if not (content[:1] == b"{" and path.suffix == ".json"):
            assert name in {finding.path for finding in deep(folder)}, name
        assert mpa_ray_audit(folder) in (0, 1, 2)
        path.write_bytes(whole)


def repaired_by_the_same_command(folder: Path, original: Path) -> list[str]:
    """Find damage, repair it, run the same command, and return the files that were found."""
    # What attempts took, which commands trained, and the checkpoints of a finished training are not made again.
    not_again = ("phases/", "owners/", "/checkpoint_")
    names = [name for name in checked_files(original / "run") if not any(part in name for part in not_again)]
    found = deep(folder)
    assert all(finding.remedy for finding in found)
    assert mpa_ray_audit(folder, "--repair") == 1 or not found
    config = config_of(original, folder)
    command(config)
    left = deep(folder)
    assert left == [], [(finding.path, finding.problem) for finding in left]
    assert audit(Run(LocalStorage(str(folder)))).problems == []
    assert set(map(kind_of, checked_files(folder))) >= set(map(kind_of, names))
    assert different_results(rows_of(original / "run"), rows_of(folder)) == []
    return [finding.path for finding in found]


@pytest.mark.long
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_each_kind_of_file_is_made_again(folder: Path, original: Path, tmp_path: Path, damage: str) -> None:
    for number, name in enumerate(one_of_each_kind(folder)):
        run_dir = shutil.copytree(folder, tmp_path / f"{number}/run")
        if damage == "flip":
            flip(run_dir / name, 8 * (run_dir / name).stat().st_size // 2)
            assert name in repaired_by_the_same_command(run_dir, original)
        elif name != "run.json":
            # A directory without run.json is no run.
            (run_dir / name).unlink()
            repaired_by_the_same_command(run_dir, original)


def test_files_of_all_kinds_are_made_again_together(folder: Path, original: Path) -> None:
    for name in one_of_each_kind(folder):
        if name != "run.json" and not name.startswith("fingerprints/"):
            flip(folder / name, 8 * ((folder / name).stat().st_size // 2))
    # The checksums of some damaged files are in other damaged files.
    while any(finding.repairs for finding in deep(folder)):
        assert mpa_ray_audit(folder, "--repair") == 1
    repaired_by_the_same_command(folder, original)
    assert (folder / "corpus/source.json").exists()


def test_damaged_rows_are_made_again_with_all_that_depends_on_them(folder: Path, original: Path) -> None:
    names = [
        f"corpus/commits/{SHARD}.json",
        next(path for path in checked_files(folder) if path.startswith(f"annotations/data/{SHARD}")),
        next(path for path in checked_files(folder) if path.startswith("evaluation/held/questions/data/000000")),
        f"{TRAINING}/merged/model.safetensors",
    ]
    for name in names:
        flip(folder / name, 100)
    before = {name: (folder / name).read_bytes() for name in checked_files(folder) if "/commits/" in name}
    assert sorted(repaired_by_the_same_command(folder, original)) == sorted(names)
    run = Run(LocalStorage(str(folder)))
    assert {name: (folder / name).read_bytes() for name in before} == before, "no marker is changed"
    # The corpus came out the same, so only the annotations with the damaged file were made again.
    assert run.annotations.generations() == {SHARD: 2}
    assert run.verdicts("small").generations().keys() == {SHARD}
    assert run.is_trained_before_redo("small", "parity")


def test_align_does_not_end_well_where_its_counts_have_problems(folder: Path, original: Path) -> None:
    (folder / f"verdicts/small/commits/{SHARD}.json").unlink()
    context = RunContext.from_checked(config_of(original, folder)).with_finished_rounds()
    (error,) = score_and_report(context).values()
    assert isinstance(error, CountsDiffer)
    assert f"verdicts/small: shard {SHARD} is missing" in str(error)


def test_damage_of_the_d_pi_of_another_matcher_is_found(folder: Path, original: Path) -> None:
    """In earlier versions, only those of matchers without parameters were read."""
    tree = config_of(original, folder).model_dump(mode="json")
    tree["identify"]["matcher"] = {"kind": "numeric", "tolerance": 0.05}
    rematch(RunContext.from_checked(RunConfig.model_validate(tree)))
    (name,) = (path for path in checked_files(folder) if path.endswith("rematch/numeric-0.05.json"))
    (rows,) = (path for path in checked_files(folder) if path.endswith("rematch/numeric-0.05/parity.parquet"))
    assert deep(folder) == []
    for path in (rows, name):
        flip(folder / path, 200)
        assert [finding.path for finding in deep(folder)] == [path]
        flip(folder / path, 200)


def test_damaged_rows_are_never_used(folder: Path) -> None:
    (data,) = folder.glob(f"annotations/data/{SHARD}-*.parquet")
    flip(data, 400)
    run = Run(LocalStorage(str(folder)))
    for read in (run.annotations.read, run.annotations.table, lambda shard: run.annotations.columns(shard, ["answer"])):
        with pytest.raises(DamagedFile, match=r"checksum.*audit RUN --repair"):
            read(SHARD)
    flip(folder / "parity/small/parity.parquet", 400)
    with pytest.raises(DamagedFile, match=r"parity/small/parity\.parquet is damaged"):
        read_parity(run, "small")


def check_files_in_parts(folder: Path) -> None:
    for part in range(2):
        check_files(folder, part, 2)


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", ".metadata", PROGRESS, "checksums-1.json"])
@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_damaged_checkpoint_is_named_and_not_loaded(tmp_path: Path, name: str, is_deleted: bool) -> None:
    run = Run(LocalStorage(str(tmp_path)))
    earlier, latest = (tmp_path / write_checkpoint(run, TRAINING, f"checkpoint_{number}") for number in range(2))
    check_files(latest)
    if is_deleted:
        (latest / name).unlink()
    else:
        flip(latest / name, 8 * 10)
    if not (is_deleted and name == "checksums-1.json"):
        with pytest.raises(DamagedFile, match=name):
            check_files_in_parts(latest)
    check_files(earlier)
    run.storage.create(f"{TRAINING}/owners/1.json", b'{"number": 1, "host": "a", "pid": 1}')
    findings = list(student_findings(run, {"small": ["parity"]}, Progress("audit", None, "files")))
    if is_deleted and name in (PROGRESS, "checksums-1.json"):
        # Without the first, the checkpoint is not complete; without the second, it is that of an earlier version.
        assert findings == []
    else:
        assert [finding.path for finding in findings] == [latest.relative_to(tmp_path).joinpath(name).as_posix()]
        assert findings[0].repair()
    is_used = is_deleted and name == "checksums-1.json"
    assert inherited_checkpoint(run.storage, TRAINING, 2) == f"{TRAINING}/checkpoints/checkpoint_{int(is_used)}"
    assert list(student_findings(run, {"small": ["parity"]}, Progress("audit", None, "files"))) == []


def test_rows_that_come_out_the_same_count_as_unchanged(folder: Path) -> None:
    run = Run(LocalStorage(str(folder)))
    rows = run.corpus.read(SHARD)
    run.corpus.markers.withdraw(SHARD)
    assert run.corpus.missing([SHARD]) == [SHARD]
    assert not run.corpus.is_committed(SHARD)
    assert run.corpus.commit_missing(SHARD, rows)
    assert not run.corpus.commit_missing(SHARD, rows)
    assert outdated(run.annotations, run.corpus, [SHARD]) == []
    assert run.corpus.version() == ""
    run.corpus.markers.withdraw(SHARD)
    assert run.corpus.commit_missing(SHARD, rows[:1])
    assert outdated(run.annotations, run.corpus, [SHARD]) == [SHARD]


def test_files_left_behind_are_removed_from_all_folders(folder: Path) -> None:
    before = set(checked_files(folder))
    left = [f"{TRAINING}/{name}/data/000000-dead.parquet" for name in ("epoch", "held_out", "check/answers")]
    left += [f"evaluation/.{'a' * 16}", f"{TRAINING}/merged/.{'0' * 16}"]
    for name in left:
        (folder / name).write_bytes(b"x")
    collected = collect_garbage(Run(LocalStorage(str(folder))), timedelta(seconds=-5))
    assert (collected.num_files, collected.num_uploads) == (3, 2)
    assert set(checked_files(folder)) == before


def test_files_that_a_damaged_marker_may_name_are_not_garbage(folder: Path) -> None:
    (data,) = folder.glob(f"verdicts/small/data/{SHARD}-*.parquet")
    flip(folder / f"verdicts/small/commits/{SHARD}.json", 50)
    collect_garbage(Run(LocalStorage(str(folder))), timedelta(seconds=-5))
    assert data.is_file()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server with an empty bucket, which the environment names."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield endpoint


def test_folders_that_a_console_created_in_a_bucket_are_ignored(endpoint: str) -> None:
    storage = S3Storage("s3://bucket/run", ObjectStoreConfig(endpoint_url=endpoint))
    run = Run(storage)
    run.corpus.commit("000000", [])
    for folder in ("corpus/commits/", "corpus/generations/", "corpus/data/", "phases/"):
        client(endpoint).put_object(Bucket="bucket", Key=f"run/{folder}")
    assert run.corpus.markers.listed() == run.corpus.committed() == ["000000"]
    assert run.corpus.generations() == {}
    assert [file.path for file in storage.details("corpus/commits")] == ["corpus/commits/000000.json"]
    assert storage.digest("corpus/commits/000000.json")[0] > 0


def repaired_files(run: Run) -> set[str]:
    return {finding.path for finding in audit_deep(run) if finding.repair()}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_in_a_bucket_is_repaired(tmp_path: Path, patch: pytest.MonkeyPatch, endpoint: str) -> None:  # noqa: ARG001
    run_dir = f"s3://bucket/{tmp_path.name}"
    storage = S3Storage(run_dir, ObjectStoreConfig(endpoint_url=endpoint))
    write_inputs(tmp_path)
    config = config_of(tmp_path, run_dir)
    command(config)

    def copy(name: str) -> Path:
        for key in keys_of(endpoint, f"{tmp_path.name}/"):
            (tmp_path / name / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / key).write_bytes(storage.read(key))
        return tmp_path / name

    def damage() -> list[str]:
        return sorted(finding.path for finding in audit_deep(Run(storage, allows_damage=True)))

    assert damage() == []
    whole = copy("whole")
    names = one_of_each_kind(whole)
    # A fingerprint is restored from its copy in run.json, and markers show that the copy is right.
    fingerprints = {name for name in names if name.startswith("fingerprints/")}
    for damaged in (set(names) - fingerprints - {"run.json"}, fingerprints, {"run.json"}):
        for name in damaged:
            storage.write(name, flipped(content := storage.read(name), 8 * (len(content) // 2)))
        # A file whose checksum is in a damaged file is made again unread.
        while repaired := repaired_files(Run(storage, allows_damage=True)):
            assert repaired <= damaged
            if repaired == {"run.json"}:
                # Until the same command writes it again, the directory holds no run.
                break
        command(config)
        assert damage() == []
        assert audit(Run(storage)).problems == []
        assert different_results(rows_of(whole), rows_of(copy(f"after-{len(damaged)}"))) == []


def test_all_pages_of_unfinished_uploads_are_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    aborted: list[str] = []

    def call(_: object, operation: str, request: dict[str, str]) -> dict[str, object]:
        if operation == "AbortMultipartUpload":
            aborted.append(request["Key"])
            return {}
        assert operation == "ListMultipartUploads"
        page = int(request.get("KeyMarker", "0"))
        upload = {"Key": f"run/{page}", "UploadId": "u", "Initiated": NOW}
        return {"Uploads": [upload], "IsTruncated": page < 2, "NextKeyMarker": f"{page + 1}", "NextUploadIdMarker": "u"}

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    store = ObjectStore(ObjectStoreConfig())
    assert store.abort_uploads("bucket", "run/", NOW) == 0
    assert store.abort_uploads("bucket", "run/", NOW + timedelta(seconds=1)) == 3
    assert aborted == ["run/0", "run/1", "run/2"]
