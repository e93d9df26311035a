"""Say which files a checkpoint has and prove that they are the committed ones.

`manifest.json` lists every other file with its size in bytes and its digest. It
is written last and its own digest stands in a tag, so one tag vouches for every
byte. It holds no run ID and no model ID: a copied run still verifies.

    files on disk -> Manifest.build -> to_bytes -> upload -> digest -> tag
    tag -> digest -> Manifest.parse -> FileEntry.open -> parse the open file

Paths are POSIX and relative to the checkpoint. Digests are `<algorithm>:<hex>`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from blake3 import blake3

from mlflow_ckpt.errors import DigestMismatch, FormatTooNew, ManifestError

FILENAME = "manifest.json"
FORMAT = "1.0"
ALGORITHM = "blake3"
_MAJOR = 1
_CHUNK = 1 << 20


class _Hasher(Protocol):
    def update(self, data: bytes | mmap.mmap, /) -> object: ...
    def hexdigest(self) -> str: ...


# Readers keep every algorithm that a committed manifest may name.
_ALGORITHMS: dict[str, Callable[[], _Hasher]] = {"blake3": blake3, "sha256": hashlib.sha256}


def digest_bytes(data: bytes, algorithm: str = ALGORITHM) -> str:
    """Digest of `data` as `<algorithm>:<hex>`."""
    hasher = _ALGORITHMS[algorithm]()
    hasher.update(data)
    return f"{algorithm}:{hasher.hexdigest()}"


def digest_file(file: BinaryIO, algorithm: str = ALGORITHM) -> str:
    """Digest of an open file, whatever was read of it before.

    A file beyond 1 MiB is mapped, and blake3 then runs on every core; who truncates it
    meanwhile kills the process. A smaller one is read.
    """
    if os.fstat(file.fileno()).st_size > _CHUNK:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return _digest_chunks(file, algorithm)  # a file system that maps nothing
        with data:
            # No threads for what is small: blake3's pool, once made, stays.
            hasher = (
                blake3(max_threads=blake3.AUTO)
                if algorithm == "blake3"
                else _ALGORITHMS[algorithm]()
            )
            hasher.update(data)
            return f"{algorithm}:{hasher.hexdigest()}"
    return _digest_chunks(file, algorithm)


def _digest_chunks(file: BinaryIO, algorithm: str) -> str:
    hasher = _ALGORITHMS[algorithm]()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        hasher.update(chunk)
    return f"{algorithm}:{hasher.hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file: POSIX path relative to the checkpoint, size in bytes, digest."""

    path: str
    size: int
    digest: str

    def open(self, root: Path) -> BinaryIO:
        """Open the file below `root`, and return it once its size and digest are right.

        What was judged is the open file: another one that takes its path afterwards is not
        read. It stands at its beginning.

        Raises:
            DigestMismatch: If the file is missing, or its size or digest differs.
        """
        try:
            file = (root / self.path).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise _mismatch(self.path, self.digest, "no file") from error
        try:
            size = os.fstat(file.fileno()).st_size
            if size != self.size:
                raise _mismatch(self.path, f"{self.size} bytes", f"{size} bytes")
            found = digest_file(file, self.digest.partition(":")[0])
            if found != self.digest:
                raise _mismatch(self.path, self.digest, found)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def verify(self, root: Path) -> Path:
        """Return the file's path below `root` once its size and digest are right.

        Raises:
            DigestMismatch: As `open`.
        """
        with self.open(root):
            return root / self.path


