"""A snapshot that owns its state: shared buffers or copies, and the bytes around them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlflow_ckpt import formats, keras_internals
from mlflow_ckpt.archive import Archive
from mlflow_ckpt.errors import SnapshotTorn
from mlflow_ckpt.host_copy import Buffers, HostCopies, host_array
from mlflow_ckpt.manifest import FileEntry
from mlflow_ckpt.stream import Stream
from mlflow_ckpt.template import Content, Template, to_json

# Bytes of a tensor's beginning and end by which a foreign write is noticed.
_SAMPLE = 64

# Why this process has given up sharing buffers, once it was seen not to work.
_torn: list[str] = []


def why_not_copy_on_write(variables: Sequence[Any]) -> str | None:
    """Why buffers cannot be shared in this process, or not those of `variables`; else `None`."""
    if _torn:
        return _torn[0]
    obstacle = keras_internals.copies_on_write()
    if obstacle is not None:
        return obstacle
    foreign = next((v for v in variables if not keras_internals.can_borrow(v)), None)
    return None if foreign is None else f"{foreign.path} does not lie in host memory by itself"


def forget_copy_on_write(reason: str) -> None:
    """Share no buffers in this process from now on."""
    if not _torn:
        _torn.append(reason)


class Captured:
    """State of one model at one instant, written once and released while it is written.

    Args:
        template: Structure of the file.
        content: What is no plain copy of a variable.
        weights_only: Whether to write `.weights.h5` instead of `.keras`.
        copies: Buffers to copy to; `None` shares the variables' own.
        checked: Whether to notice a write into a shared buffer.
    """

    valid_while_training = True

    def __init__(
        self,
        template: Template,
        content: Content,
        *,
        weights_only: bool,
        copies: HostCopies | None,
        checked: bool,
    ) -> None:
        self._layout = template.layout
        self._content = content
        self._stamp = time.localtime()
        self._copies = copies
        self.fingerprint = template.fingerprint
        self.spec = template.spec
        self.weights_only = weights_only
        self.strategy: Literal["copy-on-write", "host-copy"] = (
            "copy-on-write" if copies is None else "host-copy"
        )
        self.state_bytes = template.layout.state_bytes
        self._index_of = dict(template.index_of)
        variables = list(template.variables)
        for index, value in content.computed.items():
            self._index_of[index] = len(variables)
            variables.append(value)
        self._buffers: Buffers = []
        self._values = self._hold(variables, len(template.variables))
        self._samples = self._take_samples() if checked and copies is None else {}

    def _hold(self, variables: Sequence[Any], plain: int) -> list[Any]:
        """Each value as a borrowed tensor or an array of ours."""
        if self._copies is not None:
            self._buffers = self._copies.take(variables[:plain])
            return [*self._buffers, *(_owned(value) for value in variables[plain:])]
        # A computed value may be a variable too, or already an array of ours.
        shared = [i for i, v in enumerate(variables) if not isinstance(v, np.ndarray)]
        held: list[Any] = list(variables)
        for i, tensor in zip(
            shared, keras_internals.borrow([variables[i] for i in shared]), strict=True
        ):
            held[i] = tensor
        return held

    def _take_samples(self) -> dict[int, bytes]:
        return {position: _sample(_array(value)) for position, value in enumerate(self._values)}

    # --- writing --------------------------------------------------------------

    def write(
        self, directory: Path, progress: Callable[[int], None] | None = None
    ) -> list[FileEntry]:
        """See `Snapshot.write`."""
        try:
            if self.weights_only:
                return self._write_weights(directory, progress)
            return self._write_model(directory, progress)
        finally:
            self.release()

    def _write_model(
        self, directory: Path, progress: Callable[[int], None] | None
    ) -> list[FileEntry]:
        content = self._content
        assert content.config is not None, "only weights come without a config"
        assert content.metadata is not None, "only weights come without metadata"
        with Stream(directory / formats.MODEL, progress) as stream:
            archive = Archive(stream, self._stamp)
            archive.add("metadata.json", to_json(content.metadata))
            archive.add("config.json", to_json(content.config))
            archive.begin(formats.MEMBER, self._layout.size)
            self._write_pieces(stream)
            archive.end()
            for name, data in content.assets.items():
                archive.add(name, data)
            archive.close()
            return [stream.close(directory)]

    def _write_weights(
        self, directory: Path, progress: Callable[[int], None] | None
    ) -> list[FileEntry]:
        entries = []
        with Stream(directory / formats.WEIGHTS, progress) as stream:
            self._write_pieces(stream)
            entries.append(stream.close(directory))
        if self._content.config is not None:
            with Stream(directory / formats.CONFIG, progress) as stream:
                stream.write(to_json(self._content.config))
                entries.append(stream.close(directory))
        return entries

    def _write_pieces(self, stream: Stream) -> None:
        last_use = {self._index_of[p]: p for p in self._layout.pieces if isinstance(p, int)}
        for piece in self._layout.pieces:
            if isinstance(piece, bytes):
                stream.write(piece)
                continue
            position = self._index_of[piece]
            stream.write(_array(self._values[position]))
            self._check(position)
            if last_use[position] == piece and self._copies is None:
                # From here on training updates this tensor in place again.
                self._values[position] = None

    def _check(self, position: int) -> None:
        """Notice that training wrote into a shared buffer, which must never happen."""
        before = self._samples.get(position)
        if before is None or before == _sample(_array(self._values[position])):
            return
        reason = "training wrote into memory that a snapshot shared"
        forget_copy_on_write(reason)
        raise SnapshotTorn(
            f"This checkpoint is void: {reason}. Later ones copy the state instead.",
            reason=RuntimeError(reason),
        )

    def release(self) -> None:
        """See `Snapshot.release`."""
        if self._copies is not None and self._buffers:
            self._copies.give_back(self._buffers)
        self._buffers = []
        self._values = []
        self._samples = {}


def _owned(value: Any) -> np.ndarray[Any, Any]:
    return value if isinstance(value, np.ndarray) else np.array(host_array(value))


def _array(value: Any) -> np.ndarray[Any, Any]:
    return value if isinstance(value, np.ndarray) else keras_internals.view(value)


def _sample(array: np.ndarray[Any, Any]) -> bytes:
    raw = array.reshape(-1).view(np.uint8)
    return raw[:_SAMPLE].tobytes() + raw[-_SAMPLE:].tobytes()
