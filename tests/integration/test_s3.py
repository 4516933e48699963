"""Runs and images at s3://, on a local server with the S3 API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.faulty_proxy import FaultyProxy, WebFault
from mpa_ray.config import ObjectStoreConfig, SourceConfig
from mpa_ray.corpus.index import Selection
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.corpus.sources.open import kind_of
from mpa_ray.errors import ConfigError
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.models.checkpoints import local_model, model_identity, processor_folder
from mpa_ray.records import ImageRef, Reason
from mpa_ray.run.garbage import Collected, collect_garbage
from mpa_ray.run.run import Run
from mpa_ray.storage.object_store import ObjectStore
from mpa_ray.storage.open import open_storage
from mpa_ray.storage.s3 import S3Storage
from tests.conftest import scripted_tree
from tests.s3_server import (
    SECRET,
    client,
    environment,
    keys_containing,
    s3_server_of_user,
    upload,
)
from tests.sources import KINDS, Maker, as_tars

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The server's URL. Its credentials are in the environment, as on a user's machine."""
    with s3_server_of_user() as endpoint:
        yield endpoint


@pytest.fixture
def object_store(server: str) -> ObjectStoreConfig:
    return ObjectStoreConfig(endpoint_url=server, max_attempts=2, first_pause_s=0.01)


@pytest.fixture
def storage(object_store: ObjectStoreConfig, request: pytest.FixtureRequest) -> S3Storage:
    storage = open_storage(f"s3://bucket/{request.node.name}/", object_store)
    assert isinstance(storage, S3Storage)
    return storage


def test_objects_are_written_read_and_listed(storage: S3Storage, tmp_path: Path) -> None:
    storage.write("a/b.json", b"1")
    storage.write("a/b.json", b"2")
    storage.write("a/deeper/c.json", b"3")
    storage.write("a/.hidden", b"4")
    (tmp_path / "weights.bin").write_bytes(b"5" * 100)
    storage.put_folder(tmp_path, "a")
    assert storage.read("a/b.json") == b"2"
    assert list(storage.list("a")) == ["a/b.json", "a/weights.bin"]
    assert storage.exists("a/b.json")
    assert not storage.exists("a/none")
    with pytest.raises(FileNotFoundError, match="a/none"):
        storage.read("a/none")


def test_one_of_many_creators_wins(storage: S3Storage) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: storage.create("marker", str(i).encode()), range(16)))
    assert won.count(True) == 1
    assert storage.read("marker") == str(won.index(True)).encode()
    assert storage.create("marker", storage.read("marker")), "a retry after the response to the first request was lost"


def test_large_objects_are_uploaded_in_parts(object_store: ObjectStoreConfig) -> None:
    parts = object_store.model_copy(update={"multipart_bytes": 5 * 2**20})
    storage = S3Storage("s3://bucket/large", parts)
    content = bytes(range(256)) * (11 * 2**12)
    storage.write("file", content)
    assert storage.read("file") == content


