"""A download never writes more than its manifest says, whatever the other side says or sends."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from requests import HTTPError
from s3 import BUCKET, S3

from mlflow_ckpt.errors import DigestMismatch
from mlflow_ckpt.store import _bounded

pytestmark = pytest.mark.pure

LIMIT = 1000
LARGER = "is larger in the artifact store than the one that was committed"
ENDLESS = 64 << 20  # bytes after which a server here ends all the same


class Server(BaseHTTPRequestHandler):
    """Answers as MLflow's or as S3, and never as it should."""

    protocol_version = "HTTP/1.0"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path
        if "server-info" in path:
            self._json({"multipart_downloads_enabled": True, "multipart_uploads_enabled": True})
        elif "presigned" in path:
            elsewhere = f"http://127.0.0.1:{self.server.server_address[1]}/elsewhere"
            self._json({"url": elsewhere, "headers": {}, "file_size": 5})
        elif "?path=" in path:
            self._json({"files": [{"path": "x", "is_dir": False, "file_size": 5}]})
        elif "told" in path:
            self._send({"Content-Length": str(1 << 40)})
        elif "squeezed" in path:
            self._send({"Content-Encoding": "gzip"}, gzip.compress(bytes(1 << 20)))
        elif "refused" in path:
            self._endless(404)
        elif "right" in path:
            self._send({"Content-Length": str(LIMIT)}, b"r" * LIMIT)
        else:
            self._endless(206 if "Range" in self.headers else 200)

    def do_HEAD(self) -> None:
        size = 1 << 50 if "honest" in self.path else 20 << 20 if "parts" in self.path else 5
        self._send({"Content-Length": str(size), "ETag": '"x"'})

    def _send(self, headers: dict[str, str], content: bytes = b"", status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._send({"Content-Type": "application/json"}, json.dumps(value).encode())

    def _endless(self, status: int) -> None:
        self._send({}, status=status)
        try:
            for _ in range(ENDLESS >> 16):
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        """Quietly."""


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def server(asked: list[str]) -> Iterator[str]:
    handler = type("Handler", (Server,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


class Grown:
    """How large any file below a folder has ever been, as far as each chunk shows."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.largest, real = 0, _bounded._write

        def watched(target: Path, chunks: Any, *rest: Any, **options: Any) -> None:
            def seen() -> Iterator[bytes]:
                for chunk in chunks:
                    yield chunk
                    self.look(folder)

            real(target, seen(), *rest, **options)

        monkeypatch.setattr(_bounded, "_write", watched)

    def look(self, folder: Path) -> None:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        self.largest = max([self.largest, *sizes])


# --- through a server ---------------------------------------------------------------


@pytest.mark.parametrize("path", ["data/endless", "data/told"])
@pytest.mark.parametrize("scheme", ["mlflow-artifacts", "http"])
def test_a_server_that_offers_downloads_in_parts_is_not_followed(
    scheme: str, path: str, server: str, asked: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = {
        "mlflow-artifacts": "mlflow-artifacts:/1/models/m-1/artifacts",
        "http": f"{server}/api/2.0/mlflow-artifacts/artifacts/1",
    }[scheme]
    repository = get_artifact_repository(place, tracking_uri=server)
    grown = Grown(tmp_path, monkeypatch)
    with pytest.raises(DigestMismatch, match=f"{LARGER}.*at most {LIMIT} bytes"):
        _bounded.download(repository, path, tmp_path, limit=LIMIT)
    assert grown.largest <= LIMIT
    assert not (tmp_path / path).exists()
    assert not [each for each in asked if "presigned" in each or "elsewhere" in each]


def test_an_answer_that_is_compressed_is_refused_before_it_grows(
    server: str, tmp_path: Path
) -> None:
    with pytest.raises(HTTPError, match="Received: Content-Encoding: 'gzip'. Switch compression"):
        _bounded.download(HttpArtifactRepository(server), "squeezed", tmp_path, limit=1 << 30)
    assert not (tmp_path / "squeezed").exists()


def test_an_endless_reason_is_not_read_to_its_end(server: str, tmp_path: Path) -> None:
    with pytest.raises(HTTPError, match="404 Client Error") as caught:
        _bounded.download(HttpArtifactRepository(server), "refused", tmp_path, limit=LIMIT)
    assert len(str(caught.value)) < 10_000


def test_what_fits_arrives(server: str, tmp_path: Path) -> None:
    _bounded.download(HttpArtifactRepository(server), "data/right", tmp_path, limit=LIMIT)
    assert (tmp_path / "data" / "right").read_bytes() == b"r" * LIMIT


# --- from S3 ------------------------------------------------------------------------


@pytest.fixture
def lying_s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("boto3")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "MLFLOW_S3_ENDPOINT_URL": server,
        "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return get_artifact_repository("s3://bucket/1/models/m-1/artifacts")


@pytest.mark.parametrize("path", ["data/small", "data/honest"])
def test_an_s3_that_lies_about_a_size_writes_no_more_than_that(
    path: str, lying_s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = Grown(tmp_path, monkeypatch)
    with pytest.raises(DigestMismatch, match=LARGER):
        _bounded.download(lying_s3, path, tmp_path, limit=LIMIT)
    assert grown.largest <= LIMIT
    assert not (tmp_path / path).exists()


def test_no_part_of_an_s3_object_writes_beyond_its_own_end(
    lying_s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = Grown(tmp_path, monkeypatch)
    with pytest.raises(DigestMismatch, match=LARGER):
        _bounded.download(lying_s3, "data/parts", tmp_path, limit=20 << 20)
    assert grown.largest <= 20 << 20
    assert not (tmp_path / "data" / "parts").exists()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.mark.parametrize(
    "size", [0, 1, _bounded._PART, _bounded._PART + 1, 3 * _bounded._PART - 7], ids=str
)
def test_an_s3_object_of_any_size_arrives_bit_by_bit(
    size: int, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    data = bytes(range(251)) * (size // 251 + 1)
    s3.client().put_object(Bucket=BUCKET, Key="root/data/x", Body=data[:size])
    repository = get_artifact_repository(f"s3://{BUCKET}/root")
    _bounded.download(repository, "data/x", tmp_path, limit=size)
    assert (tmp_path / "data" / "x").read_bytes() == data[:size]
    if size:
        with pytest.raises(DigestMismatch, match=f"{LARGER}.*Found: {size}"):
            _bounded.download(repository, "data/x", tmp_path, limit=size - 1)
    with pytest.raises(Exception, match="404"):
        _bounded.download(repository, "data/y", tmp_path, limit=size)
    assert not (tmp_path / "data" / "y").exists()


class CutOff:
    """An S3 client of which the first `count` bodies end too early."""

    def __init__(self, data: bytes, count: int) -> None:
        self._data, self._left = data, count

    def head_object(self, **_: Any) -> dict[str, Any]:
        return {"ContentLength": len(self._data)}

    def get_object(self, *, Range: str = "bytes=0-", **_: Any) -> dict[str, Any]:  # noqa: N803
        first, _, last = Range.removeprefix("bytes=").partition("-")
        part = self._data[int(first) : int(last) + 1 if last else None]
        self._left -= 1
        return {"Body": Body(part, broken=self._left >= 0)}


class Body:
    def __init__(self, data: bytes, *, broken: bool) -> None:
        self._data, self._broken = data, broken

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        from botocore.exceptions import IncompleteReadError

        if self._broken:
            yield self._data[: len(self._data) // 2]
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)
        for at in range(0, len(self._data), size):
            yield self._data[at : at + size]

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("size", [100, 2 * _bounded._PART + 5])
@pytest.mark.parametrize(("failures", "arrives"), [(3, True), (10**6, False)])
def test_a_connection_to_s3_that_is_cut_off_is_made_again(
    size: int, failures: int, arrives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    repository = get_artifact_repository(f"s3://{BUCKET}/root")
    client = CutOff(bytes(range(250)) * (size // 250 + 1), failures)
    monkeypatch.setattr(repository, "_get_s3_client", lambda: client)
    if arrives:
        _bounded.download(repository, "data/x", tmp_path, limit=len(client._data))
        assert (tmp_path / "data" / "x").read_bytes() == client._data
        return
    with pytest.raises(Exception, match="total bytes expected"):
        _bounded.download(repository, "data/x", tmp_path, limit=len(client._data))
    assert not (tmp_path / "data" / "x").exists()


# --- from any other store -----------------------------------------------------------


class Other(LocalArtifactRepository):
    """A store with a client of its own, which lists and writes what it is told to."""

    def __init__(self, listed: list[FileInfo], lay_down: Callable[[Path], object]) -> None:
        self._listed, self._lay_down = listed, lay_down

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        return self._listed

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._lay_down(Path(local_path))


def info(size: int | None, path: str = "data/x", *, folder: bool = False) -> FileInfo:
    return FileInfo(path, folder, size)


@pytest.mark.parametrize(
    ("listed", "size", "error"),
    [
        pytest.param([info(5)], 5, None, id="as-listed"),
        pytest.param([info(None)], 5, None, id="no-size"),
        pytest.param([info(LIMIT + 1)], 5, DigestMismatch, id="listed-larger"),
        pytest.param([info(5)], LIMIT + 1, DigestMismatch, id="written-larger"),
        pytest.param([info(None)], LIMIT + 1, DigestMismatch, id="no-size-and-larger"),
        pytest.param([info(0, folder=True)], 5, DigestMismatch, id="folder"),
        pytest.param([], 5, FileNotFoundError, id="not-listed"),
        pytest.param([info(5, "data/y")], 5, FileNotFoundError, id="another-listed"),
        pytest.param([info(5), info(LIMIT + 1)], 5, DigestMismatch, id="listed-twice"),
    ],
)
def test_another_store_is_asked_before_and_measured_afterwards(
    listed: list[FileInfo], size: int, error: type[Exception] | None, tmp_path: Path
) -> None:
    repository = Other(listed, lambda path: path.write_bytes(bytes(size)))
    if error is None:
        _bounded.download(repository, "data/x", tmp_path, limit=LIMIT)
        assert (tmp_path / "data" / "x").stat().st_size == size
        return
    with pytest.raises(error):
        _bounded.download(repository, "data/x", tmp_path, limit=LIMIT)
    assert not (tmp_path / "data" / "x").exists()


@pytest.mark.parametrize("kind", ["folder", "link", "link-to-a-folder", "nothing"])
def test_what_another_store_lays_down_is_a_file_or_is_removed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"x")
    lay_down: dict[str, Callable[[Path], object]] = {
        "folder": lambda path: path.mkdir(),
        "link": lambda path: path.symlink_to(tmp_path / "elsewhere" / "x"),
        "link-to-a-folder": lambda path: path.symlink_to(tmp_path / "elsewhere"),
        "nothing": lambda path: None,
    }
    with pytest.raises(DigestMismatch, match="Found: no file"):
        _bounded.download(Other([info(1)], lay_down[kind]), "data/x", tmp_path / "to", limit=LIMIT)
    assert list((tmp_path / "to" / "data").iterdir()) == []
    assert (tmp_path / "elsewhere" / "x").read_bytes() == b"x"


def test_a_store_that_stands_for_another_is_that_one(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x").write_bytes(bytes(LIMIT + 1))
    standing = RunsArtifactRepository.__new__(RunsArtifactRepository)
    standing.repo = LocalArtifactRepository((tmp_path / "store").as_uri())
    with pytest.raises(DigestMismatch, match=f"{LARGER}.*Found: more"):
        _bounded.download(standing, "x", tmp_path / "to", limit=LIMIT)
