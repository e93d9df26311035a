"""What a user asks for with `MlflowCheckpoint(resume=...)`."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.selector import Selector

# Parts of a fit that may differ from those of the fit that wrote the checkpoint.
PARTS = (
    "architecture", "optimizer", "loss", "element_spec", "cardinality", "batch_size", "order",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Resume:
    """How to continue a run.

    Attributes:
        which: `"auto"` (the newest checkpoint, if there is one) or a selector.
        allow: Differences to accept, of `"architecture"` (variables that no longer fit stay
            as they are), `"optimizer"` (one that no longer fits starts anew), `"loss"`,
            `"element_spec"`, `"cardinality"` and `"batch_size"` of the input, and `"order"`,
            the seed and shard of an `EpochData` (an epoch that was broken off then begins
            anew).
        force: Whether to take the series over from a process that is alive and writes it. That
            one stops at its next checkpoint.

    Raises:
        SelectorError: If `which` cannot be read.
        ConfigError: If `allow` names something else, or `force` is not a bool.
    """

    which: str = "auto"
    allow: tuple[str, ...] = ()
    force: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.force, bool):
            raise ConfigError(f"Expected True or False. Received: force={self.force!r}")
        if isinstance(self.allow, str) or set(self.allow) - set(PARTS):
            raise ConfigError(
                f"Expected a tuple with any of {', '.join(map(repr, PARTS))}. "
                f"Received: allow={self.allow!r}"
            )
        if self.which != "auto":
            Selector.parse(self.which)

    @classmethod
    def parse(cls, resume: str | bool | Resume) -> Resume | None:
        """Read the callback's `resume=`; `None` means: never restore.

        Raises:
            ConfigError: If it is of another type.
        """
        if resume is False:
            return None
        if isinstance(resume, Resume):
            return resume
        if isinstance(resume, str):
            return cls(which=resume)
        raise ConfigError(
            f"Expected 'auto', a selector, Resume(...) or False. Received: resume={resume!r}"
        )
