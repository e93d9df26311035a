"""The only package that touches what Keras, or TensorFlow below it, does not promise to keep.

Each function names the private thing it leans on. `tests/test_keras_internals.py`
fails by name when one of them moves, so that an upgrade breaks there and not in
somebody's resume. Checked against Keras 3.12 to 3.15.
"""

from mlflow_ckpt.keras_internals._training import (
    append_callback,
    calling_callback_list,
    clear_initial_epoch,
    fit_arguments,
    forget_global_seed,
    global_seed_state,
    has_variables,
    load_whole_state,
    metric_directions,
    regarded_as_built,
    restore_global_seed_state,
    set_initial_epoch,
    trained_variables,
    untouched_python_rng,
)

__all__ = [
    "append_callback",
    "calling_callback_list",
    "clear_initial_epoch",
    "fit_arguments",
    "forget_global_seed",
    "global_seed_state",
    "has_variables",
    "load_whole_state",
    "metric_directions",
    "regarded_as_built",
    "restore_global_seed_state",
    "set_initial_epoch",
    "trained_variables",
    "untouched_python_rng",
]
