"""Compare the optimizers of two checkpoints: class, arguments, learning rate, and every slot.

What an optimizer has once (iterations, learning rate) is told as a number. What it has for each
variable, its slots, is measured like the weights, by kind: all momenta together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_ckpt import config_change
from mlflow_ckpt.comparison import Held, OptimizerChange
from mlflow_ckpt.contrast import contrasts
from mlflow_ckpt.stored_tensors import StoredWeights, Tensor
from mlflow_ckpt.weight_pairs import Measured, Pairs, measured, paired

# Beside the variables of its own, which come first, it has those of the one inside, which count.
_WRAPPER = "LossScaleOptimizer"


class OptimizersOf:
    """The optimizers of one checkpoint.

    Args:
        weights: Its tensors.
        recorded: Its fingerprint.

    Attributes:
        names: Attributes of the model that hold one.
    """

    def __init__(self, weights: StoredWeights, recorded: Mapping[str, Any]) -> None:
        self.weights = weights
        self._recorded = {each["attribute"]: each for each in recorded.get("optimizers", [])}
        self.names = {*weights.optimizers, *self._recorded}

    def tensors(self, name: str) -> list[Tensor]:
        """The variables of one, each once."""
        return self.weights.optimizers.get(name, [])

    def config(self, name: str) -> Any:
        """Class and arguments; `None` where the checkpoint does not say."""
        config = self.weights.config
        return None if config is None else config_change.optimizer(config, name)

    def held(self, name: str) -> Held | None:
        """The one called `name`, if there is one."""
        if name not in self.names:
            return None
        config, recorded = self.config(name), self._recorded.get(name)
        kind = str((recorded or config or {}).get("class", "unknown"))
        numbers = [
            (tensor.name.layer, self.weights.number(tensor))
            for tensor in self.tensors(name)
            if _is_single(tensor)
        ]
        values = dict(numbers if kind == _WRAPPER else reversed(numbers))
        rate, iterations = values.get("learning_rate"), values.get("iteration")
        return Held(
            class_name=kind,
            learning_rate=rate,
            schedule=None if rate is not None else _schedule(config),
            iterations=None if iterations is None else int(iterations),
        )


def optimizer_change(a: OptimizersOf, b: OptimizersOf, name: str) -> OptimizerChange:
    """How one optimizer differs.

    Raises:
        ModelNotLoadable: As `measured`.
    """
    one, other = a.held(name), b.held(name)
    configs = a.config(name), b.config(name)
    arguments = tuple(contrasts(*configs, name)) if all(configs) else ()
    pairs = paired(a.tensors(name), b.tensors(name))
    alike = one is not None and other is not None and one.class_name == other.class_name
    once, slots = (_measured(pairs, a, b, single=single) for single in (True, False))
    stands = pairs.is_complete and once.identical and slots.identical
    return OptimizerChange(
        attribute=name,
        a=one,
        b=other,
        arguments=arguments,
        slots=slots.layers if alike else (),
        total=slots.total if alike and slots.layers else None,
        same=alike and stands and not arguments,
    )


def _measured(pairs: Pairs, a: OptimizersOf, b: OptimizersOf, *, single: bool) -> Measured:
    both: Sequence[Any] = [pair for pair in pairs.both if _is_single(pair[0]) == single]
    chosen = Pairs(both=both, unlike=(), only_a=(), only_b=())
    return measured(chosen, a.weights.file, b.weights.file)


def _is_single(tensor: Tensor) -> bool:
    """Whether an optimizer has it once, as its learning rate, and not for each variable."""
    return not tensor.name.variable and tensor.size == 1


def _schedule(config: Any) -> str | None:
    """The class of a learning rate schedule, if the optimizer has one."""
    while isinstance(config, dict):
        rate = config.get("learning_rate")
        if isinstance(rate, dict):
            return str(rate.get("class"))
        config = config.get("inner_optimizer")
    return None
