"""The value of `ckpt.resume_exact`: `true`, `unknown: <reasons>` or `false: <reasons>`.

A run is as exact as the worst of its resumes: a tag never gets better. Apart from
`exactness.py`, which looks at the fit and needs Keras: who delivers a spool does not.
"""

from __future__ import annotations

from collections.abc import Iterable

Reason = tuple[str, str]  # level, and why; an empty why stands for "true"

_LEVELS = ("true", "unknown", "false")


def exact_tag(found: Iterable[Reason], before: str | None) -> str:
    """The tag's value: the worst level, and every reason for it."""
    level, _, text = (before or "true").partition(": ")
    gathered = [(level, part) for part in text.split("; ")] if text else [(level, "")]
    gathered += list(found)
    worst = max((reason[0] for reason in gathered), key=_LEVELS.index)
    whys = dict.fromkeys(why.replace("; ", ", ") for lvl, why in gathered if lvl == worst and why)
    return f"{worst}: {'; '.join(whys)}" if whys else worst
