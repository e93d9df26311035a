"""Say to the server what a journal's entries say.

Each entry can be said again: a process may die, or an answer be lost, after the server has
carried out a request and before the entry is taken away. The kinds:

    rows        points for the run's curves
    series      facts of the series: monitor, direction, prefix
    tags        tags of the run
    checkpoint  files, metric rows, and the keep policy that applies once it is committed
    final       which checkpoint is the state in which `fit` left the model
    end         `fit` has returned: link the newest that are unlinked, drop what is half-made
    status      the run has ended otherwise
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mlflow_ckpt import links, parcel
from mlflow_ckpt.curves import Drawn
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.errors import SaveFailed, StoreError
from mlflow_ckpt.exact_tag import exact_tag
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.record import DIVERGENCE_TAG, RESUME_EXACT_TAG, Checkpoint, MetricRow, Run
from mlflow_ckpt.retention import Retention
from mlflow_ckpt.store import Commit, Store

_SHOWN = 20
_ROWS = 1_000  # MLflow takes no more in one request.


class Claim(Protocol):
    """Says whether this process may still write the series."""

    def check(self) -> None: ...
    def release(self) -> bool: ...
    def stop(self) -> None: ...


class Delivery:
    """Delivers the entries of one journal, in order, on one thread at a time.

    Args:
        store: Where to.
        journal: Where from.
        claim: Asked before every checkpoint; `None` where nobody else can be.
        failed: Told of what went wrong after a checkpoint was committed.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        claim: Claim | None = None,
        failed: Callable[[StoreError], None] | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._claim = claim
        self._failed = failed
        self._run: Run | None = None
        self._retentions: dict[str, Retention] = {}
        self._delivered: dict[str, str] = {}
        self._told = 0

    def __call__(self, entry: Entry) -> Checkpoint | None:
        """Deliver one entry and take it away; returns the checkpoint, if it is one.

        Raises:
            ServerAway: If the server does not answer: the entry stays, to be delivered again.
            SaveFailed, StoreError: If it refuses: the entry stays too.
            LeaseHeld, LeaseLost: If another process writes the series.
        """
        if self._run is None:
            self._begin()
        if entry.kind == parcel.CHECKPOINT:
            return self._checkpoint(entry)
        if entry.kind == parcel.ROWS:
            self._rows(entry)
            return None
        say = {
            parcel.SERIES: self._series,
            parcel.TAGS: self._tags,
            parcel.FINAL: self._final,
            parcel.END: self._end,
            parcel.STATUS: self._status,
        }[entry.kind]
        say(entry.data)
        self._journal.remove(entry)
        return None

    def find(self, uid: str) -> Checkpoint | None:
        """The committed checkpoint of an entry, whoever delivered it."""
        if self._run is None:
            self._begin()
        return self._store.of_entry(self._known_run, uid)

    @property
    def _known_run(self) -> Run:
        assert self._run is not None, "something was delivered before"
        return self._run

    def _begin(self) -> None:
        run_id = self._journal.about["run_id"]
        if self._claim is not None:
            self._claim.check()
        run = self._store.run(run_id, settled=False)
        self._store.prepare_experiment(run)
        self._links = links.Links(run.links)
        self._drawn = Drawn(self._store, run)
        self._exact = run.tags.get(RESUME_EXACT_TAG)
        self._run = run

    # --- kinds ----------------------------------------------------------------

    def _rows(self, entry: Entry) -> None:
        """Log the rows of this entry, and of those behind it, in one request."""
        together, count = [entry], len(entry.data["rows"])
        for other in self._journal.after(entry):
            count += len(other.data.get("rows", ()))
            if other.kind != parcel.ROWS or count > _ROWS:
                break
            together.append(other)
        rows: list[MetricRow] = []
        for one in together:
            replayed = not one.data.get("measured", False)
            rows += self._drawn.admit(parcel.unpack_rows(one.data["rows"]), replayed=replayed)
        self._log(rows)
        for one in together:
            self._journal.remove(one)

    def _log(self, rows: list[MetricRow]) -> None:
        if rows:
            self._store.log_rows(self._known_run, rows)
            self._drawn.logged(rows)
        self._report()

    def _series(self, data: Mapping[str, Any]) -> None:
        self._store.set_series(self._known_run, parcel.unpack_series(data))
        self._journal.add_tags({data["tag"]: data["facts"]})

    def _tags(self, data: Mapping[str, Any]) -> None:
        self._exact = data["tags"].get(RESUME_EXACT_TAG, self._exact)
        self._store.set_tags(self._known_run, data["tags"])
        self._journal.add_tags(data["tags"])

    def _checkpoint(self, entry: Entry) -> Checkpoint | None:
        data = entry.data
        rows = self._drawn.admit(parcel.unpack_rows([*data["rows"], *data["beside"]]))
        if entry.dropped:
            self._log(rows)
            self._journal.remove(entry)
            return None
        if self._claim is not None:
            self._claim.check()
        known = {(key, step) for key, _, _, step in data["rows"]}
        request = Commit(
            entry=entry.uid,
            position=parcel.unpack_position(data["position"]),
            directory=entry.files,
            digest=data["digest"],
            metrics=[row for row in rows if (row.key, row.step) in known],
            beside=[row for row in rows if (row.key, row.step) not in known],
            values=data["values"],
            weights_only=data["weights_only"],
            capture=data["capture"],
            final=data["final"],
            link=self._links.due,
        )
        try:
            checkpoint = self._store.commit(self._known_run, request, entry)
        except SaveFailed as error:
            if not entry.dropped:
                self._log_curve(data, error)
                raise
            self._log(rows)
            self._delivered[entry.uid] = ""  # What is half-made goes at the end.
            self._journal.remove(entry)
            return None
        self._drawn.logged(rows)
        self._delivered[entry.uid] = checkpoint.model_id
        if request.link:
            self._links.linked()
        self._prune(checkpoint, data)
        self._report()
        self._put_away(entry, checkpoint)
        return checkpoint

    def _log_curve(self, data: Mapping[str, Any], failure: SaveFailed) -> None:
        """Draw the epoch of a checkpoint that was refused; `failure` is the first to be told."""
        try:
            self._log(self._drawn.admit(parcel.unpack_rows(data.get("curve", ()))))
        except StoreError as error:
            failure.add_note(f"Its metrics were not logged: {error}")

    def _prune(self, checkpoint: Checkpoint, data: Mapping[str, Any]) -> None:
        series, keep = parcel.unpack_series(data["series"]), parcel.unpack_keep(data["keep"])
        retention = self._retentions.setdefault(
            series.name, Retention(self._store, self._known_run)
        )
        try:
            retention.apply(checkpoint, series, keep)
        except ConnectionError:
            raise
        except StoreError as error:
            if self._failed is None:
                raise
            self._failed(error)

    def _put_away(self, entry: Entry, checkpoint: Checkpoint) -> None:
        if checkpoint.kind in ("epoch", "batch"):
            self._journal.keep_copy(
                entry,
                {
                    "model_id": checkpoint.model_id,
                    "artifact_uri": checkpoint.artifact_uri,
                    "created_at": checkpoint.created_at,
                },
            )
        else:
            self._journal.remove(entry)

    def _final(self, data: Mapping[str, Any]) -> None:
        series = parcel.unpack_series(data["series"])
        model_id = data["model_id"] or self._delivered.get(data["entry"], "")
        end = self._store.checkpoint(self._known_run, series, model_id, data["entry"])
        if end is not None:
            self._store.mark_final(self._known_run, series, end)
        elif any(entry.uid == data["entry"] for entry in self._journal.refused()):
            raise StoreError("The end state of the fit was refused, so nothing is marked as final.")

    def _end(self, data: Mapping[str, Any]) -> None:
        if self._links.count >= links.ALWAYS:
            series = parcel.unpack_series(data["series"])
            self._store.link_newest(self._known_run, series, links.ALWAYS)
        self._sweep()

    def _status(self, data: Mapping[str, Any]) -> None:
        self._store.end_run(self._known_run, data["status"])
        self._sweep()

    def _sweep(self) -> None:
        if self._claim is not None:
            self._claim.check()
        series, alone = self._journal.about["series"], self._claim is not None
        self._store.drop_unfinished(self._known_run, series, self._delivered, alone=alone)

    def _report(self) -> None:
        """Say in tags of the run which replayed points differed."""
        found = self._drawn.divergences
        if len(found) == self._told:
            return
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        tags = {DIVERGENCE_TAG: "; ".join(found[:_SHOWN]) + more}
        if self._exact is not None:
            reason = ("false", f"{len(found)} metric values were not repeated")
            tags[RESUME_EXACT_TAG] = exact_tag([reason], self._exact)
        self._store.set_tags(self._known_run, tags)
        self._told = len(found)
