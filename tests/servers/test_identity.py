"""What identifies a model: its content or its commit, wherever it is, and only the settings that change replies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import file_download

from mpa_ray.config import BenchmarkConfig, HoldoutConfig, ObjectStoreConfig, RunConfig, StudentConfig, VllmEngineConfig
from mpa_ray.config.engines import ARGUMENTS_WITHOUT_EFFECT
from mpa_ray.corpus.places.places import Places
from mpa_ray.engine.vllm.known_arguments import known_arguments
from mpa_ray.errors import FingerprintMismatch
from mpa_ray.evaluation.labelled_identity import labelled_identity
from mpa_ray.models import hub
from mpa_ray.models.checkpoints import base_of_adapter, local_folder, model_identity
from mpa_ray.models.hub import hub_commit, split_revision
from mpa_ray.phases.context import RunContext
from mpa_ray.run.fingerprint import corpus_fingerprint, level_fingerprint
from mpa_ray.run.run import Run
from mpa_ray.run.versions import engine_versions, mixed_versions
from mpa_ray.storage.digests import DigestCache, LocalContent, ObjectContent, sha256_of_all, sha256_of_file
from mpa_ray.storage.object_store import ObjectStore
from mpa_ray.storage.open import open_storage
from mpa_ray.storage.user_cache import CACHE_VARIABLE, cache_folder
from mpa_ray.tasks.library import find_task
from tests.s3_server import client, s3_server_of_user

STORE = ObjectStoreConfig()
FIRST, SECOND = "1" * 40, "2" * 40
BYTES_PER_PART = 5 * 2**20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user, of which this process knows no digest."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of a model; `main` is the first. The hub itself cannot be reached."""
    for module in (huggingface_hub.constants, file_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_down", {huggingface_hub.constants.ENDPOINT})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub_commit.cache_clear()
    folder = tmp_path / "hub/models--owner--name"
    for commit in (FIRST, SECOND):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text(f'{{"commit": "{commit}"}}')
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(FIRST)
    (folder / "refs/v2").write_text(SECOND)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server_of_user() as endpoint:
        yield endpoint


def checkpoint(folder: Path, num_weight_bytes: int = 100) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
    (folder / "model.safetensors").write_bytes(os.urandom(num_weight_bytes))
    return folder


def later(folder: Path) -> DigestCache:
    """The digests that a process finds in the folder of the cache a minute from now."""
    return DigestCache(folder, clock=lambda: time.time() + 60)


def sha256(file: Path, known: DigestCache) -> str:
    return sha256_of_all([LocalContent(file)], "file", known)[0]


class Unreadable(LocalContent):
    """A file whose content may not be read."""

    def pieces(self) -> Iterator[bytes]:
        pytest.fail("read")


def test_a_hub_model_is_identified_by_its_commit(hub_cache: Path) -> None:
    assert model_identity("owner/name", STORE) == f"owner/name@{FIRST}"
    (hub_cache / "refs/main").write_text(SECOND)
    # One process uses one commit.
    assert model_identity("owner/name", STORE) == f"owner/name@{FIRST}"
    hub_commit.cache_clear()
    assert model_identity("owner/name", STORE) == f"owner/name@{SECOND}"


def test_a_revision_of_a_hub_model_is_loaded_and_identified(hub_cache: Path) -> None:
    assert model_identity("owner/name@v2", STORE) == model_identity(f"owner/name@{SECOND}", STORE)
    assert local_folder(f"owner/name@{SECOND}", STORE) == str(hub_cache / "snapshots" / SECOND)
    assert local_folder("owner/name@v2", STORE) == str(hub_cache / "snapshots" / SECOND)
    assert split_revision("owner/name@v2") == ("owner/name", "v2")
    assert split_revision("s3://bucket/a@b") == ("s3://bucket/a@b", None)
    assert split_revision("./owner/name@v2") == ("./owner/name@v2", None)


@pytest.mark.usefixtures("hub_cache")
def test_the_models_of_a_command_are_fixed_at_their_commits(tmp_path: Path) -> None:
    checkpoint(tmp_path / "folder")
    tree = {
        "run_dir": str(tmp_path / "run"),
        "task": "demo_world",
        "source": {"path": str(tmp_path)},
        "teacher": {"model": "owner/name"},
        "students": [
            {"name": "branch", "model": "owner/name@v2"},
            {"name": "folder", "model": str(tmp_path / "folder")},
            {"name": "missing", "model": "owner/missing"},
            {"name": "scripted", "model": "owner/name", "engine": {"kind": "scripted"}},
        ],
        "evaluate": {
            "benchmarks": [{"name": "b", "path": str(tmp_path)}],
            "models": [{"name": "other", "model": "owner/name"}],
        },
    }
    config = RunContext.from_checked(RunConfig.model_validate(tree)).config
    assert config.evaluate is not None
    assert config.teacher.model == config.evaluate.models[0].model == f"owner/name@{FIRST}"
    models = [student.model for student in config.students]
    assert models == [f"owner/name@{SECOND}", str(tmp_path / "folder"), "owner/missing", "owner/name"]


def test_an_adapter_keeps_the_revision_of_its_base_model(tmp_path: Path) -> None:
    settings = tmp_path / "adapter_config.json"
    settings.write_text(f'{{"base_model_name_or_path": "owner/name", "revision": "{SECOND}"}}')
    assert base_of_adapter(tmp_path) == f"owner/name@{SECOND}"
    settings.write_text('{"base_model_name_or_path": "owner/name", "revision": null}')
    assert base_of_adapter(tmp_path) == "owner/name"


def test_a_byte_between_the_samples_changes_the_identity(tmp_path: Path) -> None:
    """Earlier versions read files over 64 MiB only at 256 places."""
    folder = checkpoint(tmp_path / "model")
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(2**27)
    before = model_identity(str(folder), STORE)
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(300_000)
        weights.write(b"x")
    assert model_identity(str(folder), STORE) != before


def test_the_same_files_have_one_identity_in_every_folder(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy/README.md").write_text("New scores.")
    assert model_identity(str(folder), STORE) == model_identity(str(tmp_path / "copy"), STORE)
    (tmp_path / "copy/config.json").rename(tmp_path / "copy/other.json")
    assert model_identity(str(folder), STORE) != model_identity(str(tmp_path / "copy"), STORE)


def test_a_later_process_reads_no_unchanged_file(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1" * 1000)
    expected = hashlib.sha256(b"1" * 1000).hexdigest()
    assert sha256(file, later(cache)) == expected
    assert sha256_of_all([Unreadable(file)], "file", later(cache)) == [expected]


def test_a_changed_file_is_read_again_even_with_its_old_time(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1" * 1000)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    before = sha256(file, later(cache))
    time.sleep(0.02)  # Longer than the step of the file system's clock.
    file.write_bytes(b"2" * 1000)
    os.utime(file, ns=times)
    assert sha256(file, later(cache)) != before


def test_the_digest_of_a_file_that_may_still_change_is_not_kept(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    sha256_of_file(tmp_path / "weights")
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["", "other-key " + "0" * 64, "{key} 12", "{key} zz"])
def test_a_damaged_cache_is_not_believed(tmp_path: Path, cache: Path, damage: str) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    before = sha256(file, later(cache))
    (kept,) = cache.iterdir()
    kept.write_text(damage.format(key=LocalContent(file).key))
    assert sha256(file, later(cache)) == before


def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path: Path, cache: Path) -> None:
    cache.write_text("A file in place of the folder.")
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    assert sha256(file, later(cache)) == hashlib.sha256(b"1").hexdigest()


NO_HOME = """
import encodings.idna, os, sys  # This user may not read the standard library.
from pathlib import Path
from mpa_ray.corpus.places.gcs import cloud_storage
from mpa_ray.config import BenchmarkConfig, ObjectStoreConfig, load_config
from mpa_ray.errors import ConfigError
from mpa_ray.storage.digests import sha256_of_file
from mpa_ray.storage.user_cache import cache_folder

os.setuid(54321)  # No user has this number.
print(sha256_of_file(Path(sys.argv[1])))
for call in (
    cache_folder,
    lambda: cloud_storage(ObjectStoreConfig(), "gs://bucket/x"),
    lambda: load_config("~/config.yaml"),
    lambda: BenchmarkConfig(path="~/q.jsonl"),
):
    try:
        call()
    except (ConfigError, ValueError) as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a home folder")
def test_a_user_without_a_home_folder_has_no_cache_but_digests() -> None:
    """A container may have a user without a name. In earlier versions, computing a digest failed there."""
    environment = {n: v for n, v in os.environ.items() if n not in ("HOME", CACHE_VARIABLE)}
    environment |= {"GCE_METADATA_ROOT": "127.0.0.9"}
    file = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-c", NO_HOME, str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    digest, folder, store, config, setting = done.stdout.splitlines()
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert folder.startswith(f"ConfigError {CACHE_VARIABLE} = None: is not set, and this user has no home folder")
    assert "this machine has no credentials" in store
    assert config.startswith("ConfigError --config = '~/config.yaml': cannot be read")
    assert "~ stands for the home folder, and this user has none" in setting


def test_names_that_are_not_utf8_have_digests(tmp_path: Path, cache: Path) -> None:
    """In earlier versions, such names ended the command with a traceback."""
    folder = checkpoint(Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe9l")))
    before = model_identity(str(folder), STORE)
    (folder / os.fsdecode(b"not\xe9s.txt")).write_text("1")
    assert model_identity(str(folder), STORE) not in (before, str(folder))
    weights = folder / "model.safetensors"
    expected = sha256(weights, later(cache))
    assert sha256_of_all([Unreadable(weights)], "file", later(cache)) == [expected]


def test_digests_are_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * (20 - number) * 1000)
    sha256_of_file(files[3])
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert sha256_of_all([LocalContent(file) for file in files], "files") == expected


def test_the_same_bytes_have_one_identity_at_a_store(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In earlier versions, the identity at s3:// was made of etags, which depend on the size of the parts."""
    folder = checkpoint(tmp_path / "model", 2 * BYTES_PER_PART + 3)
    names = []
    for num_bytes in (BYTES_PER_PART, 2 * BYTES_PER_PART, 10 * BYTES_PER_PART):
        config = ObjectStoreConfig(endpoint_url=server, multipart_bytes=num_bytes)
        storage = open_storage(f"s3://bucket/{num_bytes}", config)
        for file in folder.iterdir():
            storage.write(f"model/{file.name}", file.read_bytes())
        client(server).put_object(Bucket="bucket", Key=f"{num_bytes}/model/", Body=b"")
        names.append(f"s3://bucket/{num_bytes}/model")
    config = ObjectStoreConfig(endpoint_url=server)
    listed = ObjectStore(config).list("bucket", "", nested=True)
    assert len({file.etag for file in listed if file.key.endswith(".safetensors")}) == 3
    assert {model_identity(name, config) for name in names} == {model_identity(str(folder), config)}
    # For another process, the folder has another name.
    cache_folder().rename(tmp_path / "of another process")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "of another process"))
    monkeypatch.setattr(ObjectContent, "pieces", lambda _: pytest.fail("read again"))
    assert model_identity(names[0], config) == model_identity(names[1] + "/", config)


def test_an_object_with_a_known_sha256_is_not_read(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "model", BYTES_PER_PART + 1)
    config = ObjectStoreConfig(endpoint_url=server, multipart_bytes=BYTES_PER_PART)
    expected = model_identity(str(folder), config)
    open_storage("s3://bucket/exported", config).put_folder(folder, "merged")
    for file in folder.iterdir():
        client(server).put_object(
            Bucket="bucket", Key=f"whole/{file.name}", Body=file.read_bytes(), ChecksumAlgorithm="SHA256"
        )
    monkeypatch.setattr(ObjectContent, "pieces", lambda _: pytest.fail("read"))
    assert model_identity("s3://bucket/exported/merged", config) == expected
    assert model_identity("s3://bucket/whole", config) == expected


def test_an_object_that_is_replaced_while_it_is_read_has_no_digest(server: str) -> None:
    config = ObjectStoreConfig(endpoint_url=server)
    store = ObjectStore(config)
    store.put("bucket", "replaced/config.json", b"{}")
    (listed,) = store.list("bucket", "replaced/", nested=False)
    store.put("bucket", "replaced/config.json", b"[]")
    with pytest.raises(OSError, match="was replaced while it was read"):
        sha256_of_all([ObjectContent(store, "bucket", listed)], "model")


@pytest.mark.parametrize(
    "arguments",
    [
        {"hf_token": "hf_x"},
        {"download_dir": "/data"},
        {"load_format": "runai_streamer"},
        {"cpu_offload_gb": 4},
        {"max_loras": 4},
        {"log_level": "DEBUG"},
    ],
)
def test_an_argument_that_changes_no_reply_is_not_in_the_fingerprint(arguments: dict[str, object]) -> None:
    assert VllmEngineConfig(engine_args=arguments).identity_fields() == VllmEngineConfig().identity_fields()


@pytest.mark.parametrize(
    "arguments",
    [
        {"load_format": "dummy"},
        {"quantization": "fp8"},
        {"kv_cache_dtype": "fp8"},
        {"tokenizer": "other"},
        {"hf_overrides": {"x": 1}},
        {"mm_processor_kwargs": {"crop_to_patches": True}},
        {"an_argument_of_a_later_vllm": 1},
    ],
)
def test_any_other_argument_is_in_the_fingerprint(arguments: dict[str, object]) -> None:
    assert VllmEngineConfig(engine_args=arguments).identity_fields() != VllmEngineConfig().identity_fields()


def test_an_argument_counts_as_the_setting_of_its_name() -> None:
    by_argument = VllmEngineConfig(engine_args={"dtype": "float16", "max_model_len": 512})
    assert by_argument.identity_fields() == VllmEngineConfig(dtype="float16", max_model_len=512).identity_fields()


def test_the_list_of_arguments_names_arguments_of_vllm() -> None:
    """vLLM sometimes removes arguments, so a few names may be those of another version."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    known = known_arguments()
    assert known >= {"quantization", "gpu_memory_utilization", "enable_log_requests"}
    assert len(ARGUMENTS_WITHOUT_EFFECT - known) <= 4


def labelled_set(folder: Path, answer: str = "yes") -> BenchmarkConfig:
    folder.mkdir(parents=True, exist_ok=True)
    row = {"question_id": "q", "image": "a.png", "question": "Is it?", "answers": [answer]}
    (folder / "set.jsonl").write_text(json.dumps(row))
    return BenchmarkConfig(path=str(folder / "set.jsonl"))


def vqa_set(folder: Path, answer: str) -> BenchmarkConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "OpenEnded_mscoco_val2014_questions.json").write_text('{"questions": []}')
    (folder / "mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": [answer]}))
    return BenchmarkConfig(kind="okvqa", path=str(folder / "OpenEnded_mscoco_val2014_questions.json"))


def test_a_labelled_set_is_identified_by_its_content(tmp_path: Path) -> None:
    places = Places(STORE)
    one, moved, other = (
        labelled_identity(labelled_set(tmp_path / folder, answer), places)
        for folder, answer in (("one", "yes"), ("moved/there", "yes"), ("other", "no"))
    )
    assert one == moved
    assert one != other


def test_a_labelled_set_has_one_identity_at_a_store(server: str, tmp_path: Path) -> None:
    config = ObjectStoreConfig(endpoint_url=server)
    local = labelled_set(tmp_path)
    content = Path(local.path).read_bytes()
    client(server).put_object(Bucket="bucket", Key="labelled/set.jsonl", Body=content)
    remote = BenchmarkConfig(path="s3://bucket/labelled/set.jsonl")
    assert labelled_identity(remote, Places(config)) == labelled_identity(local, Places(config))


def test_the_answers_beside_the_questions_belong_to_a_labelled_set(tmp_path: Path) -> None:
    """In earlier versions, answers in a file that `annotations` did not name were left out."""
    places = Places(STORE)
    one, other = (labelled_identity(vqa_set(tmp_path / answer, answer), places) for answer in ("yes", "no"))
    assert one != other


class _Site(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A web server with the files of the test's folder; it knows no ranges."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Site, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_labelled_set_on_the_web_that_changed_is_another(tmp_path: Path, site: str) -> None:
    """In earlier versions, a file of the same size had the same digest for as long as the process lived."""
    labelled_set(tmp_path, "yes!")
    remote = BenchmarkConfig(path=f"{site}/set.jsonl")
    before = labelled_identity(remote, Places(STORE))
    assert before == labelled_identity(BenchmarkConfig(path=str(tmp_path / "set.jsonl")), Places(STORE))
    labelled_set(tmp_path, "none")
    assert labelled_identity(remote, Places(STORE)) != before


@pytest.mark.parametrize(("name", "is_read_whole"), [("set.jsonl", True), ("set.parquet", False)])
def test_large_files_on_the_web_are_read_whole_unless_they_are_parquet(
    tmp_path: Path, site: str, name: str, is_read_whole: bool
) -> None:
    """In earlier versions, a change in the middle of a JSON file of more than 64 MiB went unnoticed."""
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**26 + 1)
    remote = BenchmarkConfig(path=f"{site}/{name}")
    before = labelled_identity(remote, Places(STORE))
    with (tmp_path / name).open("r+b") as file:
        file.seek(2**25)
        file.write(b"x")
    assert (labelled_identity(remote, Places(STORE)) != before) == is_read_whole
    with (tmp_path / name).open("r+b") as file:
        file.write(b"x")
    assert labelled_identity(remote, Places(STORE)) != before


def test_the_fingerprint_of_a_training_has_the_content_of_its_labelled_sets(scripted_config: RunConfig) -> None:
    """In earlier versions, it had their paths: a moved set was refused, and a changed one was not."""
    one = labelled_set(Path(scripted_config.run_dir).parent / "set")
    student = scripted_config.students[0]
    level = student.level.model_copy(
        update={"replay_from": one, "replay_share": 0.5, "holdout": HoldoutConfig(questions=one)}
    )
    student = student.model_copy(update={"level": level, "labels": one})
    task = find_task(scripted_config.task)

    def identity(student: StudentConfig, setting: str) -> dict[str, object]:
        return labelled_identity(student.labelled_sets[setting], Places(STORE))

    expected = labelled_identity(one, Places(STORE))
    fingerprint = level_fingerprint(scripted_config, task, student, "labels", identity)
    assert fingerprint["level.labels"] == expected
    assert fingerprint["level.holdout"]["questions"] == expected
    assert level_fingerprint(scripted_config, task, student, "parity", identity)["level.replay_from"] == expected
    assert one.path not in json.dumps(fingerprint)


def test_the_sizes_of_shards_are_not_in_the_fingerprint_of_the_corpus(scripted_config: RunConfig) -> None:
    source = scripted_config.source.model_copy(update={"shard_size": 7, "max_shard_bytes": 10**6})
    other = scripted_config.model_copy(update={"source": source})
    assert corpus_fingerprint(other) == corpus_fingerprint(scripted_config)


def test_the_marker_of_a_shard_names_the_versions_of_the_engine(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    run.annotations.commit("000000", [], versions=engine_versions())
    commit = run.annotations.commit_of("000000")
    assert commit is not None
    assert commit.versions["transformers"] == version("transformers")
    assert {"vllm", "torch", "transformers"} >= set(commit.versions)


def test_a_dataset_of_several_versions_is_named(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    run.annotations.commit("000000", [], versions={"vllm": "0.31", "torch": "2.13"})
    run.annotations.commit("000001", [])
    assert mixed_versions([run.annotations]) == []
    run.annotations.commit("000002", [], versions={"vllm": "0.32", "torch": "2.13"})
    # The second generation keeps rows of the first.
    run.annotations.commit("000000", [], 1, 0, {"vllm": "0.32", "torch": "2.13"})
    assert mixed_versions([run.annotations, run.verdicts("small")]) == [
        "annotations: made with several versions of vllm: 0.31 (1 shards), 0.32 (2 shards)"
    ]


def test_a_new_commit_on_the_hub_is_named_with_the_way_to_the_earlier_one(tmp_path: Path) -> None:
    run = Run.open(str(tmp_path))
    run.register_fingerprint("annotations", {"teacher.model": f"owner/name@{FIRST}", "top_p": 1})
    run.annotations.commit("000000", [])
    with pytest.raises(FingerprintMismatch, match=f"new commit.* set the model to owner/name@{FIRST}"):
        run.check_fingerprint("annotations", {"teacher.model": f"owner/name@{SECOND}", "top_p": 1})
    with pytest.raises(FingerprintMismatch, match="Undo the change"):
        run.check_fingerprint("annotations", {"teacher.model": f"owner/other@{SECOND}", "top_p": 1})
    with pytest.raises(FingerprintMismatch, match="Undo the change"):
        run.check_fingerprint("annotations", {"teacher.model": f"owner/name@{SECOND}", "top_p": 0})
