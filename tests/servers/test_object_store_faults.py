"""Errors of object stores: which requests are repeated, which are sent once, which errors end the run, and what all
threads share."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from mpa_ray.cli.run_job import run_job
from mpa_ray.config import ObjectStoreConfig, RunConfig, SourceConfig
from mpa_ray.corpus.index import check_source
from mpa_ray.corpus.places.local import LocalPlace
from mpa_ray.corpus.places.places import Places
from mpa_ray.corpus.read import Reader
from mpa_ray.errors import AccessLost, CannotWrite, ConfigError, NoSuchBucket, TransientError, Unfinished
from mpa_ray.imaging.decode import ImageProblem
from mpa_ray.phases.preflight import check_run
from mpa_ray.records import Reason
from mpa_ray.run.run import Run
from mpa_ray.storage import object_store
from mpa_ray.storage.faults import Fault, fault_of
from mpa_ray.storage.object_store import ObjectStore
from mpa_ray.storage.request_pace import Outage, RequestPace, short_first_contact
from tests.conftest import scripted_tree
from tests.refusing_proxy import Refusal, RefusingProxy
from tests.s3_server import CREDENTIALS, client, s3_server_of_user


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server_of_user() as endpoint:
        client(endpoint).put_object(Bucket="bucket", Key="image.png", Body=b"0123456789")
        yield endpoint


Behind = Callable[[Refusal], tuple[RefusingProxy, ObjectStoreConfig]]


@pytest.fixture
def behind(server: str) -> Iterator[Behind]:
    """Makes a proxy, and the settings of a store that is reached through it."""
    proxies: list[RefusingProxy] = []

    def make(refuses: Refusal) -> tuple[RefusingProxy, ObjectStoreConfig]:
        proxies.append(RefusingProxy(server, refuses).__enter__())
        return proxies[-1], ObjectStoreConfig(
            endpoint_url=proxies[-1].url, max_attempts=3, first_pause_s=0.01, max_outage_s=0.4
        )

    yield make
    for proxy in proxies:
        proxy.__exit__(None, None, None)


def always(status: int, code: str) -> Refusal:
    return lambda _method, _path, _number: (status, code)


def first(times: int, status: int, code: str) -> Refusal:
    return lambda _method, _path, number: (status, code) if number < times else None


@pytest.mark.parametrize("status", [500, 502, 503, 504, 507, 520, 529, 599, 429, 408, 425])
def test_errors_of_the_server_may_pass_whatever_their_name(status: int) -> None:
    assert fault_of(status, "NobodyKnowsThisName") in (Fault.TRANSIENT, Fault.SLOW_DOWN)
    assert fault_of(status, str(status)) in (Fault.TRANSIENT, Fault.SLOW_DOWN)


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (503, "SlowDownRead", Fault.SLOW_DOWN),
        (503, "SlowDownWrite", Fault.SLOW_DOWN),
        (503, "XMinioServerNotInitialized", Fault.SLOW_DOWN),
        (400, "ThrottlingException", Fault.SLOW_DOWN),
        (400, "RequestLimitExceeded", Fault.SLOW_DOWN),
        (403, "RequestThrottled", Fault.SLOW_DOWN),
        (400, "TooManyRequestsException", Fault.SLOW_DOWN),
        (400, "RequestTimeout", Fault.TRANSIENT),
        (200, "InternalError", Fault.TRANSIENT),
        (409, "OperationAborted", Fault.TRANSIENT),
        (400, "ExpiredToken", Fault.ACCESS_LOST),
        (403, "RequestTimeTooSkewed", Fault.ACCESS_LOST),
        (403, "InvalidAccessKeyId", Fault.ACCESS_LOST),
        (403, "SignatureDoesNotMatch", Fault.ACCESS_LOST),
        (403, "AccessDenied", Fault.PERMANENT),
        (404, "NoSuchBucket", Fault.PERMANENT),
        (404, "NoSuchKey", Fault.MISSING),
        (412, "PreconditionFailed", Fault.EXISTS),
        (416, "InvalidRange", Fault.PAST_END),
        (301, "PermanentRedirect", Fault.PERMANENT),
    ],
)
def test_the_fault_of_an_error(status: int, code: str, fault: Fault) -> None:
    assert fault_of(status, code) is fault


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "InternalError"), (503, "SlowDownRead"), (503, "XMinioServerNotInitialized"), (429, "429"), (507, "Full")],
)
def test_an_error_that_may_pass_is_repeated(behind: Behind, status: int, code: str) -> None:
    proxy, config = behind(first(2, status, code))
    assert ObjectStore(config).get("bucket", "image.png") == b"0123456789"
    assert len(proxy.requests) == 3


def test_an_error_that_does_not_pass_names_the_object(behind: Behind) -> None:
    proxy, config = behind(always(502, "BadGateway"))
    with pytest.raises(TransientError, match=r"s3://bucket/image\.png: .*BadGateway.*\(attempt 3\)"):
        ObjectStore(config).get("bucket", "image.png")
    assert len(proxy.requests) == 3


@pytest.mark.parametrize(("status", "code", "error"), [(403, "AccessDenied", OSError), (404, "NoSuchKey", OSError)])
def test_what_cannot_pass_for_an_object_is_asked_once(
    behind: Behind, status: int, code: str, error: type[Exception]
) -> None:
    proxy, config = behind(always(status, code))
    with pytest.raises(error) as caught:
        ObjectStore(config).get("bucket", "image.png")
    assert not isinstance(caught.value, TransientError)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    "code", ["ExpiredToken", "RequestTimeTooSkewed", "InvalidAccessKeyId", "SignatureDoesNotMatch"]
)
def test_lost_access_ends_the_run_at_once(behind: Behind, code: str) -> None:
    proxy, config = behind(always(400 if code == "ExpiredToken" else 403, code))
    with pytest.raises(AccessLost, match=rf"{code}.*Renew the credentials, and check the clock") as caught:
        Reader(config).read(["s3://bucket/image.png"])
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), Unfinished)
    assert len(proxy.requests) == 1


def test_lost_access_is_found_where_the_response_has_no_body(behind: Behind) -> None:
    """A response to HEAD has a status and nothing else; 400 could mean anything."""
    _, config = behind(always(400, "ExpiredToken"))
    with pytest.raises(AccessLost, match="ExpiredToken"):
        ObjectStore(config).size("bucket", "image.png")
    with pytest.raises(AccessLost, match="ExpiredToken"):
        ObjectStore(config).download("bucket", "image.png", Path("/nonexistent/file"))


def test_missing_credentials_are_a_wrong_set_up(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # A process keeps its credentials and its clients.
    object_store._session.cache_clear()
    config = ObjectStoreConfig(endpoint_url=server, region="us-east-1", max_attempts=7, first_pause_s=20)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"object_store = 's3://bucket/image\.png'.*AWS_ACCESS_KEY_ID"):
        ObjectStore(config).get("bucket", "image.png")
    tree = scripted_tree(tmp_path, tmp_path / "run") | {"object_store": config, "source": {"path": "s3://bucket/x"}}
    with pytest.raises(ConfigError, match=r"^source\.path = 's3://bucket/x': cannot be accessed.*AWS_ACCESS_KEY_ID"):
        check_run(RunConfig.model_validate(tree))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    object_store._session.cache_clear()
    with pytest.raises(ConfigError, match="nobody"):
        ObjectStore(config.model_copy(update={"max_attempts": 6})).get("bucket", "image.png")
    assert time.monotonic() - started < 40
    object_store._session.cache_clear()


@pytest.mark.parametrize(("bucket", "problem"), [("my bucket", "Invalid bucket name"), ("nowhere", "NoSuchBucket")])
def test_a_bucket_that_does_not_exist_is_a_wrong_set_up(
    server: str, bucket: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore(ObjectStoreConfig(endpoint_url=server))
    for call in (
        lambda: store.get(bucket, "run.json"),
        lambda: next(store.list(bucket, "", nested=False)),
        lambda: store.put(bucket, "x", b""),
    ):
        with pytest.raises(NoSuchBucket, match=rf"s3://{bucket}/.*{problem}"):
            call()
        assert run_job(lambda call=call: call() and None) == 2  # type: ignore[misc]
        (line,) = capsys.readouterr().err.splitlines()
        assert bucket in line


def test_a_refused_request_of_a_command_is_a_wrong_set_up(behind: Behind, capsys: pytest.CaptureFixture[str]) -> None:
    _, config = behind(always(403, "AccessDenied"))
    assert run_job(lambda: ObjectStore(config).get("bucket", "run.json") and None) == 2
    assert "AccessDenied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("region", "remedy"), [("mars!", "Give one such as us-east-1"), ("us-eats-1", "Did you mean us-")]
)
def test_a_region_that_does_not_exist_is_named(region: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise EndpointConnectionError(endpoint_url="https://s3.us-eats-1.amazonaws.com/")

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", unreachable)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(ConfigError, match=rf"object_store\.region = '{region}': is not a region of AWS\. {remedy}"):
        ObjectStore(ObjectStoreConfig(region=region)).get("bucket", "x")


def test_a_known_region_that_cannot_be_reached_may_be_reached_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise EndpointConnectionError(endpoint_url="https://s3.eu-west-1.amazonaws.com/")

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", unreachable)
    config = ObjectStoreConfig(region="eu-west-1", max_attempts=2, first_pause_s=0.01)
    with pytest.raises(TransientError):
        ObjectStore(config).get("bucket", "x")


def test_a_store_that_answers_a_third_of_its_requests_loses_no_image(behind: Behind) -> None:
    """In earlier versions, with three attempts for each request, one image in 27 was lost."""
    draws = random.Random(3)
    proxy, config = behind(lambda *_: (503, "SlowDownRead") if draws.random() < 1 / 3 else None)
    config = config.model_copy(update={"max_outage_s": 30.0})
    contents = Reader(config, num_threads=8).read(["s3://bucket/image.png"] * 200)
    assert contents == [b"0123456789"] * 200
    assert proxy.num_refused > 60


def test_a_part_that_fails_does_not_repeat_the_whole_transfer(behind: Behind, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(11 * 2**20)
    (tmp_path / "sent").write_bytes(content)
    sent: set[str] = set()

    def refuses(method: str, path: str, _: int) -> tuple[int, str] | None:
        """Refuse the first attempt at each part."""
        is_first = "partNumber=" in path and (part := f"{method} {path}") not in sent and not sent.add(part)
        return (500, "InternalError") if is_first else None

    proxy, config = behind(refuses)
    store = ObjectStore(config.model_copy(update={"multipart_bytes": 5 * 2**20}))
    store.upload(tmp_path / "sent", "bucket", "parts", {})
    assert store.get("bucket", "parts") == content
    assert proxy.num_refused == 3
    assert sum(request.endswith("?uploads") for request in proxy.requests) == 1


def test_a_read_that_fails_for_now_has_a_reason_of_its_own(behind: Behind) -> None:
    _, config = behind(
        lambda _method, path, _number: {"broken": (500, "InternalError"), "secret": (403, "AccessDenied")}.get(
            path.rpartition("/")[2].partition(".")[0]
        )
    )
    uris = [f"s3://bucket/{name}.png" for name in ("image", "broken", "secret", "none")]
    contents = Reader(config).read(uris)
    reasons = [content.reason if isinstance(content, ImageProblem) else None for content in contents]
    assert reasons == [None, Reason.STORAGE, Reason.UNREADABLE, Reason.UNREADABLE]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError("s3://bucket/x: not read within 60 s"), Reason.STORAGE),
        (ConnectionResetError(104, "Connection reset by peer"), Reason.STORAGE),
        (OSError(116, "Stale file handle"), Reason.STORAGE),
        (OSError(5, "Input/output error"), Reason.STORAGE),
        (PermissionError(13, "Permission denied"), Reason.UNREADABLE),
        (IsADirectoryError(21, "Is a directory"), Reason.UNREADABLE),
        (FileNotFoundError(2, "No such file or directory"), Reason.UNREADABLE),
        (ValueError("embedded null byte"), Reason.UNREADABLE),
    ],
)
def test_errors_of_other_places_are_decided_by_kind(
    error: Exception, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(LocalPlace, "read", fail)
    (content,) = Reader(ObjectStoreConfig()).read(["/mount/image.png"])
    assert isinstance(content, ImageProblem)
    assert content.reason == reason


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(500, "InternalError", 3), (400, "ExpiredToken", 3), (403, "AccessDenied", 2)],
)
@pytest.mark.parametrize("path", ["images", "list.csv", "image.parquet", "a.tar", "*.png"])
def test_an_outage_while_listing_is_no_wrong_setting(
    behind: Behind, status: int, code: str, exit_code: int, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, config = behind(always(status, code))
    source = SourceConfig(path=f"s3://bucket/{path}")
    assert run_job(lambda: check_source(source, Places(config))) == exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "s3://bucket/" in line


def test_an_outage_when_a_run_is_opened_is_no_wrong_setting(behind: Behind) -> None:
    _, config = behind(always(500, "InternalError"))
    with pytest.raises(CannotWrite, match="InternalError"):
        Run.open("s3://bucket/run", config)
    _, config = behind(always(403, "AccessDenied"))
    with pytest.raises(ConfigError, match="AccessDenied"):
        Run.open("s3://bucket/run", config)


def test_in_an_outage_requests_fail_at_once(behind: Behind) -> None:
    """A shard of 256 images would otherwise wait for each of them."""
    proxy, config = behind(always(503, "SlowDownRead"))
    contents = Reader(config, num_threads=4).read(["s3://bucket/image.png"] * 256)
    assert all(isinstance(content, ImageProblem) and content.reason == Reason.STORAGE for content in contents)
    assert len(proxy.requests) < 64


def test_threads_share_a_slow_down(behind: Behind) -> None:
    """Each pause halves the requests in flight: 16, 8, 4, 2, and then 1 after each pause, which is twice as long.

    Sixteen threads that slow down alone send as many requests after every pause.
    """
    proxy, config = behind(always(503, "SlowDown"))
    config = config.model_copy(update={"max_connections": 16, "max_outage_s": 4.0})
    with ThreadPoolExecutor(16) as threads, pytest.raises(TransientError):
        list(threads.map(lambda _: ObjectStore(config).get("bucket", "image.png"), range(16)))
    assert len(proxy.requests) < 40


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pause_grows_and_shrinks_again() -> None:
    clock = Clock()
    pace = RequestPace(8, first_pause_s=1.0, max_pause_s=8.0, max_outage_s=1000.0, clock=clock)

    def pause_s() -> float:
        return pace._wait_s() or 0.0

    pauses = []
    for _ in range(5):
        pace.slow_down()
        pace.slow_down()
        pauses.append(pause_s())
        clock.now += pause_s()
    assert [0.75 * bound <= pause <= bound for pause, bound in zip(pauses, (1, 2, 4, 8, 8), strict=True)] == [True] * 5
    for _ in range(4):
        pace.succeed()
    pace.slow_down()
    assert pause_s() <= 1.0
    clock.now += pause_s()
    pace.slow_down(at_least_s=5.0)
    assert pause_s() >= 3.75


def test_an_outage_ends_with_the_first_success() -> None:
    clock = Clock()
    pace = RequestPace(8, first_pause_s=1.0, max_pause_s=8.0, max_outage_s=60.0, clock=clock)
    pace.fail()
    clock.now += 61
    pace.fail()
    assert pace.is_out()
    with pytest.raises(Outage, match="no request has succeeded for 60 s"), pace.request():
        pass
    clock.now += 9
    with pace.request():
        pace.succeed()
    assert not pace.is_out()
    with pace.request():
        pass


@pytest.fixture
def num_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses between requests to a store at which no server listens. A clock goes on by them without waiting."""
    pauses: list[float] = []
    began = time.monotonic()
    monkeypatch.setattr(object_store.time, "monotonic", lambda: began + sum(pauses))
    monkeypatch.setattr(object_store.time, "sleep", pauses.append)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    object_store._pace.cache_clear()
    yield pauses
    object_store._pace.cache_clear()


REFUSED = ObjectStoreConfig(endpoint_url="http://127.0.0.1:9", first_pause_s=0.2)


def test_a_command_whose_store_cannot_be_connected_to_at_first_gives_up_soon(num_pauses: list[float]) -> None:
    with short_first_contact(), pytest.raises(TransientError, match=r"Could not connect.*no answer yet"):
        ObjectStore(REFUSED).get("bucket", "key")
    assert sum(num_pauses) < 4


def test_a_store_that_has_answered_keeps_the_patience_of_a_command(num_pauses: list[float]) -> None:
    object_store._pace(REFUSED).succeed()
    with short_first_contact(), pytest.raises(TransientError, match="attempt 8"):
        ObjectStore(REFUSED).get("bucket", "key")
    assert len(num_pauses) == 7


def test_workers_keep_their_patience(num_pauses: list[float]) -> None:
    """A worker may start during an outage."""
    with pytest.raises(TransientError, match="attempt 8"):
        ObjectStore(REFUSED).get("bucket", "key")
    assert len(num_pauses) == 7
