"""Read what a journal says of itself: which run and series it belongs to, and to which server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow_ckpt.errors import FormatTooNew, SpoolError

FORMAT = "1.0"


def read(path: Path) -> dict[str, Any]:
    """The content of a `journal.json`; empty where there is none.

    Raises:
        FormatTooNew: If a later version wrote it.
        SpoolError: If it is none.
    """
    try:
        found = json.loads(path.read_bytes())
        written = str(found.get("format", FORMAT))
        newer = int(written.partition(".")[0]) > int(FORMAT.partition(".")[0])
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise SpoolError(
            f"Expected a journal. Received: {path}: {error!r}. Move that folder away."
        ) from error
    if newer:
        raise FormatTooNew(
            f"The journal {path.parent} has format {written}, this version reads up to {FORMAT}. "
            "Upgrade with: pip install -U mlflow-ckpt"
        )
    return dict(found)
