"""Say where a run or an experiment may be that a tracking server does not know.

Nothing is guessed: a run that is like the one that was named is told, and never taken.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from mlflow_ckpt import about
from mlflow_ckpt.errors import CheckpointError, NotFound, RunNotFound
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store._uri import portable, without_secret

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_EXPERIMENTS = 1_000
_SHOWN = 5
_SHORTEST = 4  # of the beginning of an ID


def run_not_found(client: MlflowClient, run_id: str) -> RunNotFound:
    """What to raise, with where to look next."""
    uri = without_secret(client.tracking_uri)
    text = f"No run {run_id!r} on the tracking server {uri}."
    return RunNotFound(f"{text} {_hint(client, run_id)}")


def no_experiment(client: MlflowClient, name: str, names: Iterable[str]) -> NotFound:
    """What to raise for a name that is none of `names`."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=_SHOWN) or known[:_SHOWN]
    there = ", ".join(map(repr, near)) or "none"
    uri = client.tracking_uri
    return NotFound(
        f"No experiment is called {name!r} on the tracking server {without_secret(uri)}. "
        f"There are: {there}.{_default(uri)}"
    )


def _hint(client: MlflowClient, run_id: str) -> str:
    found = _ID.search(run_id)
    if run_id.startswith("m-") or "/m-" in run_id:
        return (
            "That is a logged model. The ID of its run stands on the model's page, as Source run."
        )
    if found and found[0] != run_id:
        return f"Give the ID alone: {found[0]}"
    elsewhere, uri = _in_the_spool(run_id), client.tracking_uri
    if elsewhere and elsewhere != portable(uri):
        address = elsewhere.replace("***@", "")
        return (
            f"It was trained on this machine, for {elsewhere}. "
            f"Type: export MLFLOW_TRACKING_URI={address}"
        )
    if not found and (like := _like(client, run_id)):
        return f"Did you mean {', '.join(like)}?"
    return (
        "Check the ID, which has 32 digits from 0 to f, and MLFLOW_TRACKING_URI or "
        f"mlflow.set_tracking_uri(...).{_default(uri)}"
    )


def _default(uri: str) -> str:
    """Say whose choice the server was, if it was nobody's."""
    name = Path(uri.removeprefix("sqlite:///")).absolute()
    if "MLFLOW_TRACKING_URI" in os.environ or name != Path("mlflow.db").absolute():
        return ""
    return " MLFLOW_TRACKING_URI is not set, so the database of this folder was asked."


def _in_the_spool(run_id: str) -> str | None:
    """The tracking server for which this machine has trained a run."""
    for folder in Spool().folders():
        with suppress(OSError, CheckpointError):
            for path in sorted(folder.glob(f"{glob.escape(run_id)}/*/journal.json")):
                if uri := about.read(path).get("tracking_uri"):
                    return str(uri)
    return None


def _like(client: MlflowClient, text: str) -> list[str]:
    """Runs with this name, or an ID that begins so, in words; at most three."""
    if not re.fullmatch(r"[\w .:-]+", text):
        return []
    clauses = [f"attributes.run_name = '{text}'"]
    if len(text) >= _SHORTEST:
        clauses.append(f"attributes.run_id LIKE '{text}%'")
    with suppress(MlflowException, SQLAlchemyError):  # A hint is worth no second failure.
        experiments = client.search_experiments(max_results=_EXPERIMENTS)
        ids = [experiment.experiment_id for experiment in experiments]
        for clause in clauses:
            if found := client.search_runs(ids, clause, max_results=3):
                return [f"{run.info.run_id} ({run.info.run_name})" for run in found]
    return []
