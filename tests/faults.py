"""Break the way to a tracking server: a proxy that fails on request, and a port without answers.

A server that is down, slow or half there is the ordinary case of a long training, and a mock of
MLflow's client would only repeat what we believe of its retries. Here a real client talks to
a real server, and one thing goes wrong in between.

    with tracking_server(...) as server, Proxy(server.uri) as proxy:
        mlflow.set_tracking_uri(proxy.uri)
        proxy.fault = matching("PUT", DropAnswer(), times=1)

Everything stays on the loopback interface and ends with its `with` block.
"""

from __future__ import annotations

import contextlib
import io
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import pytest
import wire
from server_process import ServerProcess as ServerProcess

_POLL_S = 0.05


@dataclass(frozen=True)
class Fault:
    """What happens to one request."""


@dataclass(frozen=True)
class Refuse(Fault):
    """Close the connection; the server never hears of the request."""


@dataclass(frozen=True)
class DropAnswer(Fault):
    """Let the server carry it out, then close the connection without a word."""


@dataclass(frozen=True)
class Delay(Fault):
    """Forward it after some seconds."""

    seconds: float


@dataclass(frozen=True)
class TruncateRequest(Fault):
    """Forward the head and the first `keep` bytes of the body, then close both connections."""

    keep: int


@dataclass(frozen=True)
class TruncateAnswer(Fault):
    """Let the server carry it out; pass on the head and `keep` bytes of the body, then close."""

    keep: int = 0


@dataclass(frozen=True)
class Answer(Fault):
    """Answer in the server's place; `retry_after`, in seconds, becomes the header."""

    status: int
    body: bytes = b""
    retry_after: int | None = None


@dataclass(frozen=True)
class AnswerAfter(Fault):
    """Let the server carry it out, and answer this status, with no body, instead of its own."""

    status: int


@dataclass(frozen=True)
class Hang(Fault):
    """Read the head of the request and nothing more; answer nothing until the proxy is down."""


Decide = Callable[[int, str], Fault | None]


def never(index: int, request: str) -> Fault | None:
    """No fault."""
    return None


def always(fault: Fault) -> Decide:
    """The same fault for every request."""
    return lambda index, request: fault


def once(index: int, fault: Fault) -> Decide:
    """A fault for the request of this index, and none after it, even if the count restarts."""
    left = [fault]
    return lambda at, request: left.pop() if at == index and left else None


def matching(text: str, fault: Fault, *, times: int | None = None) -> Decide:
    """A fault for requests whose `METHOD path` holds `text`: the first `times` of them, or all."""
    left = [fault] * (times or 0)

    def decide(index: int, request: str) -> Fault | None:
        if text not in request:
            return None
        return fault if times is None else left.pop() if left else None

    return decide


def while_down(event: threading.Event, fault: Fault = Refuse()) -> Decide:
    """A fault for every request that comes while `event` is set."""
    return lambda index, request: fault if event.is_set() else None


class Proxy:
    """Forwards HTTP/1.1 to `upstream`, as well as `fault` lets it.

    Each request gets a connection of its own to the upstream server; the client's is kept
    alive. Where the upstream server is gone, the client's connection is closed.

    Attributes:
        uri: Where clients find it, also after `down` and `up`.
        fault: Asked for each request, one at a time, with its index (from 0, over all
            connections) and its `METHOD path`, without the query. It must not call `down`,
            which waits for the request that asks.
        log: The `METHOD path` of each request, faulty or not, in the order of their arrival.
    """

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self._upstream = (address.hostname or "127.0.0.1", address.port or 80)
        self._held, port = wire.hold(None)
        self._address = ("127.0.0.1", port)
        self._lock = threading.RLock()
        self._listener: _Listener | None = None
        self.uri = f"http://127.0.0.1:{port}"
        self.fault: Decide = never
        self.log: list[str] = []

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._held.close()

    def up(self) -> None:
        """Listen. Does nothing while it does."""
        if self._listener is None:
            self._listener = _Listener(self._address, self._serve)

    def down(self) -> None:
        """Break the open connections and have new ones refused. Does nothing while it is down.

        A request that is on its way to the server at this moment may still be carried out.
        """
        if self._listener is not None:
            self._listener.end()
            self._listener = None

    def restart_count(self) -> None:
        """Empty the log: the next request has index 0."""
        with self._lock:
            self.log.clear()

    def _decide(self, request: str) -> Fault | None:
        with self._lock:
            self.log.append(request)
            return self.fault(len(self.log) - 1, request)

    def _serve(self, connection: _Connection) -> bool:
        """Carry out one request of a connection; whether another may follow."""
        start, head, headers = wire.read_head(connection.rfile)
        if not start:
            return False
        method, target = start.split()[:2]
        body = wire.body_of(connection.rfile, headers, to_the_end=False)
        fault = self._decide(f"{method} {urlsplit(target).path}")
        match fault:
            case Refuse():
                return False
            case Hang():
                connection.server.gone.wait()
                return False
            case Delay(seconds):
                if connection.server.gone.wait(seconds):
                    return False
            case Answer(status, content, retry_after):
                for _ in body:
                    pass
                connection.wfile.write(wire.answer(status, content, retry_after))
                return True
        with socket.create_connection(self._upstream) as server:
            connection.server.track(server)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.sendall(head)
            if isinstance(fault, TruncateRequest):
                for piece in wire.first(body, fault.keep):
                    server.sendall(piece)
                return False
            for piece in body:
                server.sendall(piece)
            with server.makefile("rb") as source:
                return _pass_on(fault, method, source, connection.wfile)


