"""Every error this package raises on purpose.

Each class also subclasses the builtin a caller would reach for, so that
`except ValueError` keeps working, and each message says what was expected,
what was received and what to do next.

    CheckpointError
    ├── ConfigError (ValueError)                a bad argument
    ├── SelectorError (ValueError)              a selector that cannot be read
    ├── NotFound (LookupError)
    │   ├── RunNotFound
    │   ├── RunDeleted
    │   ├── SeriesNotFound
    │   ├── NoCheckpoints
    │   ├── CheckpointNotFound
    │   └── MetricNotFound
    ├── NoActiveRun (RuntimeError)
    ├── MonitorMissing (LookupError)
    ├── IntegrityError (ValueError)
    │   ├── ManifestError
    │   ├── FormatTooNew
    │   └── DigestMismatch
    ├── ModelMismatch (ValueError)
    ├── ModelNotBuilt (ValueError)
    ├── ArchitectureMissing (ValueError)
    ├── ModelNotLoadable (ValueError)
    ├── ResumeError (RuntimeError)
    │   ├── ResumeMismatch (ValueError)
    │   ├── SeriesInUse
    │   ├── LeaseHeld
    │   └── LeaseLost
    ├── ConflictingCallback (RuntimeError)
    ├── SpoolError (OSError)                    the local spool cannot be used
    └── StoreError (RuntimeError)
        ├── ServerAway (ConnectionError)        what is asked for may be answered later
        │   └── ArtifactsMissing                nothing is where the artifacts were
        ├── UnsupportedStore
        └── SaveFailed
            └── SnapshotTorn
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArchitectureMissing",
    "ArtifactsMissing",
    "CheckpointError",
    "CheckpointNotFound",
    "ConfigError",
    "ConflictingCallback",
    "DigestMismatch",
    "FormatTooNew",
    "IntegrityError",
    "LeaseHeld",
    "LeaseLost",
    "ManifestError",
    "MetricNotFound",
    "ModelMismatch",
    "ModelNotBuilt",
    "ModelNotLoadable",
    "MonitorMissing",
    "NoActiveRun",
    "NoCheckpoints",
    "NotFound",
    "ResumeError",
    "ResumeMismatch",
    "RunDeleted",
    "RunNotFound",
    "SaveFailed",
    "SelectorError",
    "SeriesInUse",
    "SeriesNotFound",
    "ServerAway",
    "SnapshotTorn",
    "SpoolError",
    "StoreError",
    "UnsupportedStore",
]


class CheckpointError(Exception):
    """Base class of every error raised by `mlflow_ckpt`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls `cls(message)`, which a class with attributes refuses.
        return _rebuild, (type(self), self.args, vars(self))


def _rebuild(cls: type[CheckpointError], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    """Carry an error over from another process, attributes included."""
    error = cls.__new__(cls, *args)
    vars(error).update(state)
    return error


class ConfigError(CheckpointError, ValueError):
    """An argument has a value that cannot be used."""


class SelectorError(CheckpointError, ValueError):
    """A selector such as `best(val_loss,min)@head` cannot be read."""


class NotFound(CheckpointError, LookupError):
    """What was asked for does not exist on the tracking server."""


class RunNotFound(NotFound):
    """No run has this ID on this tracking server."""


class RunDeleted(NotFound):
    """The run exists but is in the deleted lifecycle stage."""


class SeriesNotFound(NotFound):
    """The run has no such series, or has several and none was named."""


class NoCheckpoints(NotFound):
    """The run exists but holds no committed checkpoint."""


class CheckpointNotFound(NotFound):
    """The run has checkpoints, but none with this step, epoch or kind."""


class MetricNotFound(NotFound):
    """No committed checkpoint has a finite value of this metric."""


class NoActiveRun(CheckpointError, RuntimeError):
    """No run was named and none is active."""


class MonitorMissing(CheckpointError, LookupError):
    """The monitored quantity is not among the logs of the epoch.

    Attributes:
        monitor: The name that was asked for.
        available: The names that the epoch's logs hold.
    """

    def __init__(self, message: str, *, monitor: str, available: tuple[str, ...]) -> None:
        super().__init__(message)
        self.monitor = monitor
        self.available = available


class IntegrityError(CheckpointError, ValueError):
    """The bytes of a checkpoint are not the bytes that were committed."""


class ManifestError(IntegrityError):
    """`manifest.json` is missing, unreadable or not of the specified form."""


class FormatTooNew(IntegrityError):
    """The checkpoint was written in a newer major format than this version reads."""


class DigestMismatch(IntegrityError):
    """A file's size or digest differs from the manifest, or the manifest's from its tag.

    Attributes:
        path: POSIX path of the file, relative to the checkpoint.
        expected: What the record says (a digest, or a size in bytes).
        found: What the file has.
    """

    def __init__(self, message: str, *, path: str, expected: str, found: str) -> None:
        super().__init__(message)
        self.path = path
        self.expected = expected
        self.found = found


class ModelMismatch(CheckpointError, ValueError):
    """The model at hand does not fit the checkpoint. Nothing was assigned."""


class ModelNotBuilt(CheckpointError, ValueError):
    """The model has no variables yet, so nothing can be loaded into it."""


class ArchitectureMissing(CheckpointError, ValueError):
    """A weights-only checkpoint without a config cannot become a model by itself."""


class ModelNotLoadable(CheckpointError, ValueError):
    """Keras refused the verified file: an unknown class, or code that safe mode forbids."""


class ResumeError(CheckpointError, RuntimeError):
    """The run cannot be continued the way this `fit` asks for."""


class ResumeMismatch(ResumeError, ValueError):
    """This `fit` is not the one that wrote the checkpoint. Nothing was assigned.

    Attributes:
        differences: One line for each thing that is not as it was.
    """

    def __init__(self, message: str, *, differences: tuple[str, ...]) -> None:
        super().__init__(message)
        self.differences = differences


class SeriesInUse(ResumeError):
    """A rebuilt model in the same process would overwrite a completed series."""


class LeaseHeld(ResumeError):
    """Another process, which is alive, writes to this series. Nothing was changed."""


class LeaseLost(ResumeError):
    """Another process has taken this series over. This one must write no more to it."""


class ConflictingCallback(CheckpointError, RuntimeError):
    """Another callback of the same `fit` would corrupt the model or its checkpoints."""


class SpoolError(CheckpointError, OSError):
    """The spool cannot be written to, or has no room for a checkpoint."""


class StoreError(CheckpointError, RuntimeError):
    """The tracking server or the artifact store refused a request."""


class ServerAway(ConnectionError, StoreError):  # OSError's __new__ must come first
    """The tracking server or the artifact store does not answer, or answers with a 5xx or 429.

    What was to be written waits in the spool, and is delivered when it answers again.
    """


class ArtifactsMissing(ServerAway):
    """Nothing of a run is where its artifacts were stored: that store is not visible from here.

    A disk may not be mounted, or the folder may be one of another machine.
    """


class UnsupportedStore(StoreError):
    """The tracking backend has no logged models: MLflow 2, or the file store."""


class SaveFailed(StoreError):
    """A checkpoint could not be committed. Earlier ones are untouched.

    Attributes:
        reason: The error underneath. `__cause__` holds it too, but Keras's traceback
            filter clears that one on the way out of `fit`.
    """

    def __init__(self, message: str, *, reason: Exception) -> None:
        super().__init__(message)
        self.reason = reason


class SnapshotTorn(SaveFailed):
    """Training wrote into memory that a snapshot had borrowed, so the snapshot is void.

    From then on the process copies the state instead of borrowing it.

    Attributes:
        reason: What was noticed.
    """
