"""The tag of a run in which the process that writes a series says so."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_ckpt.store._connection import translated


class LeaseTag:
    """Reads and writes one tag of one run. MLflow has no compare-and-swap for tags."""

    def __init__(self, client: MlflowClient, run_id: str, key: str) -> None:
        self._client = client
        self._run_id = run_id
        self._key = key

    def read(self) -> str | None:
        """The tag's value, or `None`.

        Raises:
            StoreError: If the server does not answer, or refuses.
        """
        with translated("read the lease"):
            return self._client.get_run(self._run_id).data.tags.get(self._key) or None

    def write(self, value: str) -> None:
        """Set the tag; raises as `read`."""
        with translated("write the lease"):
            self._client.set_tag(self._run_id, self._key, value)

    def clear(self) -> None:
        """Delete the tag, if there is one; raises as `read`."""
        with translated("give the lease back"):
            try:
                self._client.delete_tag(self._run_id, self._key)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