def _mismatch(path: str, expected: str, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"The file {path!r} is not the one that was committed. Expected: {expected}. "
        f"Found: {found}. Do not use it; take another checkpoint "
        "(`mlflow-ckpt list <run_id>` shows them).",
        path=path,
        expected=expected,
        found=found,
    )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`, format 1.0.

    Attributes:
        files: Every file of the checkpoint but this one.
        checkpoint: Series, kind, epoch, step, fit, metrics, monitor, mode.
        model: Fingerprint of architecture and optimizer: see `fingerprint.py`.
        versions: Package name to version, of the process that wrote it.
        format: `<major>.<minor>`; a newer major is refused, unknown fields are ignored.
    """

    files: Sequence[FileEntry]
    checkpoint: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    format: str = FORMAT

    @classmethod
    def build(
        cls,
        root: Path,
        *,
        checkpoint: Mapping[str, Any],
        model: Mapping[str, Any],
        versions: Mapping[str, str],
        known: Sequence[FileEntry] = (),
    ) -> Manifest:
        """List every file below `root`, and digest those that are not `known`."""
        entries = []
        given = {entry.path: entry for entry in known}
        for path in sorted(p for p in root.rglob("*") if p.is_file() and p != root / FILENAME):
            name = path.relative_to(root).as_posix()
            if name in given:
                entries.append(given[name])
                continue
            with path.open("rb") as file:
                entries.append(
                    FileEntry(path=name, size=path.stat().st_size, digest=digest_file(file))
                )
        return cls(files=entries, checkpoint=checkpoint, model=model, versions=versions)

    @property
    def total_bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def to_bytes(self) -> bytes:
        """Serialise as canonical JSON (sorted keys, UTF-8, no NaN)."""
        text = json.dumps(asdict(self), sort_keys=True, indent=1, allow_nan=False)
        return text.encode()

    @classmethod
    def parse(cls, data: bytes, *, digest: str) -> Manifest:
        """Check `data` against `digest`, then read it.

        Raises:
            DigestMismatch: If the bytes are not the committed ones.
            FormatTooNew: If the format's major version is newer than 1.
            ManifestError: If it is not a manifest.
        """
        algorithm = digest.partition(":")[0]
        if algorithm not in _ALGORITHMS:
            raise ManifestError(
                f"Expected one of {sorted(_ALGORITHMS)}. Received: digest={digest!r}"
            )
        found = digest_bytes(data, algorithm)
        if found != digest:
            raise _mismatch(FILENAME, digest, found)
        try:
            return cls._read(json.loads(data))
        except (
            LookupError,
            TypeError,
            AttributeError,
            ValueError,
            ArithmeticError,
            RecursionError,
        ) as error:
            if isinstance(error, (FormatTooNew, ManifestError)):
                raise
            raise ManifestError(f"{FILENAME} is not of format {_MAJOR}.x: {error!r}") from error

    @classmethod
    def _read(cls, raw: Mapping[str, Any]) -> Manifest:
        written = str(raw["format"])
        if int(written.partition(".")[0]) > _MAJOR:
            raise FormatTooNew(
                f"The checkpoint has format {written}, this version reads up to {_MAJOR}.x. "
                "Upgrade with: pip install -U mlflow-ckpt"
            )
        return cls(
            files=[_read_entry(entry) for entry in raw["files"]],
            checkpoint=dict(raw["checkpoint"]),
            model=dict(raw.get("model", {})),
            versions=dict(raw.get("versions", {})),
            format=written,
        )

    def entry(self, path: str) -> FileEntry | None:
        """The entry of `path`, or `None`."""
        return next((e for e in self.files if e.path == path), None)


def _read_entry(raw: Mapping[str, Any]) -> FileEntry:
    entry = FileEntry(path=str(raw["path"]), size=int(raw["size"]), digest=str(raw["digest"]))
    pure = PurePosixPath(entry.path)
    unsafe = pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in entry.path
    unsafe = unsafe or "\0" in entry.path or not _is_utf8(entry.path)
    if unsafe or ":" in pure.parts[0] or entry.size < 0:
        raise ManifestError(
            f"Expected a relative path inside the checkpoint. Received: {entry.path!r}"
        )
    if entry.digest.partition(":")[0] not in _ALGORITHMS:
        raise ManifestError(f"Expected one of {sorted(_ALGORITHMS)}. Received: {entry.digest!r}")
    return entry


def _is_utf8(text: str) -> bool:
    """JSON may escape half a surrogate pair, which no file name can hold."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
