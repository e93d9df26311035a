"""The only door to MLflow: everything this package says to a tracking server.

    _connection   runs, experiments, and MLflow's exceptions in our words
    _query        find and list committed checkpoints
    _across       those of all runs of an experiment
    _draft        bring a checkpoint's files to the artifact store
    _commit       create, log, link, finalize, commit
    _delete       take checkpoints away
    _files        bring the files of a checkpoint here
    _uri          a tracking URI that leads nowhere, and what was meant
    _reach        does a server answer at all
    _missing      where a run may be that is not here
    _faults       a server that is away, and one that refuses
    _upkeep       mark, pin, hold; what is there beside committed checkpoints
    _page         files and a description where MLflow shows the run
    _lease        the tag of who writes a series
    _slim         slim copies of checkpoints, which are served
    _registry     the model registry
    _checkup      how a tracking server is, for a doctor
    _speed        how fast an artifact store is, and whether it can delete
    _launch       MLflow Projects, and what their runs say of how they were launched
    _fork         a run beside another one, and what a run began from
    _card         MLmodel and environment files, made once per process

No other module imports `mlflow`; a lint rule and a test keep it so.
"""

from mlflow_ckpt.store._across import Ranked
from mlflow_ckpt.store._card import prepare_card, write_card
from mlflow_ckpt.store._checkup import Checkup, Place, current_uri
from mlflow_ckpt.store._commit import Commit
from mlflow_ckpt.store._connection import now_ms, use_tracking_uri
from mlflow_ckpt.store._connection import portable as portable_uri
from mlflow_ckpt.store._fork import Logged
from mlflow_ckpt.store._launch import Launcher, Origin, Project, origin_of
from mlflow_ckpt.store._reach import reach_server
from mlflow_ckpt.store._registry import Registry
from mlflow_ckpt.store._slim import SlimCopies, SlimCopy
from mlflow_ckpt.store._speed import Measured, measure
from mlflow_ckpt.store._store import Store
from mlflow_ckpt.store._trace import Trace
from mlflow_ckpt.store._upkeep import Upkeep

__all__ = [
    "Checkup",
    "Commit",
    "Launcher",
    "Logged",
    "Measured",
    "Origin",
    "Place",
    "Project",
    "Ranked",
    "Registry",
    "SlimCopies",
    "SlimCopy",
    "Store",
    "Trace",
    "Upkeep",
    "current_uri",
    "measure",
    "now_ms",
    "origin_of",
    "portable_uri",
    "prepare_card",
    "reach_server",
    "use_tracking_uri",
    "write_card",
]
