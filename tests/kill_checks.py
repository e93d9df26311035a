"""What must hold of a spool and its server, whenever a process was killed.

The ledger is what the processes were told: a line before each `Journal.append`, and another
one right after it has returned. Whatever has its second line must reach the server; what has
only its first one may.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from mlflow_ckpt import parcel, policy
from mlflow_ckpt.ground import reach
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.policy import Candidate, Keep
from mlflow_ckpt.record import (
    COMPLETE_TAG,
    DIVERGENCE_TAG,
    ENTRY_TAG,
    Checkpoint,
    MetricRow,
    Run,
    Series,
)
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store

SERIES = Series(name="ckpt", monitor="loss", mode="min", directions={"accuracy": "max"})
KEEP = Keep(last=2, best=1)
# The fault points are patched into `os`: what the tests write themselves must not count.
_fsync = os.fsync


@dataclass(frozen=True, kw_only=True)
class World:
    """One run, its spool and its server.

    Attributes:
        store: How the server gets its files: by `links`, as `copies`, `handed` over or by
            `http`.
        lease: Whether who delivers holds the lease.
    """

    folder: Path
    uri: str
    run_id: str
    store: str
    seed: int
    lease: bool

    @property
    def spool(self) -> Spool:
        return Spool(dir=self.folder / "spool")

    @property
    def journal(self) -> Journal:
        return Journal(self.spool.folder() / self.run_id / SERIES.name)

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"


@dataclass
class Said:
    """One append: its rows, its checkpoint if it is one, and its entry if it is known."""

    rows: list[MetricRow]
    step: int | None
    epoch: int = 0
    value: float | None = None
    created: int = 0
    uid: str | None = None


class Ledger:
    """What one process appends to a journal, noted durably."""

    def __init__(self, world: World) -> None:
        flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY
        self._file = os.open(world.folder / "ledger", flags, 0o600)
        self._count = 0

    def begin(self, said: Said) -> str:
        """Note what is about to be appended; returns a name for `end`."""
        self._count += 1
        name = f"{os.getpid()}-{self._count}"
        self._line({"name": name, "said": asdict(said) | {"rows": parcel.pack_rows(said.rows)}})
        return name

    def end(self, name: str, uid: str) -> None:
        """Note that it was appended."""
        self._line({"name": name, "uid": uid})

    def _line(self, content: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(content).encode() + b"\n")
        _fsync(self._file)


def ledger(world: World) -> list[Said]:
    """Everything that was said, in order."""
    path, found = world.folder / "ledger", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        raw = json.loads(line)
        if "uid" in raw:
            found[raw["name"]].uid = raw["uid"]
        else:
            said = raw["said"]
            found[raw["name"]] = Said(**{**said, "rows": parcel.unpack_rows(said["rows"])})
    return list(found.values())


# --- right after a kill, before anybody has mended anything ---------------------------------


def nothing_is_torn(world: World, *, refuses: bool = False) -> None:
    """Whatever resolves is whole; and a fit could go on from the newest checkpoint said.

    Args:
        refuses: Whether a server has refused some: no fit resumes from those.
    """
    store = Store()
    seen = resolved_now(world, store, store.run(world.run_id))
    assert len({c.entry for c in seen}) == len(seen), f"twice committed: {seen}"
    ground = reach(store, world.run_id, SERIES.name, world.spool)
    try:
        point = ground.resume_point(SERIES)
        told = max((s.step for s in ledger(world) if s.step and s.uid), default=0)
        step = point.step if point else 0
        assert refuses or step >= told, f"resumes at step {step}; {told} was appended"
        if point is not None:
            whole(store, point)
    finally:
        ground.release()


def resolved_now(world: World, store: Store, run: Run) -> list[Checkpoint]:
    """Hold every checkpoint that resolves against its digests; returns all of them."""
    every = store.checkpoints(run, SERIES)
    single = [store.latest(run, SERIES), store.resume_point(run, SERIES)]
    single += [store.best(run, SERIES, "loss", "min"), store.final(run, SERIES)]
    for found in {c.model_id: c for c in [*every, *single] if c is not None}.values():
        try:
            whole(store, found)
        except Exception:
            # Pruned while we looked: what counts is that it does not resolve any more.
            if store.reread(found, SERIES) is not None:
                raise
    return every


def whole(store: Store, checkpoint: Checkpoint) -> None:
    """Hold every byte of it against its digest."""
    if checkpoint.local is not None:
        manifest = parcel.manifest_of(checkpoint.local, checkpoint.digest)
        for entry in manifest.files:
            entry.verify(checkpoint.local)
        return
    with tempfile.TemporaryDirectory() as folder:
        manifest = store.manifest(checkpoint, Path(folder))
        paths = [entry.path for entry in manifest.files]
        files = store.fetch(checkpoint, manifest, paths, Path(folder))
        for file in files.values():
            file.close()
    assert set(files) == set(paths)
    assert manifest.checkpoint["step"] == checkpoint.step


# --- once somebody has finished it ----------------------------------------------------------


def survivors(world: World) -> dict[int, str]:
    """Entry of each step that waits in the journal, told or not."""
    entries = [*world.journal.refused(), *world.journal.waiting()]
    return {
        entry.data["position"]["step"]: entry.uid
        for entry in entries
        if entry.kind == parcel.CHECKPOINT
    }


def everything_arrived(world: World, waited: dict[int, str]) -> None:
    """Hold run and spool against the ledger.

    Args:
        waited: `survivors` before the delivery.
    """
    store = Store()
    run = store.run(world.run_id)
    client = MlflowClient(tracking_uri=world.uri)
    every = resolved_now(world, store, run)
    _checkpoints(world, store, run, every, waited)
    _rows(world, store, run)
    _nothing_left(world, client, run, every)
    assert DIVERGENCE_TAG not in run.tags, run.tags[DIVERGENCE_TAG]
    outputs = client.get_run(world.run_id).outputs
    linked = {o.model_id for o in outputs.model_outputs} if outputs else set()
    assert {c.model_id for c in every} <= linked, "a checkpoint is missing on the run's page"


def _checkpoints(
    world: World, store: Store, run: Run, every: list[Checkpoint], waited: dict[int, str]
) -> None:
    said = [s for s in ledger(world) if s.step is not None]
    told = {s.uid for s in said if s.uid}
    found = waited | {c.step: c.entry for c in every}
    # A process that died between the append and its line has appended all the same.
    for one in said:
        uid = found.get(one.step or 0)
        if one.uid is None and uid not in told:
            one.uid = uid
    there = [s for s in said if s.uid]
    keys = policy.kept([_candidate(s) for s in there], KEEP, "min")
    committed = [c.entry for c in every]
    assert sorted(committed) == sorted(keys), (
        f"committed {[(c.step, c.entry) for c in every]}, "
        f"expected {sorted((s.step or 0, s.uid) for s in there if s.uid in keys)}"
    )
    newest = max((s.step or 0 for s in there), default=0)
    latest, point = store.latest(run, SERIES), store.resume_point(run, SERIES)
    assert (latest.step if latest else 0) == (point.step if point else 0) == newest
    ranked = policy.ranked([_candidate(s) for s in there], "min")
    best = store.best(run, SERIES, "loss", "min")
    assert (best.entry if best else None) == (ranked[0].key if ranked else None)
    final = store.final(run, SERIES)
    assert (final.step if final else 0) == newest


def _candidate(said: Said) -> Candidate:
    return Candidate(
        key=said.uid or "",
        step=said.step or 0,
        epoch=said.epoch,
        epoch_ended=True,
        created=said.created,
        value=said.value,
    )


def _rows(world: World, store: Store, run: Run) -> None:
    """Each (key, step) once: the row said first, which a later one does not replace."""
    may: dict[tuple[str, int], list[MetricRow]] = {}
    must: set[tuple[str, int]] = set()
    for said in ledger(world):
        for row in said.rows:
            place = (row.key, row.step)
            if place not in must:
                may.setdefault(place, []).append(row)
        if said.uid:
            must.update((row.key, row.step) for row in said.rows)
    found: dict[tuple[str, int], list[MetricRow]] = {}
    for key in run.metric_names:
        for row in store.history(run, key):
            found.setdefault((key, row.step), []).append(row)
    assert must <= set(found), f"lost rows: {sorted(must - set(found))}"
    for place, rows in found.items():
        assert len(rows) == 1, f"{place} has {rows}"
        assert repr(rows[0]) in map(repr, may.get(place, [])), f"{rows[0]}, said: {may.get(place)}"


def _nothing_left(world: World, client: MlflowClient, run: Run, every: list[Checkpoint]) -> None:
    journal = Journal.create(world.spool.folder(), world.run_id, SERIES.name, {})
    names = sorted(path.name for path in journal.path.iterdir())
    odd = set(names) - {"journal.json", "lock", "making", "refused", "copy"}
    assert not odd, f"left in the journal: {odd}"
    assert not journal.refused()
    left = [str(p.relative_to(journal.path)) for p in (journal.path / "making").rglob("*")]
    assert not left, f"left in making: {left}"
    copy = journal.copy()
    assert copy is not None or not every
    if copy is not None:
        raw = (copy.files / FILENAME).read_bytes()
        for entry in Manifest.parse(raw, digest=copy.data["digest"]).files:
            entry.verify(copy.files)
    models = list(_models(client, run))
    kept = {c.model_id for c in every}
    torn = {m.model_id: (m.status, m.tags) for m in models if m.model_id not in kept}
    assert not torn, f"left on the server: {torn}"
    assert all(m.tags[COMPLETE_TAG] == "true" and m.tags[ENTRY_TAG] for m in models)
    assert all(m.status == "READY" for m in models)
    if world.store != "http":
        folders = {p.parent.name for p in world.artifacts.glob("models/*/artifacts")}
        assert folders == kept, f"left in the artifact store: {folders - kept}"


def _models(client: MlflowClient, run: Run) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_logged_models(
            [run.experiment_id], f"source_run_id = '{run.run_id}'", page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
