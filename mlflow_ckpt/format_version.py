"""Versions of what this package writes: `<major>.<minor>`.

A reader takes every minor version of the majors that it knows, and ignores what it does not
know in them. A newer major is refused: what it says may not mean what it seems to.
"""

from __future__ import annotations

import re

from mlflow_ckpt.errors import FormatTooNew, ManifestError

_VERSION = re.compile(r"(?P<major>0|[1-9][0-9]{0,8})(?:\.(?P<minor>[0-9]{1,9}))?")


def check_format(written: object, what: str, *, major: int = 1) -> str:
    """Return `written` if it is a version that this package reads.

    Args:
        what: What has it, to begin a sentence with.
        major: The highest one that is known.

    Raises:
        FormatTooNew: If its major version is higher.
        ManifestError: If it is no version.
    """
    found = _VERSION.fullmatch(str(written))
    # A newer major may write its own version in another way: `2`, or a number.
    if found is not None and int(found["major"]) > major:
        raise FormatTooNew(
            f"{what} has format {written} and this version of mlflow-ckpt reads up to {major}.x: "
            "upgrade with `pip install -U mlflow-ckpt`."
        )
    if found is None or not isinstance(written, str) or not found["minor"] or found["major"] == "0":
        raise ManifestError(
            f"{what} is not of format {major}.x. Expected: text such as '{major}.0'. "
            f"Received: format={written!r:.40}"
        )
    return written
