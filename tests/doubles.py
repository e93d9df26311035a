"""Callbacks and stores that interrupt, fail or lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository


class StopHere(Exception):
    """Raised by `RaiseAt`."""


class RaiseAt(keras.callbacks.Callback):
    """Break a fit off in the middle of an epoch (counted from 1)."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.at = epoch
        self.now = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.now = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.now == self.at:
            raise StopHere(f"epoch {self.at}")


class NaNFrom(keras.callbacks.Callback):
    """Ruin the weights before an epoch (counted from 1), as a divergence does."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.at = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch + 1 == self.at:
            for variable in self.model.trainable_variables:
                variable.assign(variable * float("nan"))


class Remembering(keras.callbacks.Callback):
    """A user's own callback with state and the two methods."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"])

    def checkpoint_state(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


class FailingUpload(LocalArtifactRepository):
    """An artifact store that is full from its `fail_at`-th upload of a folder on."""

    uploads = 0
    fail_at = 0

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        type(self).uploads += 1
        if type(self).uploads >= type(self).fail_at:
            first = min(p for p in Path(local_dir).rglob("*") if p.is_file())
            self.log_artifact(str(first))
            raise OSError(28, "No space left on device", self.artifact_dir)
        super().log_artifacts(local_dir, artifact_path)


class CannotDelete(LocalArtifactRepository):
    """An artifact store without deletion."""

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise NotImplementedError("this store keeps everything")
