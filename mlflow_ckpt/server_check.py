"""Say of a tracking server what it is, how soon it answers, and what it lets one do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mlflow_ckpt.errors import CheckpointError, ServerAway
from mlflow_ckpt.finding import Finding
from mlflow_ckpt.record import Run
from mlflow_ckpt.store import Checkup, Place, Store, current_uri, portable_uri

_LATE_S = 1.0
_OLDEST = 3  # of MLflow: the first one with logged models


def address(asked: str | None) -> Finding:
    """Where it is, and who says so.

    Args:
        asked: What the command line names, if it does.
    """
    origin = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "the default"
    uri = portable_uri(current_uri())
    return Finding(
        name="tracking URI",
        text=f"{uri}, from {'--tracking-uri' if asked else origin}",
        facts={"uri": uri},
    )


def dead(error: CheckpointError) -> Finding:
    """That nothing answers, or refuses to."""
    away = isinstance(error, ServerAway)
    return Finding(
        name="tracking server",
        text=" ".join(str(error).split()),
        verdict="problem",
        advice="start it, or name another one with --tracking-uri; nothing behind it was looked at"
        if away
        else "",
        facts={"version": None},
    )


def server(checkup: Checkup) -> Finding:
    """What answers, its version, and how soon; facts with `version` None or "" end the look."""
    found = checkup.server()
    facts: dict[str, Any] = {"kind": found.kind, "version": found.version}
    if checkup.is_http:
        text = f"MLflow {found.version}"
        if int(found.version.partition(".")[0]) < _OLDEST:
            return Finding(
                name="tracking server",
                text=f"Expected MLflow {_OLDEST} or later, which has logged models. "
                f"Received: {text}.",
                verdict="problem",
                advice="upgrade the server: pip install 'mlflow>=3', then mlflow db upgrade",
                facts=facts,
            )
    elif not found.version:
        return Finding(
            name="tracking server",
            text=f"{found.kind}: an empty database, in which MLflow makes its tables at first use",
            verdict="warning",
            advice="train something, or name another one with --tracking-uri",
            facts=facts,
        )
    elif found.version != found.expected:
        return Finding(
            name="tracking server",
            text=f"{found.kind}: Expected schema {found.expected}, which this MLflow writes. "
            f"Received: {found.version}.",
            verdict="problem",
            advice=f"back it up, then: mlflow db upgrade {portable_uri(checkup.uri)}. If a newer "
            "MLflow has written it: pip install -U mlflow",
            facts=facts,
        )
    else:
        text = f"{found.kind}, schema {found.version}, as this MLflow writes it"
    seconds = checkup.round_trip()
    late = seconds > _LATE_S
    return Finding(
        name="tracking server",
        text=f"{text}; a search takes {1000 * seconds:.0f} ms",
        verdict="warning" if late else "ok",
        advice="training does not wait for it, and loading does: is it far away, or busy?"
        if late
        else "",
        facts=facts | {"round_trip_seconds": seconds},
    )


def models(checkup: Checkup, place: Place, run: Run | None) -> Finding:
    """Whether the server has logged models."""
    checkup.search_models(place.experiment_id)
    where = f"experiment {place.experiment!r}"
    if run is not None:
        series = ", ".join(sorted(run.series)) or "none yet"
        where = f"run {run.run_id} ({run.status}, series: {series}), {where}"
    return Finding(
        name="logged models",
        text=f"the server has them; {where}",
        facts={
            "experiment_id": place.experiment_id,
            "experiment": place.experiment,
            "run_id": run.run_id if run else None,
        },
    )


def visitor(checkup: Checkup, place: Place) -> Finding:
    """Who this is to the server, and whether they may train."""
    found = checkup.visitor(place.experiment_id)
    facts = {"user": found.name or None, "asks_who": found.asked}
    if found.denied:
        return Finding(
            name="user",
            text=f"{found.name or 'nobody'} may make no run in experiment {place.experiment!r}",
            verdict="problem",
            advice=found.denied,
            facts=facts | {"may_train": False},
        )
    if found.denied is None and (path := _database(checkup.uri)) and not os.access(path, os.W_OK):
        return Finding(
            name="user",
            text=f"this user may not write to {path}",
            verdict="problem",
            advice="ask its owner, or train as the user whose it is",
            facts=facts | {"may_train": False},
        )
    who = found.name or "anybody who reaches it"
    text = f"{who} may train in experiment {place.experiment!r}"
    return Finding(
        name="user",
        text=text if found.asked else f"{text}; the server asks nobody who they are",
        facts=facts | {"may_train": True},
    )


def _database(uri: str) -> Path | None:
    """The file of an SQLite database."""
    scheme, _, name = uri.partition(":///")
    path = Path(unquote(name.partition("?")[0]))
    return path if scheme.startswith("sqlite") and path.is_file() else None


def deleting(checkup: Checkup, run: Run) -> Finding | None:
    """Whether this user may delete checkpoints of the run; `None` if it has none."""
    store = Store()
    found = (store.latest(run, series) for series in run.series.values())
    checkpoint = next((each for each in found if each is not None), None)
    if checkpoint is None:
        return None
    may = checkup.may_delete(checkpoint.model_id)
    if isinstance(may, str):
        return Finding(
            name="old checkpoints",
            text=f"this user may not delete them: {may}",
            verdict="warning",
            advice="ask for the permission MANAGE on the experiment; until then they stay",
            facts={"may_delete": False},
        )
    return Finding(
        name="old checkpoints", text="this user may delete them", facts={"may_delete": True}
    )
