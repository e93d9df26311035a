"""Say which files a checkpoint has and prove that they are the committed ones.

`manifest.json` lists every other file with its size in bytes and its digest. It
is written last and its own digest stands in a tag, so one tag vouches for every
byte. It holds no run ID and no model ID: a copied run still verifies.

    files on disk -> Manifest.build -> to_bytes -> upload -> digest -> tag
    tag -> digest -> Manifest.parse -> FileEntry.open -> parse the open file

Paths are POSIX and relative to the checkpoint. Digests are `<algorithm>:<hex>`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mlflow_ckpt import card_content, plain_json
from mlflow_ckpt.below import NO_FILE, open_below
from mlflow_ckpt.digests import algorithm_of, digest_bytes, digest_file
from mlflow_ckpt.errors import DigestMismatch, FormatTooNew, ManifestError
from mlflow_ckpt.format_version import check_format
from mlflow_ckpt.manifest_fields import (
    count,
    listed,
    mapping,
    read_checkpoint,
    read_model,
    read_versions,
)
from mlflow_ckpt.manifest_paths import check_each_once, check_path

FILENAME = "manifest.json"
FORMAT = "1.0"
_MAJOR = 1
NO_FILE_FOUND = "no file"
LARGEST = 256 << 20  # bytes of a manifest; that of 100,000 variables has 20 MiB


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint.

    Attributes:
        path: POSIX, relative to the checkpoint.
        size: In bytes.
        digest: Of its bytes.
        content: Of an `MLmodel`, the digest of what it says: see `card_content.py`. A file of
            other bytes that says the same is the committed one.
    """

    path: str
    size: int
    digest: str
    content: str | None = None

    @property
    def limit(self) -> int:
        """How many bytes the file may have."""
        return self.size if self.content is None else max(self.size, card_content.MAX_BYTES)

    def open(self, root: Path) -> BinaryIO:
        """Open the file below `root`, and return it once its size and digest are right.

        What was judged is the open file: another one that takes its path afterwards is not
        read. It stands at its beginning.

        No link below `root` is followed, and nothing but a regular file is read: a pipe would
        hold the reader for ever.

        Raises:
            DigestMismatch: If the file is missing, a link, or its size or digest differs.
        """
        try:
            file = open_below(root, self.path)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            raise _mismatch(
                self.path, self.digest, f"{NO_FILE_FOUND} ({error.strerror})"
            ) from error
        try:
            fault = self._fault(file)
            if fault is not None and not self._says_the_same(file):
                raise fault
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _fault(self, file: BinaryIO) -> DigestMismatch | None:
        size = os.fstat(file.fileno()).st_size
        if size != self.size:
            return _mismatch(self.path, f"{self.size} bytes", f"{size} bytes")
        found = digest_file(file, self.digest.partition(":")[0])
        return None if found == self.digest else _mismatch(self.path, self.digest, found)

    def _says_the_same(self, file: BinaryIO) -> bool:
        if self.content is None:
            return False
        file.seek(0)
        data = file.read(card_content.MAX_BYTES + 1)
        return card_content.digest(data, self.content.partition(":")[0]) == self.content

    def verify(self, root: Path) -> Path:
        """Return the file's path below `root` once its size and digest are right.

        Raises:
            DigestMismatch: As `open`.
        """
        with self.open(root):
            return root / self.path


def read_bounded(root: Path) -> bytes:
    """The manifest below `root`, if it is no larger than one can be.

    Raises:
        DigestMismatch: If it is missing, a link, or larger than 256 MiB.
    """
    try:
        with open_below(root, FILENAME) as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise _mismatch(FILENAME, "a manifest", f"{NO_FILE_FOUND} ({error.strerror})") from error
    if len(data) > LARGEST:
        raise _mismatch(FILENAME, f"at most {LARGEST} bytes", "more")
    return data


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
            content = card_content.digest(path.read_bytes()) if name == card_content.PATH else None
            with path.open("rb") as file:
                size, digest = path.stat().st_size, digest_file(file)
            entries.append(FileEntry(path=name, size=size, digest=digest, content=content))
        return cls(files=entries, checkpoint=checkpoint, model=model, versions=versions)

    @property
    def total_bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without what is `None` of a file."""
        files = [
            {key: value for key, value in asdict(entry).items() if value is not None}
            for entry in self.files
        ]
        return {**asdict(self), "files": files}

    def to_bytes(self) -> bytes:
        """Serialise as canonical JSON (sorted keys, UTF-8, no NaN)."""
        text = json.dumps(self.to_dict(), sort_keys=True, indent=1, allow_nan=False)
        return text.encode()

    @classmethod
    def parse(cls, data: bytes, *, digest: str) -> Manifest:
        """Check `data` against `digest`, then read it.

        Raises:
            DigestMismatch: If the bytes are not the committed ones.
            FormatTooNew: If the format's major version is newer than 1, or a digest is of an
                algorithm that none of 1.x names.
            ManifestError: If it is not a manifest.
        """
        found = digest_bytes(data, algorithm_of(digest, "The checkpoint's manifest"))
        if found != digest:
            raise _mismatch(FILENAME, digest, found)
        try:
            return cls._read(plain_json.loads(data))
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            if isinstance(error, (FormatTooNew, ManifestError)):
                raise
            raise ManifestError(f"{FILENAME} is not of format {_MAJOR}.x: {error!r}") from error

    @classmethod
    def _read(cls, raw: Mapping[str, Any]) -> Manifest:
        written = check_format(raw["format"], "The checkpoint")
        files = [_read_entry(mapping(entry)) for entry in listed(raw["files"])]
        check_each_once((entry.path for entry in files), FILENAME)
        return cls(
            files=files,
            checkpoint=read_checkpoint(raw["checkpoint"]),
            model=read_model(raw.get("model", {})),
            versions=read_versions(raw.get("versions", {})),
            format=written,
        )

    def entry(self, path: str) -> FileEntry | None:
        """The entry of `path`, or `None`."""
        return next((e for e in self.files if e.path == path), None)


def _read_entry(raw: Mapping[str, Any]) -> FileEntry:
    path, size, digest = check_path(raw["path"]), raw["size"], raw["digest"]
    # Of a file that is read, the bytes count.
    content = raw.get("content") if path == card_content.PATH else None
    for each in (digest,) if content is None else (digest, content):
        algorithm_of(each, f"The file {path!r}")
    return FileEntry(path=path, size=count(size, "size"), digest=digest, content=content)
