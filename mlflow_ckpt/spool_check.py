"""Look at the spool of this machine: its folder, its disk, and what waits in it."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow_ckpt.errors import SpoolError
from mlflow_ckpt.finding import Finding, problem
from mlflow_ckpt.spool import VARIABLE, Spool, journals
from mlflow_ckpt.sync_outcome import amount, counted
from mlflow_ckpt.syncing import Waiting
from mlflow_ckpt.table import human_bytes
from mlflow_ckpt.tidy import as_it_was

_MIB = 1 << 20
_LITTLE = 1 << 30
_MOUNTS = Path("/proc/self/mountinfo")
# Why a file system is no good place for a spool, by its type.
_NETWORK = "a network disk, which is slower, and may not keep locks"
_FLAWS = dict.fromkeys(
    ("9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "virtiofs"),
    _NETWORK,
) | {
    "tmpfs": "in memory, which does not survive a restart of this machine",
    "ramfs": "in memory, which does not survive a restart of this machine",
    "overlay": "the container's own disk, which goes with the container",
}


def look(uri: str, size: int) -> Iterator[Finding]:
    """What there is to say of the spool that a `fit` would take.

    Args:
        uri: The tracking server that is current, as a journal names it.
        size: Bytes of the file that is written to measure the disk.
    """
    folder = Spool().folder()
    with as_it_was(folder):
        try:
            place = Spool().open()
            yield _folder(place)
            yield _disk(place, size)
        except OSError as error:
            yield problem("spool", error if isinstance(error, SpoolError) else _unwritable(error))
    yield from _journals(uri)


def _unwritable(error: OSError) -> SpoolError:
    return SpoolError(f"The spool cannot be written to: {error}. {VARIABLE} names another folder.")


def _folder(folder: Path) -> Finding:
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    facts = {"folder": str(folder), "mode": f"{mode:04o}", "owner": found.st_uid}
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        return Finding(
            name="spool",
            text=f"{folder} belongs to user {found.st_uid}",
            verdict="warning",
            advice=f"export {VARIABLE}=<a folder of your own>",
            facts=facts,
        )
    if mode & 0o077:
        return Finding(
            name="spool",
            text=f"{folder} may be looked into by others than its owner (mode {mode:04o})",
            verdict="warning",
            advice=f"chmod 700 {folder}",
            facts=facts,
        )
    return Finding(name="spool", text=f"{folder}, its owner's alone", facts=facts)


def _disk(folder: Path, size: int) -> Finding:
    free = shutil.disk_usage(folder).free
    kind = file_system(folder)
    seconds = None if free < 2 * size else _write(folder, size)
    speed = f", {size / _MIB / seconds:.0f} MiB/s with fsync" if seconds else ""
    flaw = _FLAWS.get(kind) or (f"{human_bytes(free)} are little" if free < _LITTLE else "")
    return Finding(
        name="spool disk",
        text=f"{human_bytes(free)} free on {kind or 'an unknown file system'}{speed}"
        + (f": {flaw}" if flaw else ""),
        verdict=("problem" if seconds is None else "warning") if flaw else "ok",
        advice=f"export {VARIABLE}=<a folder on a local disk>" if flaw else "",
        facts={"free": free, "file_system": kind or None, "size": size, "write_seconds": seconds},
    )


def _write(folder: Path, size: int) -> float:
    """Seconds until a new file of that size is on the disk."""
    data = os.urandom(size)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.monotonic()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return time.monotonic() - began


def file_system(folder: Path) -> str:
    """Type of the file system behind a folder; "" where it is not known."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best, kind = folder.resolve(), -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        # What is mounted later on the same point hides what was there before.
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


# --- what waits ---------------------------------------------------------------


def _journals(uri: str) -> Iterator[Finding]:
    found: list[Waiting] = []
    for folder in Spool().folders():
        if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
            yield problem("journals", SpoolError(f"This user may not read the spool {folder}."))
            continue
        found += [Waiting.read(journal) for journal in journals(folder)]
    for waiting in found:
        if waiting.fault is not None:
            yield problem("journals", waiting.fault)
    here = [w for w in found if w.fault is None and w.tracking_uri in ("", uri)]
    others = [w for w in found if w.fault is None and w.tracking_uri not in ("", uri)]
    yield _waiting("waiting here", uri, here, "mlflow-ckpt sync", sum(w.bytes for w in found))
    if any(w.entries for w in others):
        yield _waiting("waiting elsewhere", uri, others, "mlflow-ckpt sync --all")


def _waiting(name: str, uri: str, found: Sequence[Waiting], command: str, kept: int = 0) -> Finding:
    there = [waiting for waiting in found if waiting.entries]
    checkpoints = sum(len(waiting.checkpoints) for waiting in there)
    entries = sum(waiting.entries for waiting in there)
    refused = sum(len(waiting.refused) for waiting in there)
    size = sum(waiting.bytes for waiting in there)
    servers = ", ".join(sorted({w.tracking_uri for w in there if w.tracking_uri}))
    text = f"nothing in the spool waits for {uri}"
    if there:
        text = f"{amount(checkpoints, entries)} of {counted(len(there), 'series', 'series')} "
        text += f"for {servers or uri}, {human_bytes(size)}"
    text += f"; {refused} of it was refused" if refused else ""
    text += f"; {human_bytes(kept)} with copies of what was delivered" if kept else ""
    # Those of a process that trains are on their way.
    left = [w for w in there if w.refused or w.journal.writer_is_gone]
    return Finding(
        name=name,
        text=text,
        verdict="warning" if left else "ok",
        advice=command if left else "",
        facts={
            "series": len(there),
            "checkpoints": checkpoints,
            "other_entries": entries - checkpoints,
            "refused": refused,
            "bytes": size,
            "spool_bytes": kept or None,
            "tracking_uris": sorted({w.tracking_uri for w in there}),
        },
    )
