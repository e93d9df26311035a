"""Say of an artifact store where it is, how fast it is, and whether it can delete."""

from __future__ import annotations

from urllib.parse import urlsplit

from mlflow_ckpt.finding import Finding
from mlflow_ckpt.store import Checkup, Measured, Place, portable_uri
from mlflow_ckpt.table import human_bytes

_SLOW = 5.0  # MiB/s
_MIB = 1 << 20


def store(checkup: Checkup, place: Place) -> Finding:
    """Where artifacts go, and which way."""
    uri = portable_uri(place.artifact_uri)
    scheme = urlsplit(uri).scheme or "file"
    facts = {"artifact_uri": uri, "scheme": scheme, "proxied": place.proxied}
    if checkup.is_http and place.folder is not None:
        return Finding(
            name="artifact store",
            text=f"{uri}: a folder of this machine, although the server is {checkup.host}",
            verdict="warning",
            advice="unless every machine has this folder, start the server with --serve-artifacts "
            "--artifacts-destination <folder or bucket>, and make a new experiment",
            facts=facts,
        )
    way = "through the tracking server" if place.proxied else "past the tracking server"
    return Finding(
        name="artifact store",
        text=f"{uri}, {way}" if checkup.is_http or place.folder is None else uri,
        facts=facts,
    )


def speed(found: Measured) -> Finding:
    """How fast it was, and whether it kept every byte."""
    write, read = (found.size / _MIB / max(t, 1e-9) for t in (found.write, found.read))
    facts = {
        "size": found.size,
        "write_seconds": found.write,
        "read_seconds": found.read,
        "equal": found.equal,
    }
    text = f"writes {write:.1f} MiB/s, reads {read:.1f} MiB/s ({human_bytes(found.size)})"
    if not found.equal:
        return Finding(
            name="artifact speed",
            text=f"{text}; what was read is not what was written",
            verdict="problem",
            advice="look for a proxy or a disk that changes bytes: nothing stored there is safe",
            facts=facts,
        )
    slow = min(write, read) < _SLOW
    return Finding(
        name="artifact speed",
        text=f"{text}, every byte equal",
        verdict="warning" if slow else "ok",
        advice=f"a checkpoint of 1 GiB takes {1024 / min(write, read) / 60:.0f} minutes: save less "
        "often, or only weights"
        if slow
        else "",
        facts=facts,
    )


def deletion(found: Measured) -> Finding:
    """Whether it could be deleted."""
    if not found.left:
        return Finding(
            name="artifact deletion",
            text="works, and nothing is left behind",
            facts={"deletes": True, "left": None},
        )
    return Finding(
        name="artifact deletion",
        text=f"the store keeps what it has: {found.reason}",
        verdict="warning",
        advice=f"old checkpoints stay, whatever Keep says. Delete by hand: {found.left}",
        facts={"deletes": False, "left": found.left, "reason": found.reason},
    )
