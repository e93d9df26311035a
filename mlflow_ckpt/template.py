"""What stays the same from one checkpoint of a model to the next.

A template is learnt from one walk of Keras's own saving code. Most of a checkpoint is
then plain copies of variables at known places. The rest is asked for at each capture,
through Keras: layers that store something of their own (LoRA, quantized layers, lookup
tables, `save_own_variables`), asset files, and the optimizer's config, which holds the
learning rate.

    learn(model) -> Template -> fits()? -> Content -> Layout's pieces
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from mlflow_ckpt import fingerprint, keras_internals
from mlflow_ckpt.formats import serialized_or_none, unserializable
from mlflow_ckpt.host_copy import host_array
from mlflow_ckpt.keras_internals import CannotRecord
from mlflow_ckpt.layout import Layout, record
from mlflow_ckpt.structure import Structure

# How Keras writes the date into metadata.json.
_DATE = "%Y-%m-%d@%H:%M:%S"


@dataclass(frozen=True)
class Content:
    """What one checkpoint holds beside plain variables.

    Attributes:
        config: `config.json`; `None` for weights of a model that has none.
        metadata: `metadata.json`; `None` for weights.
        assets: Content by path in the archive.
        computed: Values by tensor index, for tensors that are no plain copy of a variable.
    """

    config: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None
    assets: Mapping[str, bytes]
    computed: Mapping[int, Any]


class Template:
    """One structure of one model.

    Args:
        model: The model, built.
        weights_only: Whether it is for `.weights.h5` instead of `.keras`.

    Attributes:
        layout: Bytes and places of the weights file.
        variables: What to copy: each variable once.
        index_of: By tensor index, the position in `variables`.
        fingerprint, spec: See `fingerprint.py`.

    Raises:
        CannotRecord: If Keras must write this model itself.
        SaveFailed: If the model does not serialise.
    """

    def __init__(self, model: keras.Model, *, weights_only: bool) -> None:
        self._model = model
        self._weights_only = weights_only
        recording, self.layout = record(model)
        self._owners = recording.owners
        self._with_assets = () if weights_only else recording.with_assets
        self._computing = _owners_that_compute(self.layout)
        self._learn_variables()
        self._learn_config()
        self.fingerprint = fingerprint.describe(model)
        self.spec = fingerprint.io_spec(model)
        self._structure = Structure(self._owners)

    def _learn_variables(self) -> None:
        positions: dict[int, int] = {}
        self.variables: list[Any] = []
        self.index_of: dict[int, int] = {}
        for index, tensor in enumerate(self.layout.tensors):
            if id(tensor.owner) in self._computing or tensor.offset is None:
                continue
            # A loss-scaling optimizer stores its inner optimizer's variables once more.
            if id(tensor.variable) not in positions:
                positions[id(tensor.variable)] = len(self.variables)
                self.variables.append(tensor.variable)
            self.index_of[index] = positions[id(tensor.variable)]

    def _learn_config(self) -> None:
        self._config, self._metadata = self._serialize()
        self._optimizer = getattr(self._model, "optimizer", None)
        found = _optimizer_config(self._config)
        # Only where it stands in the config as it is can it be put there anew.
        self._patches_optimizer = found is not None and found == self._serialized_optimizer()
        self._always_serializes = _names_foreign_classes(self._config) or (
            found is not None and not self._patches_optimizer
        )
        rates = (keras_internals.learning_rate_variable(o) for o in self._owners)
        self._rates = [rate for rate in rates if rate is not None]
        self._rate_values = self._read_rates()

    def _serialized_optimizer(self) -> Any:
        return json.loads(json.dumps(keras_internals.serialize_shared(self._optimizer)))

    def _serialize(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        if self._weights_only:
            config = serialized_or_none(self._model)
            return (None if config is None else json.loads(json.dumps(config))), None
        try:
            return keras_internals.serialize(self._model)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise unserializable(self._model, error) from error

    def _read_rates(self) -> list[float]:
        return [float(host_array(rate)) for rate in self._rates]

    def fits(self) -> bool:
        """Whether the model still has the structure that was learnt."""
        return self._structure.stands()

    def content(self) -> Content:
        """Ask for everything that is no plain copy of a variable.

        Raises:
            CannotRecord: If a layer stores other tensors than before.
            SaveFailed: If the model does not serialise any more.
        """
        self._update_config()
        now = datetime.datetime.now().strftime(_DATE)
        metadata = None if self._metadata is None else {**self._metadata, "date_saved": now}
        return Content(self._config, metadata, self._assets(), self._computed())

    def _update_config(self) -> None:
        if self._always_serializes:
            self._config, self._metadata = self._serialize()
        elif self._patches_optimizer and (rates := self._read_rates()) != self._rate_values:
            self._rate_values = rates
            assert self._config is not None, "an optimizer was found in it"
            # A new mapping: the one before may still be waiting to be written.
            compiled = self._config["compile_config"]
            compiled = {**compiled, "optimizer": self._serialized_optimizer()}
            self._config = {**self._config, "compile_config": compiled}

    def _assets(self) -> dict[str, bytes]:
        folder = keras_internals.assets_folder()
        found: dict[str, bytes] = {}
        for where, owner in self._with_assets:
            with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as directory:
                for name, data in keras_internals.own_assets(owner, Path(directory)):
                    found["/".join(part for part in (folder, where, name) if part)] = data
        return found

    def _computed(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for owner, indices in self._computing.values():
            values = keras_internals.own_variables(owner)
            tensors = {self.layout.tensors[i].key: i for i in indices}
            if list(values) != list(tensors):
                raise CannotRecord(f"{type(owner).__name__} stores other variables than before.")
            for key, value in values.items():
                tensor = self.layout.tensors[tensors[key]]
                if not keras_internals.is_like(value, tensor):
                    raise CannotRecord(f"{type(owner).__name__} stores another {key!r}.")
                if tensor.offset is not None:
                    found[tensors[key]] = value
        return found


def _owners_that_compute(layout: Layout) -> dict[int, tuple[Any, list[int]]]:
    """Owners with a tensor that is no plain copy, by ID, with the indices of all their tensors."""
    computing = {id(t.owner) for t in layout.tensors if t.variable is None}
    found: dict[int, tuple[Any, list[int]]] = {}
    for index, tensor in enumerate(layout.tensors):
        if id(tensor.owner) in computing:
            found.setdefault(id(tensor.owner), (tensor.owner, []))[1].append(index)
    return found


def _optimizer_config(config: Mapping[str, Any] | None) -> Any | None:
    compiled = (config or {}).get("compile_config")
    return compiled.get("optimizer") if isinstance(compiled, dict) else None


def _names_foreign_classes(value: Any) -> bool:
    """Whether a config names a class that is not Keras's own, which may change as it likes."""
    if isinstance(value, list):
        return any(_names_foreign_classes(v) for v in value)
    if not isinstance(value, Mapping):
        return False
    # A function of the user's stands there by its name, as of the module `builtins`.
    module = str(value.get("module", "keras")).partition(".")[0]
    foreign = "class_name" in value and module not in ("keras", "builtins")
    return foreign or any(_names_foreign_classes(v) for v in value.values())


def to_json(value: Mapping[str, Any]) -> bytes:
    """As Keras writes it."""
    return json.dumps(value).encode()
