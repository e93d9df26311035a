"""The model registry: registered models, their versions, and the aliases of those.

MLflow finds the registry by the tracking URI, unless `MLFLOW_REGISTRY_URI` or
`mlflow.set_registry_uri` names another one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from mlflow.exceptions import MlflowException

from mlflow_ckpt.errors import StoreError, UnsupportedStore
from mlflow_ckpt.store._connection import connect, translated
from mlflow_ckpt.store._slim import SlimCopies

_logger = logging.getLogger("mlflow_ckpt")

_VERSIONS_TAG = "mlflow.modelVersions"
_NO_TAG = "no-such-tag"

Found = Literal["there", "missing", "made"]


class Registry:
    """The model registry of a tracking server, and what is made there to be registered.

    Attributes:
        slim: The slim copies of checkpoints.
    """

    def __init__(self, uri: str) -> None:
        self._connection = connect(uri)
        self._client = self._connection.client
        self.slim = SlimCopies(self._connection)

    def look(self, name: str) -> Found:
        """Whether there is a registered model of this name, and this user may add versions to it.

        MLflow's basic-auth denies everything about one that is not there: then it is made now, and
        who made it may.

        Raises:
            UnsupportedStore: If there is no registry.
            StoreError: If this user may add none.
        """
        with _asking(f"add a version to the registered model {name!r}", name):
            try:
                # Needs the permission that a new version needs, and changes nothing.
                self._client.delete_registered_model_tag(name, _NO_TAG)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return "missing"
                if error.error_code == "PERMISSION_DENIED" and self.create(name):
                    return "made"
                raise
        return "there"

    def create(self, name: str) -> bool:
        """Make a registered model; whether there was none of this name."""
        with _asking(f"create the registered model {name!r}", name):
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                    raise
                return False
        return True

    def drop(self, name: str) -> None:
        """Delete a registered model again that has got no version."""
        with _asking(f"delete the registered model {name!r}", name):
            if not self._client.get_registered_model(name).latest_versions:
                self._client.delete_registered_model(name)

    def add_version(
        self, name: str, model_id: str, run_id: str, tags: Mapping[str, str], description: str
    ) -> int:
        """Make a version that has the files of a LoggedModel. Returns its number."""
        with _asking(f"add a version to the registered model {name!r}", name):
            version = self._client.create_model_version(
                name,
                f"models:/{model_id}",
                run_id=run_id,
                tags=dict(tags),
                description=description,
                model_id=model_id,
            )
        self._note(name, int(version.version), model_id)
        return int(version.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        with _asking(f"set the alias {alias!r} of the registered model {name!r}", name):
            self._client.set_registered_model_alias(name, alias, str(version))

    def _note(self, name: str, version: int, model_id: str) -> None:
        """Say at the LoggedModel which version it is, as MLflow's pages and `prune` want it.

        A tracking server does so itself. The version is there, whether it is said or not, and
        whoever is about to delete the model asks the registry too.
        """
        try:
            with translated("note a version"):
                tags = self._client.get_logged_model(model_id).tags
                there = json.loads(tags.get(_VERSIONS_TAG) or "[]")
                if not any(str(v["version"]) == str(version) and v["name"] == name for v in there):
                    noted = [*there, {"name": name, "version": version}]
                    self._connection.tag_model(model_id, {_VERSIONS_TAG: json.dumps(noted)})
        except (StoreError, ValueError, LookupError, TypeError) as error:
            _logger.debug("Not noted at %s: version %s of %r: %s", model_id, version, name, error)


@contextmanager
def _asking(action: str, name: str) -> Iterator[None]:
    """Turn MLflow's exceptions into our words, those of a registry first."""
    with translated(action):
        try:
            yield
        except MlflowException as error:
            if error.error_code == "ENDPOINT_NOT_FOUND":
                raise UnsupportedStore(
                    "There is no model registry at the tracking server: it does not know how to "
                    f"{action}. Name one with MLFLOW_REGISTRY_URI, or use a tracking server of "
                    "MLflow 3 with a database."
                ) from error
            if error.error_code == "PERMISSION_DENIED":
                raise StoreError(
                    f"The model registry does not permit to {action}. Ask for the permission EDIT "
                    f"on the registered model {name!r}, or choose another name."
                ) from error
            raise
