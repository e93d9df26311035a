"""The arguments of `MlflowCheckpoint`, once they are validated."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_ckpt.interrupt import Interrupt
from mlflow_ckpt.resume_option import Resume
from mlflow_ckpt.saver import SavePolicy
from mlflow_ckpt.selector import Mode
from mlflow_ckpt.spool import Spool


@dataclass(frozen=True, kw_only=True)
class Options:
    """See `MlflowCheckpoint`; `mode=None` stands for `"auto"`."""

    saves: SavePolicy
    monitor: str | None
    mode: Mode | None
    name: str
    run_id: str | None
    resume: Resume | None
    log_metrics: bool
    spool: Spool
    interrupt: Interrupt
    report: bool = True
