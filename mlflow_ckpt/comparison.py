"""What `diff` found between two checkpoints, as values.

Everything that is called a is of the first checkpoint, b of the second; a change is b's value
less a's. Sizes are bytes, times milliseconds since the Unix epoch, and in JSON ISO 8601 in UTC.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from mlflow_ckpt.contrast import Contrast
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.selector import Mode
from mlflow_ckpt.weight_change import WeightChange
from mlflow_ckpt.weight_pairs import LayerChange

Better = Literal["a", "b"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two.

    Attributes:
        checkpoint: Which one it is.
        run_name: Of its run; empty if it has none.
        model_class: Class of the model.
        elements: How many numbers its variables have, optimizers left out.
        has_config: Whether it holds the config of its model.
    """

    checkpoint: Checkpoint
    run_name: str
    model_class: str
    elements: int
    has_config: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        found = self.checkpoint
        created = datetime.fromtimestamp(found.created_at / 1000, UTC)
        return {
            "run_id": found.run_id,
            "run_name": self.run_name,
            "series": found.series,
            "name": found.name,
            "kind": found.kind,
            "epoch": found.epoch,
            "step": found.step,
            "created_at": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "bytes": found.bytes,
            "digest": found.digest,
            "model_id": found.model_id,
            "uri": found.uri,
            "weights_only": found.weights_only,
            "model_class": self.model_class,
            "elements": self.elements,
            "has_config": self.has_config,
            "skipped": [asdict(each) for each in found.skipped],
        }


@dataclass(frozen=True, kw_only=True)
class MetricChange:
    """A metric of the two.

    Attributes:
        a, b: Its values; `None` where a checkpoint has none, text where it is no finite number.
        change: b less a; `None` unless both are numbers.
        mode: Its direction by the series, else by its name; `None` if neither says.
        better: The one with the better value; `None` if they are equal, or nobody can say.
    """

    name: str
    a: float | str | None
    b: float | str | None
    change: float | None
    mode: Mode | None
    better: Better | None


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A variable that only one of the two has."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True)
class Unlike:
    """A variable that the two have in different shapes: it is not compared."""

    name: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"name": self.name, "shape_a": list(self.shape_a), "shape_b": list(self.shape_b)}


@dataclass(frozen=True, kw_only=True)
class Held:
    """An optimizer as one of the two holds it.

    Attributes:
        class_name: Its class.
        learning_rate: The value of its variable; `None` where a schedule gives it.
        schedule: Class of that schedule.
        iterations: How many updates it has made.
    """

    class_name: str
    learning_rate: float | None
    schedule: str | None
    iterations: int | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        found = asdict(self)
        return {"class": found.pop("class_name"), **found}


@dataclass(frozen=True, kw_only=True)
class OptimizerChange:
    """An optimizer of the two.

    Attributes:
        attribute: The attribute of the model that holds it.
        a, b: `None` where a checkpoint has none.
        arguments: Where they were made otherwise, the learning rate's number left out.
        slots: What changed of what it keeps for each variable, by kind (`momentum`); empty
            where the classes differ.
        total: Of all slots; `None` where none were compared.
        same: Whether it is the same one in the same state, bit by bit.
    """

    attribute: str
    a: Held | None
    b: Held | None
    arguments: tuple[Contrast, ...]
    slots: tuple[LayerChange, ...]
    total: WeightChange | None
    same: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "attribute": self.attribute,
            "a": self.a and self.a.to_dict(),
            "b": self.b and self.b.to_dict(),
            "arguments": [each.to_dict() for each in self.arguments],
            "same": self.same,
            "total": self.total and self.total.to_dict(),
            "slots": [each.to_dict() for each in self.slots],
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How checkpoint b differs from checkpoint a.

    Attributes:
        a, b: The two.
        equal: Whether they hold the same model in the same state: architecture, compilation,
            and every stored number of model and optimizers, bit by bit. Names that Keras
            numbered, metrics, parameters, versions, seeds and input do not count.
        architecture: Where the models are built otherwise.
        compiled: Where they are compiled otherwise, but for the optimizers.
        optimizers: Each that one of them has.
        params: Parameters of the two runs that differ; empty where both are of one run.
        versions: Packages that wrote them, where they differ.
        input: Where the input of the two fits differs: batch size, batches, element spec.
        metrics: Each that one of them has.
        layers: What changed, by layer, in the order of a.
        total: What changed in all layers that were compared.
        seeds: What changed in seed generators and other variables that no model file holds;
            `None` where one of them has none.
        only_a, only_b, unlike: Variables of the models that were not compared.
    """

    a: Side
    b: Side
    equal: bool
    architecture: tuple[Contrast, ...]
    compiled: tuple[Contrast, ...]
    optimizers: tuple[OptimizerChange, ...]
    params: tuple[Contrast, ...]
    versions: tuple[Contrast, ...]
    input: tuple[Contrast, ...]
    metrics: tuple[MetricChange, ...]
    layers: tuple[LayerChange, ...]
    total: WeightChange
    seeds: WeightChange | None
    only_a: tuple[Alone, ...]
    only_b: tuple[Alone, ...]
    unlike: tuple[Unlike, ...]

    @property
    def same_architecture(self) -> bool:
        """Whether the models are built alike."""
        return not (self.architecture or self.only_a or self.only_b or self.unlike)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: no NaN, and `None` where there is no number."""
        return {
            "equal": self.equal,
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "architecture": {
                "same": self.same_architecture,
                "differences": _all(self.architecture),
                "only_a": _all(self.only_a),
                "only_b": _all(self.only_b),
                "unlike": _all(self.unlike),
            },
            "compiled": _all(self.compiled),
            "optimizers": _all(self.optimizers),
            "params": _all(self.params),
            "versions": _all(self.versions),
            "input": _all(self.input),
            "metrics": [asdict(metric) for metric in self.metrics],
            "total": self.total.to_dict(),
            "seeds": self.seeds and self.seeds.to_dict(),
            "layers": _all(self.layers),
        }


def _all(values: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [value.to_dict() for value in values]
