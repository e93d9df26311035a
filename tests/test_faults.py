"""The faults do what they say; and what MLflow's client and server make of them."""

from __future__ import annotations

import gc
import http.client
import http.server
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest
import requests
from doubles import tracking_server
from faults import (
    Answer,
    AnswerAfter,
    BlackHole,
    Delay,
    DropAnswer,
    Fault,
    Hang,
    Proxy,
    Refuse,
    ServerProcess,
    TruncateAnswer,
    TruncateRequest,
    always,
    fast_retries,
    matching,
    never,
    no_retries,
    once,
    while_down,
)
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

MIB = 1 << 20


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the body it got, in chunks where the path says so."""

    protocol_version = "HTTP/1.1"
    got: list[bytes]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "Transfer-Encoding" in self.headers:
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.got.append(body)
        self.send_response(204 if self.path == "/nothing" else 200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (body[:5], body[5:]):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\nChecksum: 1\r\n\r\n")
        elif self.path == "/to-the-end":
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        else:
            if self.path != "/nothing":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"" if self.path == "/nothing" else body)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # by default 5: the kernel drops what comes on top of them

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a request that was broken off."""
        assert isinstance(sys.exception(), ConnectionError)


@contextmanager
def echo() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers what it is sent; yields its address and the bodies that it got."""
    got: list[bytes] = []
    handler = type("Handler", (Echo,), {"got": got})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def echoed() -> Iterator[tuple[Proxy, list[bytes]]]:
    with echo() as (uri, got), Proxy(uri) as proxy:
        yield proxy, got


@contextmanager
def connection(uri: str, timeout: float = 5) -> Iterator[http.client.HTTPConnection]:
    address = urlsplit(uri)
    made = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
    try:
        yield made
    finally:
        made.close()


def ask(
    proxy: Proxy, path: str = "/x", body: bytes = b"hello", timeout: float = 5
) -> tuple[int, bytes]:
    with connection(proxy.uri, timeout) as client:
        client.request("POST", path, body)
        answer = client.getresponse()
        return answer.status, answer.read()


def status_of(client: http.client.HTTPConnection) -> int:
    client.request("GET", "/x")
    answer = client.getresponse()
    answer.read()
    return answer.status


# --- the proxy, before a server that tells what it got ------------------------


@pytest.mark.pure
@pytest.mark.parametrize("path", ["/x", "/chunked", "/to-the-end"])
def test_without_a_fault_everything_passes(echoed: Any, path: str) -> None:
    proxy, got = echoed
    body = os.urandom(3 * MIB)
    assert ask(proxy, path, body) == (200, body)
    assert got == [body]
    assert proxy.log == [f"POST {path}"]


@pytest.mark.pure
def test_requests_are_counted_on_a_connection_that_is_kept(echoed: Any) -> None:
    proxy, got = echoed
    proxy.fault = once(5, Answer(418))
    with connection(proxy.uri) as client:
        used = set()
        statuses = []
        for method, path in [
            ("POST", "/x?a=1"),
            ("GET", "/chunked"),
            ("HEAD", "/x"),
            ("PUT", "/nothing"),
            ("GET", "/x"),
            ("PUT", "/x"),
            ("PUT", "/x"),
        ]:
            client.request(method, path, b"abcdefgh" if method in ("PUT", "POST") else None)
            used.add(client.sock.getsockname())
            answer = client.getresponse()
            answer.read()
            statuses.append(answer.status)
    assert len(used) == 1
    assert statuses == [200, 200, 200, 204, 200, 418, 200]
    assert proxy.log[:3] == ["POST /x", "GET /chunked", "HEAD /x"]
    assert len(got) == 6


@pytest.mark.pure
@pytest.mark.parametrize("fault", [None, AnswerAfter(503), Answer(503)], ids=repr)
def test_a_chunked_request_is_read_to_its_end(echoed: Any, fault: Fault | None) -> None:
    proxy, got = echoed
    proxy.fault = lambda index, request: fault
    with connection(proxy.uri) as client:
        for _ in range(2):  # the second one is only found where the first one ends
            client.request("POST", "/x", iter([b"abc", b"defgh"]), encode_chunked=True)
            answer = client.getresponse()
            assert answer.read() == (b"" if fault else b"abcdefgh")
            assert answer.status == (503 if fault else 200)
    assert proxy.log == ["POST /x"] * 2
    assert got == [b"abcdefgh"] * (0 if isinstance(fault, Answer) else 2)


@pytest.mark.pure
@pytest.mark.parametrize(
    ("fault", "raised", "arrived"),
    [
        pytest.param(Refuse(), ConnectionError, 0, id="refuse"),
        pytest.param(DropAnswer(), http.client.RemoteDisconnected, 1, id="drop-answer"),
        pytest.param(TruncateAnswer(2), http.client.IncompleteRead, 1, id="truncate-answer"),
        pytest.param(TruncateAnswer(), http.client.IncompleteRead, 1, id="head-alone"),
        pytest.param(Hang(), TimeoutError, 0, id="hang"),
    ],
)
def test_a_fault_without_an_answer(
    echoed: Any, fault: Fault, raised: type[Exception], arrived: int
) -> None:
    proxy, got = echoed
    proxy.fault = once(0, fault)
    with pytest.raises(raised):
        ask(proxy, timeout=0.3)
    assert got == [b"hello"] * arrived
    assert ask(proxy) == (200, b"hello")


@pytest.mark.pure
@pytest.mark.parametrize("path", ["/x", "/chunked", "/to-the-end"])
def test_an_answer_in_the_place_of_the_servers_own(echoed: Any, path: str) -> None:
    proxy, got = echoed
    proxy.fault = once(0, Answer(429, b"slower", retry_after=0))
    with connection(proxy.uri) as client:
        client.request("POST", path, os.urandom(MIB))
        answer = client.getresponse()
        assert (answer.status, answer.headers["Retry-After"]) == (429, "0")
        assert answer.read() == b"slower"
        assert got == []
        proxy.fault = once(1, AnswerAfter(500))
        client.request("POST", path, b"carried out")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (500, b"")
    assert got == [b"carried out"]


@pytest.mark.pure
@pytest.mark.parametrize("keep", [0, 1, 100_000])
def test_a_truncated_request_reaches_the_server_as_far_as_it_goes(echoed: Any, keep: int) -> None:
    proxy, got = echoed
    proxy.fault = once(0, TruncateRequest(keep))
    body = os.urandom(MIB)
    with pytest.raises(OSError):
        ask(proxy, body=body)
    deadline = time.monotonic() + 5
    while not got and time.monotonic() < deadline:
        time.sleep(0.01)
    assert got == [body[:keep]]


@pytest.mark.pure
def test_a_delayed_request_takes_its_time(echoed: Any) -> None:
    proxy, _ = echoed
    proxy.fault = once(0, Delay(0.3))
    start = time.monotonic()
    assert ask(proxy) == (200, b"hello")
    assert time.monotonic() - start >= 0.3


@pytest.mark.pure
def test_a_count_can_be_restarted(echoed: Any) -> None:
    proxy, _ = echoed
    proxy.fault = lambda index, request: Answer(200 + index)
    assert [ask(proxy)[0] for _ in range(3)] == [200, 201, 202]
    proxy.restart_count()
    assert ask(proxy)[0] == 200
    assert proxy.log == ["POST /x"]


@pytest.mark.pure
def test_faults_are_chosen_by_index_by_request_and_by_an_event() -> None:
    event = threading.Event()
    refuse = Refuse()
    first = once(1, refuse)
    assert [first(i, "GET /") for i in (0, 1, 2, 1)] == [None, refuse, None, None]
    puts = matching("PUT /a", refuse, times=2)
    asked = [puts(0, r) for r in ("PUT /a", "GET /a", "PUT /a/b", "PUT /a")]
    assert asked == [refuse, None, refuse, None]
    assert [matching("a", refuse)(i, "PUT /a") for i in range(3)] == [refuse] * 3
    down = while_down(event)
    assert down(0, "GET /") is None
    event.set()
    assert down(1, "GET /") == refuse
    assert while_down(event, Hang())(0, "GET /") == Hang()
    assert always(refuse)(9, "") == refuse
    assert never(0, "") is None


@pytest.mark.pure
def test_a_proxy_that_is_down_refuses_and_comes_back_at_the_same_port(echoed: Any) -> None:
    proxy, _ = echoed
    with connection(proxy.uri) as kept:
        assert status_of(kept) == 200
        for _ in range(2):
            proxy.down()
            proxy.down()
            with pytest.raises(ConnectionRefusedError):
                ask(proxy)
            with pytest.raises(ConnectionError):
                status_of(kept)
            proxy.up()
            proxy.up()
            assert ask(proxy) == (200, b"hello")
    assert proxy.log == ["GET /x", "POST /x", "POST /x"]


@pytest.mark.pure
def test_a_proxy_ends_while_requests_hang_and_wait() -> None:
    before = set(threading.enumerate())
    raised: list[BaseException] = []

    def give_up(proxy: Proxy) -> None:
        try:
            ask(proxy, timeout=30)
        except OSError as error:
            raised.append(error)

    with echo() as (uri, _):
        with Proxy(uri) as proxy:
            proxy.fault = lambda index, request: Hang() if index % 2 else Delay(30)
            clients = [threading.Thread(target=give_up, args=(proxy,)) for _ in range(4)]
            for client in clients:
                client.start()
            while len(proxy.log) < 4:
                time.sleep(0.01)
            start = time.monotonic()
        for client in clients:
            client.join()
        assert time.monotonic() - start < 2
    assert len(raised) == 4
    assert set(threading.enumerate()) <= before


@pytest.mark.pure
def test_a_proxy_without_its_server_closes_the_connection() -> None:
    with echo() as (uri, _):
        pass
    with Proxy(uri) as proxy, pytest.raises(http.client.RemoteDisconnected):
        ask(proxy, body=b"")


@pytest.mark.pure
def test_many_connections_at_once_are_counted_once_each(echoed: Any) -> None:
    proxy, got = echoed
    seen: list[int] = []
    proxy.fault = lambda index, request: seen.append(index)  # type: ignore[func-returns-value]
    threads = [threading.Thread(target=lambda: [ask(proxy) for _ in range(10)]) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(160))
    assert len(got) == 160


@pytest.mark.pure
def test_a_black_hole_accepts_and_is_silent() -> None:
    with BlackHole() as hole, connection(hole.uri, timeout=0.2) as client:
        client.request("GET", "/")
        with pytest.raises(TimeoutError):
            client.getresponse()
    with pytest.raises(ConnectionRefusedError), connection(hole.uri) as client:
        client.request("GET", "/")


# --- what MLflow makes of it --------------------------------------------------


@pytest.fixture
def served(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A run and a logged model, on a server behind a proxy."""
    database = tmp_path / "server.db"
    shutil.copy(empty_database, database)
    fast_retries(monkeypatch, retries=2, timeout_s=10)
    with tracking_server(database, tmp_path / "served") as server, Proxy(server.uri) as proxy:
        mlflow.set_tracking_uri(proxy.uri)
        yield Served(proxy)


