"""Cut a stream of HTTP/1.1 into heads and bodies, byte for byte as they travel.

A proxy that is to break off in the middle of a body must know where it begins, and one that
serves several requests of a connection where it ends. `http.client` decodes what it reads, so
nothing here interprets more than it takes to find those two places.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPMessage, parse_headers
from itertools import takewhile

_PIECE = 1 << 16


def hold(port: int | None) -> tuple[socket.socket, int]:
    """Keep a loopback port, a free one for `None`, without listening there.

    Nobody else takes it while its server is down: Linux refuses connections to it, and lets
    another socket with the same option listen there.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", port or 0))
    return holder, int(holder.getsockname()[1])


def read_head(source: io.BufferedIOBase) -> tuple[str, bytes, HTTPMessage]:
    """The first line, all bytes up to the empty line, and the headers; empty at the end.

    Interim answers, such as `100 Continue`, are left out.
    """
    lines = list(takewhile(lambda line: line.strip(), iter(source.readline, b"")))
    if not lines:
        return "", b"", HTTPMessage()
    start = lines[0].decode("latin-1").strip()
    if start.startswith("HTTP/1.1 1"):
        return read_head(source)
    headers = parse_headers(io.BytesIO(b"".join(lines[1:]) + b"\r\n"))
    return start, b"".join(lines) + b"\r\n", headers


def body_of(
    source: io.BufferedIOBase, headers: HTTPMessage, *, to_the_end: bool
) -> Iterator[bytes]:
    """The body in pieces, the sizes of its chunks included.

    Args:
        to_the_end: Whether one without a length lasts until the connection ends, as an
            answer does; a request without a length has none.

    Raises:
        EOFError: If the connection ends before the body does.
    """
    length = headers.get("content-length")
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := int((line := source.readline()).split(b";")[0] or b"0", 16):
            yield line
            yield from _exactly(source, size + len(b"\r\n"))
        yield line
        yield from iter(source.readline, b"\r\n")  # trailers
        yield b"\r\n"
    elif length is not None:
        yield from _exactly(source, int(length))
    elif to_the_end:
        yield from iter(lambda: source.read1(_PIECE), b"")


def _exactly(source: io.BufferedIOBase, count: int) -> Iterator[bytes]:
    while count:
        piece = source.read1(min(count, _PIECE))
        if not piece:
            raise EOFError
        count -= len(piece)
        yield piece


def first(body: Iterator[bytes], count: int) -> Iterator[bytes]:
    """The first `count` bytes of a body, or all of a shorter one."""
    for piece in body if count > 0 else ():
        yield piece[:count]
        count -= len(piece)
        if count <= 0:
            return


def answer(status: int, body: bytes = b"", retry_after: int | None = None) -> bytes:
    """A whole answer; `retry_after`, in seconds, becomes its header."""
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {len(body)}\r\n"
    if retry_after is not None:
        head += f"Retry-After: {retry_after}\r\n"
    return head.encode() + b"\r\n" + body
