"""Private folders below one folder, in which something is made before it appears elsewhere.

Whose a folder is stands in its name, which is there as soon as the folder is: what a process
that is dead has left half-made is found, whenever it died.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from mlflow_ckpt.owner import Owner

_SEPARATOR = "~"
_GONE = "gone-"


def make(making: Path) -> Path:
    """A new folder of this process.

    Raises:
        OSError: If it cannot be made.
    """
    me = Owner.me()
    who = (me.boot, me.namespace, me.pid, me.started)
    place = making / _SEPARATOR.join(map(str, (uuid.uuid4().hex, *who)))
    place.mkdir(mode=0o700)
    return place


def sweep(making: Path) -> None:
    """Remove the folders of dead processes, and what is about to be removed anyway."""
    for place in making.iterdir():
        if place.name.startswith(_GONE) or _is_dead(place.name):
            shutil.rmtree(place, ignore_errors=True)


def _is_dead(name: str) -> bool:
    try:
        _, boot, namespace, pid, started = name.split(_SEPARATOR)
        return Owner(boot, namespace, Owner.me().host, int(pid), int(started)).is_dead()
    except ValueError:
        return False
