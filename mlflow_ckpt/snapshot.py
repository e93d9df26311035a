"""Take the state of a live model, the last touch before training goes on.

A snapshot owns what it needs to write a checkpoint. The only kind today reads the
live model, so it must be written before the next batch (`valid_while_training` is
False and the writer obeys). A copying kind fits behind the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras

from mlflow_ckpt import fingerprint, formats, keras_internals
from mlflow_ckpt.errors import ModelNotBuilt
from mlflow_ckpt.manifest import digest_bytes


class Snapshot(Protocol):
    """State of one model at one instant.

    Attributes:
        fingerprint: `fingerprint.describe` of the model.
        weights_only: Whether `write` makes `.weights.h5` instead of `.keras`.
        valid_while_training: Whether training may go on before `write` has returned.
    """

    @property
    def fingerprint(self) -> dict[str, Any]: ...
    @property
    def weights_only(self) -> bool: ...
    @property
    def valid_while_training(self) -> bool: ...
    def write(self, directory: Path) -> None:
        """Write the model's files below `directory`."""


@dataclass(frozen=True)
class LiveSnapshot:
    """A snapshot that still reads the live model. Do not keep it beyond the hook."""

    model: keras.Model
    fingerprint: dict[str, Any]
    weights_only: bool
    valid_while_training: bool = False

    def write(self, directory: Path) -> None:
        write = formats.write_weights if self.weights_only else formats.write_model
        with keras_internals.regarded_as_built(self.model):
            write(self.model, directory)


def capture(model: keras.Model, *, weights_only: bool = False) -> Snapshot:
    """Take a snapshot of `model`.

    Raises:
        ModelNotBuilt: If the model has no variables because it was never built.
    """
    if not keras_internals.has_variables(model):
        raise ModelNotBuilt(
            f"The model {model.name!r} was never built, so there is nothing to save. "
            "Call it once on a batch, or give it an Input."
        )
    return LiveSnapshot(model, fingerprint.describe(model), weights_only)


def content_digest(model: keras.Model) -> str:
    """Digest of every weight and optimizer variable: equal digests mean equal checkpoints."""
    variables = list(model.weights)
    for _, optimizer in fingerprint.optimizers_of(model):
        variables.extend(optimizer.variables)
    parts = [digest_bytes(keras.ops.convert_to_numpy(v).tobytes()) for v in variables]
    return digest_bytes("".join(parts).encode())
