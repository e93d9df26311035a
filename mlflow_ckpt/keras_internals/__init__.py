"""The only package that touches what Keras, or TensorFlow below it, does not promise to keep.

Each function names the private thing it leans on. `tests/test_keras_internals.py`
fails by name when one of them moves, so that an upgrade breaks there and not in
somebody's resume. Checked against Keras 3.12 to 3.15.
"""

from typing import TYPE_CHECKING

from mlflow_ckpt.keras_internals._deferred import (
    bounded_variables,
    deferred_values,
    known_objects,
    may_defer,
)
from mlflow_ckpt.keras_internals._epoch_data import EpochData
from mlflow_ckpt.keras_internals._epoch_logs import begin_with_logs, build_metrics, forget_logs
from mlflow_ckpt.keras_internals._exactness import Exactness
from mlflow_ckpt.keras_internals._find import find_feed
from mlflow_ckpt.keras_internals._loading import load_state, missing_seams, rebuild
from mlflow_ckpt.keras_internals._names import is_own_function, is_own_name
from mlflow_ckpt.keras_internals._place import finding_place
from mlflow_ckpt.keras_internals._random import (
    on_gpu,
    restore_tensorflow_random_state,
    tensorflow_random_state,
    uncountable_operation,
)
from mlflow_ckpt.keras_internals._saving import (
    CHANGED_BY_FIT,
    CannotRecord,
    RecordedTensor,
    Recording,
    assets_folder,
    is_like,
    is_saveable,
    is_stock,
    learning_rate_variable,
    own_assets,
    own_variables,
    record_state,
    serialize,
    serialize_shared,
    weights_member,
)
from mlflow_ckpt.keras_internals._training import (
    append_callback,
    calling_callback_list,
    clear_initial_epoch,
    compiled_loss,
    fit_arguments,
    forget_global_seed,
    global_seed_state,
    has_variables,
    load_whole_state,
    metric_directions,
    raised_at_epoch_end,
    regarded_as_built,
    restore_global_seed_state,
    set_initial_epoch,
    trained_variables,
    untouched_python_rng,
)
from mlflow_ckpt.keras_internals._unwinding import fit_id, is_on_stack, watch_unwinding
from mlflow_ckpt.keras_internals._variables import (
    borrow,
    can_borrow,
    copies_on_write,
    dtype_of,
    is_tensor_type,
    share_memory,
    view,
)

if TYPE_CHECKING:
    from mlflow_ckpt.keras_internals._feed import Feed as Feed

__all__ = [
    "CHANGED_BY_FIT",
    "CannotRecord",
    "EpochData",
    "Exactness",
    "RecordedTensor",
    "Recording",
    "append_callback",
    "assets_folder",
    "begin_with_logs",
    "borrow",
    "bounded_variables",
    "build_metrics",
    "calling_callback_list",
    "can_borrow",
    "clear_initial_epoch",
    "compiled_loss",
    "copies_on_write",
    "deferred_values",
    "dtype_of",
    "find_feed",
    "finding_place",
    "fit_arguments",
    "fit_id",
    "forget_global_seed",
    "forget_logs",
    "global_seed_state",
    "has_variables",
    "is_like",
    "is_on_stack",
    "is_own_function",
    "is_own_name",
    "is_saveable",
    "is_stock",
    "is_tensor_type",
    "known_objects",
    "learning_rate_variable",
    "load_state",
    "load_whole_state",
    "may_defer",
    "metric_directions",
    "missing_seams",
    "on_gpu",
    "own_assets",
    "own_variables",
    "raised_at_epoch_end",
    "rebuild",
    "record_state",
    "regarded_as_built",
    "restore_global_seed_state",
    "restore_tensorflow_random_state",
    "serialize",
    "serialize_shared",
    "set_initial_epoch",
    "share_memory",
    "tensorflow_random_state",
    "trained_variables",
    "uncountable_operation",
    "untouched_python_rng",
    "view",
    "watch_unwinding",
    "weights_member",
]
