"""Take the state of a live model, the last touch before training goes on.

Three strategies, from the fastest to the most general:

    copy-on-write   share the buffers of the variables; TensorFlow copies a buffer only if
                    training updates it while the snapshot still holds it
    host-copy       copy every tensor into buffers of our own, with several threads: for
                    accelerators, distributed variables and other Keras backends
    keras           let Keras write the live model, before the next batch: where a layer
                    stores something that has no fixed place in the file

Which one is in use, and why not a faster one, is for everyone to see (`Capturer.strategy`
and `reason`). Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import keras

from mlflow_ckpt import fingerprint, formats, keras_internals
from mlflow_ckpt.captured import Captured, why_not_copy_on_write
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import ConfigError, ModelNotBuilt
from mlflow_ckpt.host_copy import HostCopies
from mlflow_ckpt.keras_internals import CannotRecord
from mlflow_ckpt.manifest import FileEntry
from mlflow_ckpt.say import say
from mlflow_ckpt.state_mark import StateMark
from mlflow_ckpt.template import Template

Strategy = Literal["copy-on-write", "host-copy", "keras"]
Progress = Callable[[int], None]

# Snapshots of a process that are checked for foreign writes: the first ones, then each n-th.
_CHECK_FIRST, _CHECK_EVERY = 3, 100


class Snapshot(Protocol):
    """State of one model at one instant.

    Attributes:
        fingerprint: `fingerprint.describe` of the model.
        spec: `fingerprint.io_spec` of the model.
        weights_only: Whether `write` makes `.weights.h5` instead of `.keras`.
        strategy: How it was taken.
        valid_while_training: Whether training may go on before `write` has returned.
        state_bytes: Bytes of all tensors.
    """

    @property
    def fingerprint(self) -> dict[str, Any]: ...
    @property
    def spec(self) -> dict[str, list[list[Any]]] | None: ...
    @property
    def weights_only(self) -> bool: ...
    @property
    def strategy(self) -> Strategy: ...
    @property
    def valid_while_training(self) -> bool: ...
    @property
    def state_bytes(self) -> int: ...
    def write(self, directory: Path, progress: Progress | None = None) -> list[FileEntry]:
        """Write the model's files below `directory`, durably, and release what is written.

        Returns:
            The files whose digest is already known.

        Raises:
            OSError: If the disk is full or fails.
            SnapshotTorn: If training wrote into the snapshot.
        """

    def release(self) -> None:
        """Let go of every tensor. Safe to call twice."""


class _LiveSnapshot:
    """A snapshot that still reads the live model. Do not keep it beyond the hook."""

    strategy: Strategy = "keras"
    valid_while_training = False

    def __init__(self, model: keras.Model, weights_only: bool) -> None:
        self._model = model
        self.weights_only = weights_only
        self.fingerprint = fingerprint.describe(model)
        self.spec = fingerprint.io_spec(model)
        self.state_bytes = fingerprint.state_bytes(model)

    def write(self, directory: Path, progress: Progress | None = None) -> list[FileEntry]:
        write = formats.write_weights if self.weights_only else formats.write_model
        with keras_internals.regarded_as_built(self._model):
            write(self._model, directory)
        return []

    def release(self) -> None:
        """Nothing is held."""


class Capturer:
    """Takes the snapshots of one model and keeps what it learns from one to the next.

    Args:
        model: The model.
        weights_only: Whether to write `.weights.h5` instead of `.keras`.
        strategy: `"auto"` takes the fastest that works here; a name insists on one.

    Attributes:
        strategy: The one in use; known after the first capture.
        reason: Why it is not copy-on-write, or `None`.

    Raises:
        ConfigError: If copy-on-write is insisted on and does not work here.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        weights_only: bool = False,
        strategy: Strategy | Literal["auto"] = "auto",
    ) -> None:
        self._model = model
        self._weights_only = weights_only
        self._asked = strategy
        self._template: Template | None = None
        self._copies = HostCopies()
        self._captures = 0
        self.strategy: Strategy = "keras" if strategy == "keras" else "copy-on-write"
        self.reason: str | None = "asked for" if strategy == "keras" else None

    def capture(self) -> Snapshot:
        """Take the state of the model as it is now. One snapshot at a time should be alive.

        Raises:
            ModelNotBuilt: If the model has no variables because it was never built.
            SaveFailed: If the model does not serialise.
        """
        if not keras_internals.has_variables(self._model):
            raise ModelNotBuilt(
                f"The model {self._model.name!r} was never built, so there is nothing to save. "
                "Call it once on a batch, or give it an Input."
            )
        if self.strategy == "keras":
            return _LiveSnapshot(self._model, self._weights_only)
        try:
            return self._take()
        except CannotRecord as error:
            self.strategy, self.reason = "keras", str(error)
            self._template = None
            say(f"Keras itself writes this model while training waits: {error}")
            return _LiveSnapshot(self._model, self._weights_only)

    def _take(self) -> Captured:
        if self._template is not None and self._template.fits():
            try:
                return self._fill(self._template)
            except CannotRecord:
                pass  # A layer stores other tensors than before: learn anew, and then it counts.
        self._template = Template(self._model, weights_only=self._weights_only)
        self._choose(self._template)
        return self._fill(self._template)

    def _choose(self, template: Template) -> None:
        obstacle = why_not_copy_on_write(template.variables)
        if self._asked == "copy-on-write" and obstacle:
            raise ConfigError(f"Copy-on-write does not work here: {obstacle}.")
        if self._asked == "host-copy":
            obstacle = "asked for"
        self.strategy = "host-copy" if obstacle else "copy-on-write"
        self.reason = obstacle

    def _fill(self, template: Template) -> Captured:
        if self.strategy == "copy-on-write" and (torn := why_not_copy_on_write([])):
            self.strategy, self.reason = "host-copy", torn
            say(f"copies the state in memory from now on: {torn}")
        self._captures += 1
        checked = self._captures <= _CHECK_FIRST or self._captures % _CHECK_EVERY == 0
        return Captured(
            template,
            template.content(),
            weights_only=self._weights_only,
            copies=self._copies if self.strategy == "host-copy" else None,
            checked=checked,
        )

    def mark(self) -> StateMark:
        """Remember what the model holds now, to ask later whether it still does."""
        return mark(self._model)


def mark(model: keras.Model) -> StateMark:
    """Remember what `model` holds now, in its own buffers where they can be shared."""
    variables = fingerprint.state_variables(model)
    return StateMark(model, borrow=why_not_copy_on_write(variables) is None)


def capture(model: keras.Model, *, weights_only: bool = False) -> Snapshot:
    """Take one snapshot of `model`; see `Capturer.capture`."""
    return Capturer(model, weights_only=weights_only).capture()


def content_digest(model: keras.Model) -> str:
    """Digest of every weight and optimizer variable: equal digests mean equal checkpoints."""
    parts = [
        digest_bytes(keras.ops.convert_to_numpy(v).tobytes())
        for v in fingerprint.state_variables(model)
    ]
    return digest_bytes("".join(parts).encode())
