"""Resumable, verifiable Keras checkpoints in MLflow.

Importing this package imports neither Keras nor MLflow: every name below is loaded
on first use, because plugins and the command line import it in processes that need
neither.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_ckpt.callback import MlflowCheckpoint
    from mlflow_ckpt.comparison import Comparison
    from mlflow_ckpt.differing import diff
    from mlflow_ckpt.downloading import download
    from mlflow_ckpt.epoch_data import EpochData
    from mlflow_ckpt.errors import CheckpointError
    from mlflow_ckpt.explaining import Explanation, explain
    from mlflow_ckpt.exporting import export
    from mlflow_ckpt.forking import fork
    from mlflow_ckpt.interrupt import Interrupt
    from mlflow_ckpt.listing import list_checkpoints
    from mlflow_ckpt.loader import load_model, load_weights
    from mlflow_ckpt.pending import PendingSave
    from mlflow_ckpt.policy import Every, Keep
    from mlflow_ckpt.pruning import Pruned, pin, prune, unpin
    from mlflow_ckpt.record import Checkpoint
    from mlflow_ckpt.registering import Registered, register
    from mlflow_ckpt.reporter import write_report
    from mlflow_ckpt.resolver import resolve
    from mlflow_ckpt.resume_option import Resume
    from mlflow_ckpt.saving import save, save_async
    from mlflow_ckpt.spool import Spool
    from mlflow_ckpt.stats import Stats
    from mlflow_ckpt.verifying import Verification, verify
    from mlflow_ckpt.warm_starting import warm_start

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "record",
    "CheckpointError": "errors",
    "Comparison": "comparison",
    "EpochData": "epoch_data",
    "Every": "policy",
    "Explanation": "explaining",
    "Interrupt": "interrupt",
    "Keep": "policy",
    "MlflowCheckpoint": "callback",
    "PendingSave": "pending",
    "Pruned": "pruning",
    "Registered": "registering",
    "Resume": "resume_option",
    "Spool": "spool",
    "Stats": "stats",
    "Verification": "verifying",
    "diff": "differing",
    "download": "downloading",
    "explain": "explaining",
    "export": "exporting",
    "fork": "forking",
    "list_checkpoints": "listing",
    "load_model": "loader",
    "load_weights": "loader",
    "pin": "pruning",
    "prune": "pruning",
    "register": "registering",
    "resolve": "resolver",
    "save": "saving",
    "save_async": "saving",
    "unpin": "pruning",
    "verify": "verifying",
    "warm_start": "warm_starting",
    "write_report": "reporter",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "EpochData",
    "Every",
    "Explanation",
    "Interrupt",
    "Keep",
    "MlflowCheckpoint",
    "PendingSave",
    "Pruned",
    "Registered",
    "Resume",
    "Spool",
    "Stats",
    "Verification",
    "__version__",
    "diff",
    "download",
    "explain",
    "export",
    "fork",
    "list_checkpoints",
    "load_model",
    "load_weights",
    "pin",
    "prune",
    "register",
    "resolve",
    "save",
    "save_async",
    "unpin",
    "verify",
    "warm_start",
    "write_report",
]

logging.getLogger("mlflow_ckpt").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        from mlflow_ckpt.backend_hint import backend_hint

        if hint := backend_hint(error):
            raise ModuleNotFoundError(f"{error.msg}. {hint}", name=error.name) from error
        raise
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
