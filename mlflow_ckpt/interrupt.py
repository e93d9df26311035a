"""What a user asks for with `MlflowCheckpoint(interrupt=...)`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlflow_ckpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Interrupt:
    """What to do when a `fit` is interrupted: save where it stands, within bounds.

    Attributes:
        signals: Whether SIGTERM and Ctrl-C save a checkpoint at the end of the running batch.
            Then the handlers that were there before are called; without any, SIGTERM ends the
            process with exit code 143 and Ctrl-C raises `KeyboardInterrupt`. A second Ctrl-C
            or SIGTERM does not wait. Python allows handlers in the main thread only: in
            another thread signals do what they did before.
        exceptions: Whether a `fit` that ends by an exception saves where it stood. The
            exception goes on to the caller.
        grace_seconds: How long the uploads may take once training has stopped, in seconds
            since the signal or the exception. What is not uploaded by then waits on the local
            disk for the next start. Whoever sends SIGTERM often kills 30 s later (Kubernetes)
            or sooner (Docker: 10 s): stay below that.

    Raises:
        ConfigError: If a field has another type, or the grace is negative or not finite.
    """

    signals: bool = True
    exceptions: bool = True
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field, value in (("signals", self.signals), ("exceptions", self.exceptions)):
            if not isinstance(value, bool):
                raise ConfigError(f"Expected True or False. Received: Interrupt({field}={value!r})")
        seconds = self.grace_seconds
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ConfigError(
                "Expected a finite number of seconds, at least 0. "
                f"Received: Interrupt(grace_seconds={seconds!r})"
            )

    @property
    def any(self) -> bool:
        """Whether a fit may be saved where no checkpoint is due."""
        return self.signals or self.exceptions

    @classmethod
    def parse(cls, interrupt: Interrupt | bool | None) -> Interrupt:
        """Read the callback's `interrupt=`: `None` stands for the default, `False` for nothing.

        Raises:
            ConfigError: If it is something else.
        """
        if interrupt is None:
            return cls()
        if interrupt is False:
            return cls(signals=False, exceptions=False)
        if isinstance(interrupt, Interrupt):
            return interrupt
        raise ConfigError(
            "Expected Interrupt(signals=, exceptions=, grace_seconds=), None for the default, or "
            f"False to save at no interruption. Received: interrupt={interrupt!r}"
        )