class Served:
    """What the tests below send through `proxy`."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client = MlflowClient()
        self.experiment = self.client.create_experiment("served")
        self.run = self.client.create_run(self.experiment).info.run_id
        self.model = self.create()
        self.repository = get_artifact_repository(self.model.artifact_location)
        proxy.restart_count()

    def create(self) -> Any:
        return self.client.create_logged_model(self.experiment, name="m", source_run_id=self.run)

    def batch(self, value: float = 1.0) -> None:
        of_model = Metric("loss", value, 1, 1, model_id=self.model.model_id, run_id=self.run)
        rows = [of_model, Metric("beside", 2.0, 1, 1)]
        self.client.log_batch(self.run, metrics=rows, synchronous=True)

    def link(self) -> None:
        self.client.log_outputs(self.run, [LoggedModelOutput(self.model.model_id, 1)])

    def upload(self, path: Path) -> None:
        self.repository.log_artifact(str(path))


CALLS = {
    "GET": lambda s: s.client.get_run(s.run),
    "POST": lambda s: s.batch(),
    "PATCH": lambda s: s.client.finalize_logged_model(s.model.model_id, "READY"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(
    "fault",
    [
        Refuse(),
        DropAnswer(),
        AnswerAfter(500),
        Answer(429, retry_after=0),
        *map(Answer, (408, 429, 500, 502, 503, 504)),
    ],
    ids=repr,
)
def test_every_method_is_retried(served: Served, call: Any, fault: Fault) -> None:
    served.proxy.fault = lambda index, request: fault if index < 2 else None
    call(served)
    assert len(served.proxy.log) == 3
    served.proxy.restart_count()
    served.proxy.fault = always(fault)
    with pytest.raises(MlflowException) as caught:
        call(served)
    assert caught.value.error_code == "INTERNAL_ERROR"
    assert len(served.proxy.log) == 3


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "BAD_REQUEST"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "ENDPOINT_NOT_FOUND"),
        (413, "INTERNAL_ERROR"),
        (501, "NOT_IMPLEMENTED"),
    ],
)
def test_no_other_status_is_retried(served: Served, tmp_path: Path, status: int, code: str) -> None:
    served.proxy.fault = always(Answer(status))
    with pytest.raises(MlflowException) as caught:
        served.batch()
    assert caught.value.error_code == code
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(requests.HTTPError):  # and no MlflowException
        served.upload(file)
    assert len(served.proxy.log) == 2


def test_an_answer_that_breaks_off_is_not_retried(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * MIB)
    served.upload(file)
    served.proxy.restart_count()
    served.proxy.fault = always(TruncateAnswer(3))
    with pytest.raises(MlflowException, match="IncompleteRead"):
        served.client.get_run(served.run)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):  # and no MlflowException
        served.repository._download_file("file", str(tmp_path / "copy"))
    assert [r.rpartition("/")[2] for r in served.proxy.log if "server-info" not in r] == [
        "get",
        "file",
    ]
    gc.collect()


def test_a_client_gives_up_at_once_without_retries(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_retries(monkeypatch, timeout_s=1)
    served.proxy.fault = always(Hang())
    start = time.monotonic()
    with pytest.raises(MlflowException, match="Read timed out"):
        served.batch()
    assert 1 <= time.monotonic() - start < 2
    served.proxy.down()
    with pytest.raises(MlflowException, match="Connection refused"):
        served.batch()
    assert len(served.proxy.log) == 1


def test_half_an_upload_leaves_no_file_under_its_name(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "one.bin"
    file.write_bytes(os.urandom(MIB))
    served.proxy.fault = always(TruncateRequest(MIB // 2))
    with pytest.raises(MlflowException):
        served.upload(file)
    served.proxy.fault = never
    assert served.repository.list_artifacts() == []
    served.proxy.restart_count()
    served.proxy.fault = once(0, TruncateRequest(MIB // 2))
    served.upload(file)  # the retry sends the file from its start again
    assert len(served.proxy.log) == 2
    stored = [p for p in (tmp_path / "served").rglob("*") if p.is_file()]
    assert [p.read_bytes() for p in stored] == [file.read_bytes()]


def test_metrics_whose_answer_was_lost_are_stored_once(served: Served) -> None:
    served.proxy.fault = once(0, DropAnswer())
    served.batch()
    served.batch()
    assert served.proxy.log == ["POST /api/2.0/mlflow/runs/log-batch"] * 3
    for key in ("loss", "beside"):
        assert len(served.client.get_metric_history(served.run, key)) == 1
    (metric,) = served.client.get_logged_model(served.model.model_id).metrics
    assert metric.value == 1.0


def test_a_link_whose_answer_was_lost_is_made_and_its_retry_refused(served: Served) -> None:
    served.proxy.fault = once(0, DropAnswer())
    with pytest.raises(MlflowException, match="UNIQUE constraint failed: inputs") as caught:
        served.link()
    assert caught.value.error_code == "BAD_REQUEST"
    assert len(served.client.get_run(served.run).outputs.model_outputs) == 1


def test_a_model_whose_answer_was_lost_is_made_twice(served: Served) -> None:
    served.proxy.fault = once(0, DropAnswer())
    made = served.create()
    found = served.client.search_logged_models([served.experiment])
    assert len(found) == 3
    assert {served.model.model_id, made.model_id} < {m.model_id for m in found}
    assert {m.status.value for m in found} == {"PENDING"}


def test_what_can_be_said_twice(served: Served) -> None:
    client, model_id = served.client, served.model.model_id
    again: list[Callable[[], object]] = [
        lambda: client.finalize_logged_model(model_id, "READY"),
        lambda: client.set_logged_model_tags(model_id, {"a": "b"}),
        lambda: client.delete_logged_model(model_id),
    ]
    for call in again:
        call()
        served.proxy.fault = once(len(served.proxy.log), DropAnswer())
        call()
    assert len([r for r in served.proxy.log if r.startswith("DELETE")]) == 3
    with pytest.raises(MlflowException) as caught:
        client.get_logged_model(model_id)
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


# --- a server that dies -------------------------------------------------------


def test_a_killed_server_comes_back_with_what_it_had(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_retries(monkeypatch, timeout_s=60)
    file = tmp_path / "one.bin"
    file.write_bytes(os.urandom(MIB))
    with (
        ServerProcess(tmp_path / "server", database=empty_database) as server,
        Proxy(server.uri) as proxy,
    ):
        mlflow.set_tracking_uri(proxy.uri)
        there = Served(proxy)
        there.upload(file)
        proxy.fault = always(TruncateRequest(MIB // 2))
        with pytest.raises(MlflowException):
            there.upload(file)
        proxy.fault = never
        server.kill()
        server.kill()
        with pytest.raises(ConnectionRefusedError), connection(server.uri) as direct:
            direct.request("GET", "/health")
        with pytest.raises(MlflowException, match="Connection aborted"):
            there.batch()
        server.restart()
        there.batch()
        assert len(there.client.get_metric_history(there.run, "loss")) == 1
        # What the kill interrupted may stay, under another name: `.artifact.uploading.*`.
        stored = list((server.folder / "served").rglob("one.bin"))
        assert [p.read_bytes() for p in stored] == [file.read_bytes()]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(server.uri.rpartition(":")[2]))) != 0


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "mlflow.db").write_text("no database " * 100)
    with pytest.raises(RuntimeError, match="not a database"):
        ServerProcess(tmp_path / "server").__enter__()  # which gives the port back itself