def test_a_checkpoint_is_downloaded_once(
    storage: S3Storage, object_store: ObjectStoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPA_RAY_CACHE", str(tmp_path))
    storage.write("model/config.json", b"{}")
    name = f"{storage.root}/model"
    folder = local_model(name, object_store)
    assert Path(folder, "config.json").read_bytes() == b"{}"
    assert local_model(name, object_store) == folder
    before = model_identity(name, object_store)
    storage.write("model/config.json", b"[]")
    assert model_identity(name, object_store) != before
    assert local_model(name, object_store) != folder
    with pytest.raises(ConfigError, match="holds no files"):
        local_model(f"{storage.root}/none", object_store)


def test_a_processor_is_downloaded_without_weights(
    storage: S3Storage, object_store: ObjectStoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPA_RAY_CACHE", str(tmp_path))
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"):
        storage.write(f"model/{name}", b"{}")
    storage.write("adapter/adapter_config.json", b'{"base_model_name_or_path": "%s/model"}' % storage.root.encode())
    folder = processor_folder(f"{storage.root}/model", object_store)
    assert {file.name for file in Path(folder).iterdir()} == {"config.json", "tokenizer.json"}
    assert processor_folder(f"{storage.root}/adapter", object_store) == folder
    assert len(list(Path(local_model(f"{storage.root}/model", object_store)).iterdir())) == 4


def test_nothing_is_lost_despite_many_faults(server: str, tmp_path: Path) -> None:
    content = os.urandom(11 * 2**20)
    (tmp_path / "large.bin").write_bytes(content)
    with FaultyProxy(server, share=0.4, seed=3) as proxy:
        config = ObjectStoreConfig(
            endpoint_url=proxy.url, max_attempts=40, first_pause_s=0.001, read_timeout_s=5, multipart_bytes=5 * 2**20
        )
        store = ObjectStore(config)
        for number in range(25):
            key, body = f"bad-day/{number}", f"{number}".encode() * 1000
            store.put("bucket", key, body)
            assert store.get("bucket", key) == body
            assert store.create("bucket", f"{key}.marker", body)
            assert not store.create("bucket", f"{key}.marker", b"another")
        store.upload(tmp_path / "large.bin", "bucket", "bad-day/large", {})
        store.download("bucket", "bad-day/large", tmp_path / "copy.bin")
        assert (tmp_path / "copy.bin").read_bytes() == content
        store.put("bucket", "bad-day/large", content[::-1])
        assert store.get("bucket", "bad-day/large") == content[::-1]
        assert len(list(store.list("bucket", "bad-day/", nested=True))) == 51
        injected = proxy.counts()["injected"]
    assert {fault for fault in WebFault if any(key.startswith(fault) for key in injected)} == set(WebFault)


def test_a_permanent_error_is_not_retried(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    store = ObjectStore(ObjectStoreConfig(endpoint_url=server, max_attempts=9, first_pause_s=9))
    with pytest.raises(OSError, match=r"NoSuchBucket.*\(attempt 1\)"):
        store.upload(tmp_path / "file", "no-such-bucket", "key", {})


def test_an_unreachable_server_is_an_error_that_names_the_object(object_store: ObjectStoreConfig) -> None:
    gone = object_store.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(OSError, match=r"s3://bucket/run/x.*attempt 2"):
        S3Storage("s3://bucket/run", gone).read("x")


def run_job(job: str, *arguments: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"jobs/{job}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment(endpoint),
    )


COMMANDS = """
import sys
from mpa_ray.cli import main
sys.exit(next((code for command in sys.argv[2:] if (code := main([command, "--config", sys.argv[1]]))), 0))
"""
"""Runs commands until one fails, in one process: Ray is started once."""


def run_commands(config: Path, *commands: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMANDS, str(config), *commands],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment(endpoint),
    )


def listed(config: SourceConfig, places: Places, after: ImageRef | None = None) -> list[ImageRef]:
    return [item for item in Selection(config, places).listing(after) if isinstance(item, ImageRef)]


@pytest.mark.parametrize(("make", "kind"), KINDS, ids=[make.__name__ for make, _ in KINDS])
def test_every_kind_of_source_is_listed_and_read(
    make: Maker, kind: str, server: str, object_store: ObjectStoreConfig, tmp_path: Path
) -> None:
    contents = [f"picture {i:02d}".encode() * (i + 1) for i in range(30)]
    path = make(contents, tmp_path).relative_to(tmp_path)
    upload(tmp_path, server, f"sources/{make.__name__}")
    config = SourceConfig(path=f"s3://bucket/sources/{make.__name__}/{path}")
    places = Places(object_store)
    assert kind_of(config, places) == kind
    refs = listed(config, places)
    assert Reader(object_store).read([ref.uri for ref in refs]) == contents
    for position in (0, 11, 12, 28, 29):
        assert listed(config, places, refs[position]) == refs[position + 1 :]


def test_a_shard_of_a_tar_reads_only_its_own_bytes(
    server: str, object_store: ObjectStoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [os.urandom(300_000) for _ in range(12)]
    as_tars(contents, tmp_path)
    upload(tmp_path, server, "large")
    refs = listed(SourceConfig(path="s3://bucket/large/tars"), Places(object_store))
    sizes: list[int] = []
    get = ObjectStore.get

    def counted(*arguments: Any) -> bytes:
        sizes.append(len(content := get(*arguments)))
        return content

    monkeypatch.setattr(ObjectStore, "get", counted)
    assert Reader(object_store).read([ref.uri for ref in refs[4:7]]) == contents[4:7]
    # One request reads neighbouring images and the headers between them.
    assert len(sizes) == 1
    assert 900_000 <= sizes[0] < 920_000


def test_concurrent_listers_keep_the_order(server: str, object_store: ObjectStoreConfig) -> None:
    names = [
        "a",
        "a.png",
        "a/1.png",
        "a/b/2.png",
        "a/b.png",
        "a-c/3.png",
        "b/",
        "b/4.png",
        "b/c/d/5.png",
        "z.png",
        "é/6.png",
    ]
    for name in ["", *names]:
        client(server).put_object(Bucket="bucket", Key=f"tree/{name}", Body=b"1")
    expected = sorted((n for n in names if not n.endswith("/")), key=str.encode)
    place = Places(object_store).of("s3://bucket")
    for num_listers in (1, 2, 5, 50):
        assert [e.path for e in place.walk("s3://bucket/tree", "", num_listers)] == expected
        for number, after in enumerate(expected):
            assert [e.path for e in place.walk("s3://bucket/tree/", after, num_listers)] == expected[number + 1 :]


@pytest.mark.parametrize("entry", ["/etc/passwd", "file:///etc/passwd"])
def test_a_remote_list_cannot_name_local_files(entry: str, storage: S3Storage, object_store: ObjectStoreConfig) -> None:
    storage.write("list.txt", f"a.png\n{entry}\n".encode())
    config = SourceConfig(path=f"{storage.root}/list.txt")
    with pytest.raises(ConfigError, match=r"row 2: .* is a local file in a remote list, which is not allowed"):
        listed(config, Places(object_store))
    allowed = config.model_copy(update={"allow": ("local_files",)})
    assert [ref.uri for ref in listed(allowed, Places(object_store))] == [f"{storage.root}/a.png", entry]


def test_an_image_that_is_too_large_is_not_read_to_its_end(storage: S3Storage, object_store: ObjectStoreConfig) -> None:
    storage.write("large.png", b"1" * 5000)
    storage.write("empty.png", b"")
    uris = [f"{storage.root}/{name}.png" for name in ("large", "empty", "none")]
    contents = Reader(object_store, max_bytes=1000).read(uris)
    assert [c.reason if isinstance(c, ImageProblem) else c for c in contents] == [
        Reason.TOO_MANY_BYTES,
        b"",
        Reason.UNREADABLE,
    ]


def test_garbage_is_collected(storage: S3Storage, server: str) -> None:
    run = Run(storage)
    for rows in ([ImageRef("a", "/a")], [ImageRef("b", "/b")]):
        run.corpus.commit("000000", rows)
    run.write_json("corpus/manifest.json", {"num_images": 1, "num_shards": 1})
    run.write_json("run.json", {"config": {"students": []}})
    client(server).create_multipart_upload(
        Bucket="bucket", Key=storage.root.removeprefix("s3://bucket/") + "/parity/half"
    )
    # For this server, every upload started in 2010.
    assert collect_garbage(run, timedelta(hours=1)) == Collected(0, 0, 1)
    collected = collect_garbage(run, timedelta(seconds=-5))
    assert (collected.num_files, collected.num_uploads) == (1, 0)
    assert run.corpus.read("000000") == [ImageRef("a", "/a")]
    assert len(list(storage.list("corpus/data"))) == 1


def test_all_phases_work_with_images_and_a_run_at_s3(server: str, images: Path, tmp_path: Path) -> None:
    upload(images, server, "corpus")
    client(server).put_object(Bucket="bucket", Key="corpus/empty.png", Body=b"")
    tree: dict[str, Any] = scripted_tree(images, tmp_path)
    tree["run_dir"], tree["source"]["path"] = "s3://bucket/runs/one", "s3://bucket/corpus"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    done = run_commands(config, "index", "annotate", "identify", "report", endpoint=server)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    again = run_job("annotate", "--config", str(config), endpoint=server)
    assert again.stdout.splitlines() == ["annotate: already done"]
    audited = run_job("audit", "s3://bucket/runs/one", endpoint=server)
    counts = json.loads(audited.stdout)
    assert (audited.returncode, counts["images"], counts["problems"]) == (0, 61, [])
    assert counts["failed"] == {"empty_file": 1}
    assert keys_containing(SECRET, server, "runs/one/") == []


@pytest.mark.long
def test_two_drivers_at_once_commit_every_shard_once(server: str, images: Path, tmp_path: Path) -> None:
    upload(images, server, "shared")
    tree: dict[str, Any] = scripted_tree(images, tmp_path, latency_s=0.1, inconsistent_rate=0.2)
    tree["run_dir"], tree["source"]["path"] = "s3://bucket/runs/shared", "s3://bucket/shared"
    tree["teacher"]["max_images_in_flight"] = 8
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    for job in ("index", "annotate", "identify"):
        with ThreadPoolExecutor(2) as drivers:
            both = list(drivers.map(lambda _, j=job: run_job(j, "--config", str(config), endpoint=server), range(2)))
        assert [done.returncode for done in both] == [0, 0], both
    audited = run_job("audit", "s3://bucket/runs/shared", endpoint=server)
    counts = json.loads(audited.stdout)
    assert (audited.returncode, counts["images"], counts["annotated"], counts["problems"]) == (0, 60, 60, [])
