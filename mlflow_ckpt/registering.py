"""Register a checkpoint: pin what a selector names, slim it, add a version that says what it is.

    selector -> checkpoint, verified -> slim copy (`slim_copy.py`) -> version -> alias

A version names `models:/m-...`, never a selector: what is served does not move under who asks.
Slim, it is a LoggedModel of its own without training state and optimizers, so that the checkpoint
may be pruned; whole, it is the checkpoint's own, which is pinned until it is registered.

Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow_ckpt import registry_names, served, slim_copy
from mlflow_ckpt.errors import StoreError
from mlflow_ckpt.say import say
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.served import Served
from mlflow_ckpt.store import Registry, Store

_METRIC = "ckpt.metric."


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version in the model registry, and the checkpoint that it was made from.

    Attributes:
        name, version, alias: Which one.
        source: What it serves: `models:/<model_id>`, of the slim copy or of the checkpoint.
        model_id, run_id, series, step, epoch, metrics: Those of the checkpoint.
        slim: Whether it serves a copy without what only training needs.
        keeps_optimizer: Whether the state of an optimizer is in what it serves.
        bytes_before: Of the checkpoint's files.
        bytes: Of the files of what it serves.
    """

    name: str
    version: int
    alias: str | None
    source: str
    model_id: str
    run_id: str
    series: str
    step: int
    epoch: int
    metrics: Mapping[str, float]
    slim: bool
    keeps_optimizer: bool
    bytes_before: int
    bytes: int

    @property
    def uri(self) -> str:
        """`models:/<name>/<version>`."""
        return f"models:/{self.name}/{self.version}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"uri": self.uri, **vars(self), "metrics": dict(self.metrics)}


def register(
    run_id: str,
    which: str | Selector,
    name: str,
    alias: str | None = None,
    slim: bool = True,
    *,
    tags: Mapping[str, object] | None = None,
) -> Registered:
    """Add a checkpoint to the model registry, as a version that can be served.

    The version's tags say where it came from: `ckpt.run_id`, `ckpt.series`, `ckpt.step`,
    `ckpt.epoch`, `ckpt.model_id`, `ckpt.manifest_digest`, `ckpt.slim`, and `ckpt.metric.<name>`
    for each finite metric.

    Args:
        run_id, which: See `resolve`. A moving selector is resolved once, now.
        name: Of the registered model. It is made if there is none.
        alias: Let it name this version from now on, as in `models:/<name>@<alias>`.
        slim: Whether to serve a copy without training state and optimizers, which needs neither
            the checkpoint nor the user's loss or optimizer any more; else the checkpoint itself.
        tags: Further tags of the version.

    Raises:
        ConfigError: If the name, the alias or a tag is not allowed, or the checkpoint holds
            weights only.
        DigestMismatch: If one of its files is not the committed one.
        ModelNotLoadable: If its model file is not what Keras writes.
        UnsupportedStore: If there is no model registry.
        SelectorError, NotFound, StoreError: As `resolve`, or if this user may not.

    What is raised before there is a version leaves nothing that is served.
    """
    registry_names.check_names(name, alias)
    given = registry_names.check_tags(tags or {})
    store, selector = Store(), Selector.parse(which)
    run, registry = store.run(run_id), Registry(store.uri)
    state, source = registry.look(name), None
    with ExitStack() as undo:
        folder = Path(undo.enter_context(TemporaryDirectory(prefix="mlflow-ckpt-")))
        try:
            if slim:
                source = served.slimmed(store, registry.slim, run, selector, folder)
            else:
                source = served.whole(store, run, selector, folder, undo)
            if state == "missing" and registry.create(name):
                state = "made"
            version = registry.add_version(
                name, source.model_id, run_id, {**given, **_tags(source)}, _about(source, selector)
            )
        except BaseException as error:
            _take_back(registry, name if state == "made" else None, source, error)
            raise
    if alias is not None:
        _set_alias(registry, name, alias, version)
    return _registered(name, version, alias, source)


# --- the version --------------------------------------------------------------


def _tags(source: Served) -> dict[str, str]:
    checkpoint = source.checkpoint
    metrics = {f"{_METRIC}{key}": repr(value) for key, value in checkpoint.metrics.items()}
    return {
        "ckpt.run_id": checkpoint.run_id,
        "ckpt.series": checkpoint.series,
        "ckpt.step": str(checkpoint.step),
        "ckpt.epoch": str(checkpoint.epoch),
        "ckpt.model_id": checkpoint.model_id,
        "ckpt.manifest_digest": checkpoint.digest,
        "ckpt.slim": "true" if source.slim else "false",
        # A name that is longer than MLflow's limit with this before it is left out.
        **{key: value for key, value in metrics.items() if len(key) <= registry_names.LONGEST_KEY},
    }


def _about(source: Served, selector: Selector) -> str:
    checkpoint = source.checkpoint
    left_out = "training state" if source.keeps_optimizer else "training state and optimizer"
    return (
        f"{checkpoint.name} of run {checkpoint.run_id}, found as {selector}: epoch "
        f"{checkpoint.epoch}, step {checkpoint.step}"
        + (f"; without {left_out}." if source.slim else "; the whole checkpoint.")
    )


def _take_back(
    registry: Registry, name: str | None, source: Served | None, error: BaseException
) -> None:
    """Delete what was made for a version that could not be made because of `error`.

    Args:
        name: Of the registered model, if it was made.
    """
    if source is not None and source.made is not None:
        slim_copy.discard(registry.slim, source.made, error)
    if name is not None and not isinstance(error, ConnectionError):
        try:
            registry.drop(name)
        except StoreError as second:
            say(f"the registered model {name!r} is left over: {second}")


def _set_alias(registry: Registry, name: str, alias: str, version: int) -> None:
    try:
        registry.set_alias(name, alias, version)
    except StoreError as error:
        call = f"MlflowClient().set_registered_model_alias({name!r}, {alias!r}, {version})"
        raise type(error)(
            f"{error} models:/{name}/{version} is registered, without that alias. Set it with: "
            f'python -c "from mlflow import MlflowClient; {call}"'
        ) from error


def _registered(name: str, version: int, alias: str | None, source: Served) -> Registered:
    checkpoint = source.checkpoint
    return Registered(
        name=name,
        version=version,
        alias=alias,
        source=f"models:/{source.model_id}",
        model_id=checkpoint.model_id,
        run_id=checkpoint.run_id,
        series=checkpoint.series,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        metrics=dict(checkpoint.metrics),
        slim=source.slim,
        keeps_optimizer=source.keeps_optimizer,
        bytes_before=checkpoint.bytes,
        bytes=source.bytes,
    )
