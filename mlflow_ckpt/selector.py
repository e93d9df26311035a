"""Read the text that names one checkpoint of a run.

    latest | final | best | best(<metric>[,min|max]) | step=<n> | epoch=<n>

each optionally followed by `@<series>`. Selectors are parsed here and answered
by the store, so that every door (Python, command line, URI) reads them alike.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Literal

from mlflow_ckpt.errors import ConfigError, SelectorError

Mode = Literal["min", "max"]
SelectorKind = Literal["latest", "final", "best", "step", "epoch"]

GRAMMAR = "latest, final, best, best(<metric>[,min|max]), step=<n> or epoch=<n>, then @<series>"

# LoggedModel names refuse / : . % ' " and the selector itself needs @.
_SERIES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_BEST = re.compile(
    r"best\(\s*(?P<metric>[^(),@\s](?:[^(),@]*[^(),@\s])?)\s*(?:,\s*(?P<mode>min|max)\s*)?\)"
)
_SYNONYMS = {
    "last": "latest", "newest": "latest", "head": "latest", "current": "latest", "end": "final",
    "step": "step=1", "epoch": "epoch=1", "top": "best",
}  # fmt: skip
_LIKE_NUMBER = re.compile(r"(?P<word>[a-z]*)\s*[-:=#_]*\s*(?P<number>\d{1,18})", re.IGNORECASE)
_LIKE_BEST = re.compile(
    r"best[\s:=({\[]+(?P<metric>[\w/.-]*\w)(?:\W+(?P<mode>min|max)\w*)?\W*", re.IGNORECASE
)
_NAME = re.compile(r"(?P<series>.+)-\d{4,}-(?P<step>\d{8,})")  # of a checkpoint
_NUMBER = re.compile(r"(?P<kind>step|epoch)\s*=\s*(?P<number>\d{1,18})")


@dataclass(frozen=True, kw_only=True)
class Selector:
    """One parsed selector.

    Attributes:
        kind: What is asked for.
        number: Step or epoch, counted from 1; `None` for the other kinds.
        metric: Metric name of `best(<metric>)`; `None` means the recorded monitor.
        mode: Direction of `best(<metric>,<mode>)`; `None` means the recorded one.
        series: Name behind `@`; `None` means the run's only series.
    """

    kind: SelectorKind
    number: int | None = None
    metric: str | None = None
    mode: Mode | None = None
    series: str | None = None

    def __str__(self) -> str:
        text: str = self.kind
        if self.number is not None:
            text += f"={self.number}"
        if self.metric is not None:
            text += f"({self.metric}{',' + self.mode if self.mode else ''})"
        return text + (f"@{self.series}" if self.series else "")

    @classmethod
    def parse(cls, text: str | Selector) -> Selector:
        """Parse `text`.

        Raises:
            SelectorError: If `text` does not follow the grammar of this module.
        """
        if isinstance(text, Selector):
            return text
        if not isinstance(text, str):
            raise SelectorError(f"Expected a selector: {GRAMMAR}. Received: {text!r}")
        head, at, series = text.strip().partition("@")
        if at and not _SERIES.fullmatch(series):
            raise SelectorError(
                f"Expected a series name (letters, digits, _ and -) behind '@'. Received: {text!r}"
            )
        return cls(**_parse_head(head.strip(), text), series=series or None)


def _parse_head(head: str, text: str) -> dict[str, Any]:
    if head in ("latest", "final", "best"):
        return {"kind": head}
    if match := _BEST.fullmatch(head):
        return {"kind": "best", "metric": match["metric"], "mode": match["mode"]}
    if match := _NUMBER.fullmatch(head):
        return {"kind": match["kind"], "number": int(match["number"])}
    meant, (_, at, series) = _meant(head), text.strip().partition("@")
    hint = f". Did you mean {meant + at + series!r}?" if meant else ""
    raise SelectorError(f"Expected a selector: {GRAMMAR}. Received: {text!r}{hint}")


def _meant(head: str) -> str | None:
    """The selector that was probably meant."""
    if match := _LIKE_NUMBER.fullmatch(head):
        return f"{'step' if match['word'][:1] in ('s', 'S') else 'epoch'}={match['number']}"
    if match := _LIKE_BEST.fullmatch(head):
        mode = f",{match['mode']}" if match["mode"] else ""
        return f"best({match['metric']}{mode})"
    if match := _NAME.fullmatch(head):
        return f"step={int(match['step'])}@{match['series']}"
    word = head.casefold()
    near = difflib.get_close_matches(word, ("latest", "final", "best"), n=1)
    return _SYNONYMS.get(word) or next(iter(near), None)


def validate_series(name: str) -> str:
    """Return `name` if it can name a series.

    Raises:
        ConfigError: If it holds anything but letters, digits, `_` and `-`.
    """
    if not isinstance(name, str) or not _SERIES.fullmatch(name):
        raise ConfigError(
            "A series name has 1 to 64 letters, digits, '_' or '-' and begins with a letter "
            f"or digit. Received: name={name!r}"
        )
    return name
