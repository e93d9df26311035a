"""TensorFlow's own random state, which lies beside Keras's, NumPy's and Python's.

Leans on the eager context's `_rng` (seeds of random operations) and kernel cache, on
`stateful_random_ops.global_generator`, and on `tf.function._list_all_concrete_functions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

# Their kernels count by themselves, where nobody can read or set the count.
_COUNTING = (
    "Multinomial", "ParameterizedTruncatedNormal", "RandomGamma", "RandomPoisson", "RandomShuffle",
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal",
)  # fmt: skip


def tensorflow_random_state() -> dict[str, Any] | None:
    """State of the eager context's seeds and of `tf.random.get_global_generator()`, if in use."""
    if keras.backend.backend() != "tensorflow":
        return None
    from tensorflow.python.eager import context
    from tensorflow.python.ops import stateful_random_ops

    rng = getattr(context.context(), "_rng", None)
    generator = stateful_random_ops.global_generator
    state: dict[str, Any] = {"seeds": None, "generator": None}
    if rng is not None:
        version, words, gauss = rng.getstate()
        state["seeds"] = [version, np.asarray(words, dtype=np.uint32), gauss]
    if generator is not None:
        state["generator"] = np.asarray(generator.state)
        state["algorithm"] = int(generator.algorithm)
    return state


def restore_tensorflow_random_state(saved: Mapping[str, Any] | None) -> None:
    """Put back what `tensorflow_random_state` returned."""
    if saved is None or keras.backend.backend() != "tensorflow":
        return
    import tensorflow
    from tensorflow.python.eager import context

    rng = getattr(context.context(), "_rng", None)
    # Operations that ran before keep a count of their own; `tf.random.set_seed` drops it too.
    context.context().clear_kernel_cache()
    if rng is not None and saved["seeds"] is not None:
        version, words, gauss = saved["seeds"]
        rng.setstate((version, tuple(int(word) for word in words), gauss))
    if saved["generator"] is not None:
        generator = tensorflow.random.Generator.from_state(
            saved["generator"], alg=saved["algorithm"]
        )
        tensorflow.random.set_global_generator(generator)


def uncountable_operation(model: keras.Model) -> str | None:
    """A random operation of the compiled train step whose count cannot be restored, or `None`."""
    for function in _compiled_below(getattr(model, "train_function", None), 3):
        for concrete in function._list_all_concrete_functions():
            graph = concrete.graph.as_graph_def()
            for node in (*graph.node, *(n for f in graph.library.function for n in f.node_def)):
                if node.op in _COUNTING:
                    return str(node.op)
    return None


def _compiled_below(function: Any, depth: int) -> Iterator[Any]:
    """Every `tf.function` that a Python function has in its closure."""
    if hasattr(function, "_list_all_concrete_functions"):
        yield function
    elif depth and callable(function):
        for cell in getattr(function, "__closure__", None) or ():
            yield from _compiled_below(cell.cell_contents, depth - 1)


def on_gpu() -> bool:
    """Whether TensorFlow computes on a GPU without `enable_op_determinism`."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow
    from tensorflow.python.framework.config import is_op_determinism_enabled

    return bool(tensorflow.config.list_physical_devices("GPU")) and not is_op_determinism_enabled()
