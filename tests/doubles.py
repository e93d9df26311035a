"""Callbacks and stores that interrupt, fail or lie."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import mlflow.server
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.server import app, handlers
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from werkzeug.serving import WSGIRequestHandler, make_server

from mlflow_ckpt import writer


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


class Killed(BaseException):
    """Stands for a kill: no handler of errors sees it, so nothing after it runs."""


class HandedOver(LocalArtifactRepository):
    """An artifact store that is no plain folder to us: it gets its files handed over."""


class FailingUpload(HandedOver):
    """An artifact store that is full from its `fail_at`-th model on."""

    uploads = 0
    fail_at = 0

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        if Path(local_file).name == "model.keras":
            type(self).uploads += 1
            if type(self).uploads >= type(self).fail_at:
                raise self.error()
        super().log_artifact(local_file, artifact_path)

    def error(self) -> Exception:
        return OSError(28, "No space left on device", self.artifact_dir)


class RefusingUpload(FailingUpload):
    """An artifact store that refuses from its `fail_at`-th model on."""

    def error(self) -> Exception:
        return MlflowException("may not be written to", PERMISSION_DENIED)


class Gate:
    """Holds every call of a function between `close` and `open`: the writing of a snapshot.

    Args:
        owner, name: Another function to be held, such as `Store`, `"commit"`.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: Any = writer, name: str = "write_files"
    ) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()
        real = getattr(owner, name)

        def held(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            assert self._open.wait(60), "nobody opened the gate"
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, held)

    def close(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@contextmanager
def tracking_server(database: Path, folder: Path) -> Iterator[TrackingServer]:
    """MLflow's own tracking server with its artifact proxy, on a thread of this process."""
    settings = {
        mlflow.server.BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{database}",
        mlflow.server.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        mlflow.server.ARTIFACTS_DESTINATION_ENV_VAR: str(folder),
        mlflow.server.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        for name in ("_tracking_store", "_artifact_repo", "_model_registry_store"):
            patch.setattr(handlers, name, None)
        # At its first request it would point this process's client at the database.
        handlers._get_tracking_store()
        handlers._get_model_registry_store()
        mlflow.set_registry_uri(None)
        server = TrackingServer()
        server.start()
        try:
            yield server
        finally:
            server.stop()


class TrackingServer:
    """A running server that remembers what it was asked.

    Attributes:
        uri: Its tracking URI.
        requests: `<method> <path>?<query>` of each request, in the order of their arrival.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: Any, start_response: Any) -> Any:
        query = environ["QUERY_STRING"] and "?" + environ["QUERY_STRING"]
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query}")
        return app(environ, start_response)


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Say nothing."""


class CannotDelete(LocalArtifactRepository):
    """An artifact store without deletion."""

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise NotImplementedError("this store keeps everything")
