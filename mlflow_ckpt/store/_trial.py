"""What `testing` asks of a tracking server: runs to train in, and what they hold afterwards.

Bound to one URI from the start: it runs in a user's test process, whose own tracking URI and
active run are none of its business.
"""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

from mlflow_ckpt.say import errors_only
from mlflow_ckpt.store import _connection, _query
from mlflow_ckpt.store._connection import translated

_EXPERIMENT = "mlflow-ckpt prove"
# Costs of checkpoints, and MLflow's own measurements of the machine, are never the same.
_MEASURED = ("ckpt/", "system/")


class TrialStore:
    """Runs of one proof.

    Args:
        uri: Tracking URI.
        artifacts: Folder for the artifacts; `None` leaves the place to the server.

    Raises:
        StoreError: If the server cannot be used.
    """

    def __init__(self, uri: str, artifacts: Path | None = None) -> None:
        self.uri = uri
        with translated("begin a proof"), errors_only("mlflow"), errors_only("alembic"):
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(_EXPERIMENT)
            place = artifacts.as_uri() if artifacts else None
            self.experiment_id: str = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(_EXPERIMENT, artifact_location=place)
            )

    def new_run(self, name: str) -> str:
        """Make a run; returns its ID."""
        with translated("create a run"):
            return str(self._client.create_run(self.experiment_id, run_name=name).info.run_id)

    def standing(self, run_id: str) -> dict[str, int]:
        """The step of the newest committed checkpoint that a `fit` wrote, by series."""
        run = _connection.get_run(self._client, run_id)
        newest = {
            name: _query.newest(self._client, run, series, ("epoch", "batch"))
            for name, series in run.series.items()
        }
        return {name: found.step for name, found in newest.items() if found is not None}

    def history(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """Every metric as (step, value) rows, without those that measure the machine."""
        with translated("read the metrics"):
            names = self._client.get_run(run_id).data.metrics
            return {
                key: [(m.step, m.value) for m in self._client.get_metric_history(run_id, key)]
                for key in names
                if not any(part in key for part in _MEASURED)
            }
