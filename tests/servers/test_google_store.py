"""Objects at gs://: missing credentials, and errors of the store by their kind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pyarrow.fs import GcsFileSystem

from mpa_ray.cli.run_job import run_job
from mpa_ray.config import BenchmarkConfig, EvaluateConfig, EvaluationRunConfig, ObjectStoreConfig, SourceConfig
from mpa_ray.corpus.index import check_source
from mpa_ray.corpus.places import gcs
from mpa_ray.corpus.places.gcs import ArrowPlace
from mpa_ray.corpus.places.places import Places
from mpa_ray.errors import AccessLost, ConfigError, NoSuchBucket, TransientError
from mpa_ray.evaluation.labelled_set import LabelledSet
from mpa_ray.phases.preflight import check_config

PLACES = Places(ObjectStoreConfig())


class _Answers(BaseHTTPRequestHandler):
    """Refuses each request with the status that the bucket's name contains."""

    def do_GET(self) -> None:
        status = int(self.path.split("/b/status-")[1][:3])
        text = "The specified bucket does not exist." if "no-bucket" in self.path else f"refused with {status}"
        body = json.dumps({"error": {"code": status, "message": text, "errors": [{"message": text}]}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def place() -> Iterator[ArrowPlace]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        files = GcsFileSystem(
            anonymous=True,
            scheme="http",
            endpoint_override=f"127.0.0.1:{server.server_port}",
            retry_time_limit=timedelta(seconds=0.5),
        )
        yield ArrowPlace(files, "gs://")
        server.shutdown()


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    # Port 80 of this address is closed.
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.9")
    gcs._no_credentials.cache_clear()
    yield
    gcs._no_credentials.cache_clear()


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("path", ["gs://bucket", "gs://bucket/images", "gs://bucket/*.png", "gs://bucket/list.csv"])
def test_missing_credentials_end_a_command_at_once(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert run_job(lambda: check_source(SourceConfig(path=path), PLACES)) == 2
    assert time.monotonic() - started < 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ConfigError: source.path = '{path}': cannot be accessed: this machine has no credentials")
    assert "gcloud auth application-default login" in line


@pytest.mark.usefixtures("no_credentials")
def test_missing_credentials_name_the_benchmark() -> None:
    evaluate = EvaluateConfig(benchmarks=[BenchmarkConfig(path="gs://bucket/q.jsonl")])
    with pytest.raises(ConfigError, match=r"^evaluate\.benchmarks\.0\.path = 'gs://bucket/q\.jsonl': cannot be acc"):
        check_config(EvaluationRunConfig(run_dir="run", evaluate=evaluate))


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("setting", ["path", "annotations"])
def test_missing_credentials_name_the_setting_of_a_labelled_set(tmp_path: Path, setting: str) -> None:
    (tmp_path / "q.json").write_text("{}")
    settings = {"kind": "okvqa", "path": str(tmp_path / "q.json")} | {setting: "gs://bucket/x.json"}
    labelled = LabelledSet(BenchmarkConfig.model_validate(settings), "students.0.labels", PLACES)
    with pytest.raises(ConfigError, match=rf"^students\.0\.labels\.{setting} = 'gs://bucket/x\.json': cannot be acc"):
        labelled.check_files()


@pytest.mark.usefixtures("no_credentials")
def test_a_key_file_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/keys/none.json")
    with pytest.raises(ConfigError, match=r"names '/keys/none\.json', which is not a file"):
        check_source(SourceConfig(path="gs://bucket/x"), PLACES)


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("where", ["variable", "login"])
def test_credentials_are_recognized(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".config/gcloud/application_default_credentials.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    if where == "variable":
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file.rename(tmp_path / "key.json")))
    assert gcs._no_credentials() is None


@pytest.mark.parametrize(
    ("bucket", "kind"),
    [
        ("status-401", AccessLost),
        ("status-403", PermissionError),
        ("status-404-no-bucket", NoSuchBucket),
        ("status-404", FileNotFoundError),
        ("status-400", OSError),
        ("status-503", TransientError),
    ],
)
def test_errors_of_the_store_have_their_kind(place: ArrowPlace, bucket: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        place.read(f"gs://{bucket}/x.png")
    text = str(caught.value)
    assert text.startswith(f"gs://{bucket}/x.png: ")
    assert "metadata" not in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("bucket", "exit_code"), [("status-403", 2), ("status-404-no-bucket", 2), ("status-401", 3), ("status-503", 3)]
)
def test_a_bucket_that_cannot_be_listed_ends_in_one_line(
    place: ArrowPlace, bucket: str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(lambda: next(place.walk(f"gs://{bucket}/images")) and None) == exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert f"gs://{bucket}/images" in line