def _pass_on(
    fault: Fault | None, method: str, source: io.BufferedIOBase, client: io.BufferedIOBase
) -> bool:
    """Give the server's answer to the client; whether the client's connection can go on."""
    start, head, headers = wire.read_head(source)
    if not start:
        return False
    empty = method == "HEAD" or start.split()[1] in ("204", "304")
    body = iter(()) if empty else wire.body_of(source, headers, to_the_end=True)
    match fault:
        case DropAnswer() | AnswerAfter():
            for _ in body:
                pass
            if isinstance(fault, AnswerAfter):
                client.write(wire.answer(fault.status))
            return isinstance(fault, AnswerAfter)
        case TruncateAnswer(keep):
            client.write(head)
            for piece in wire.first(body, keep):
                client.write(piece)
            for _ in body:  # or the server would see a client that went away
                pass
            return False
    client.write(head)
    for piece in body:
        client.write(piece)
    framed = empty or "content-length" in headers or "transfer-encoding" in headers
    closes = "close" in headers.get("connection", "").lower() or start.startswith("HTTP/1.0")
    return framed and not closes


class _Listener(socketserver.ThreadingTCPServer):
    """The proxy's socket from one `up` to the next `down`, and the connections through it."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], serve: Callable[[_Connection], bool]) -> None:
        super().__init__(address, _Connection)
        self.serve = serve
        self.gone = threading.Event()
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,))
        self._thread.start()

    def track(self, connection: socket.socket) -> None:
        """Have it broken by `end`, or at once where that came first."""
        with self._lock:
            self._open = [c for c in self._open if c.fileno() != -1] + [connection]
            if self.gone.is_set():
                _break(connection)

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        with self._lock:
            self.gone.set()
            for connection in self._open:
                _break(connection)
        self.server_close()  # and joins the threads of the connections


class _Connection(socketserver.StreamRequestHandler):
    """One connection of a client."""

    disable_nagle_algorithm = True
    server: _Listener

    def handle(self) -> None:
        self.server.track(self.connection)
        # Where the client or the upstream server went away, so does this connection.
        with contextlib.suppress(OSError, EOFError):
            while self.server.serve(self):
                pass


def _break(connection: socket.socket) -> None:
    """Wake whoever waits for it; its own thread closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class BlackHole:
    """A port where connections succeed and no request is ever answered.

    The kernel accepts on behalf of a socket that listens, so nothing has to run.

    Attributes:
        uri: Its address.
    """

    def __init__(self) -> None:
        self._socket, port = wire.hold(None)
        self.uri = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self._socket.listen(512)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def fast_retries(monkeypatch: pytest.MonkeyPatch, *, retries: int = 3, timeout_s: int = 2) -> None:
    """Have MLflow's client retry without a pause, and give each attempt whole seconds.

    A `Retry-After` of more than 0 is still waited for.
    """
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout_s))


def no_retries(monkeypatch: pytest.MonkeyPatch, *, timeout_s: int = 2) -> None:
    """Have MLflow's client give up at the first failure."""
    fast_retries(monkeypatch, retries=0, timeout_s=timeout_s)
