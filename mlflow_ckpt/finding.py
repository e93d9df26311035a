"""One thing that `mlflow-ckpt doctor` has looked at, and what is to be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        text: How it is, in a line.
        verdict: `problem` if something does not work, `warning` if it works less well than it
            could or should.
        advice: What to type or do next; "" if it is well.
        facts: The same as JSON values; sizes in bytes, times in seconds.
    """

    name: str
    text: str
    verdict: Verdict = "ok"
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        told = {"name": self.name, "verdict": self.verdict, "text": self.text}
        return told | ({"advice": self.advice} if self.advice else {}) | dict(self.facts)


def problem(name: str, error: Exception) -> Finding:
    """What a check has raised; its message says what to do."""
    return Finding(name=name, text=" ".join(str(error).split()), verdict="problem")
