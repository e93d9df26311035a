"""Say what to type next: commands that can be copied, for the server that was used."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow_ckpt.record import Run

Record = Mapping[str, Any]

_CONFIG = "data/config.json"  # `formats.CONFIG`, whose module brings Keras.


def next_commands(uri: str, run: Run, found: Sequence[Record]) -> list[str]:
    """Browse the run, continue it, load from it."""
    browse, environment = _server(uri, run)
    commands = [browse, environment + _resume(run)]
    if found:
        load = f"ckpt.load_model('{run.run_id}', '{_worth_loading(found)}').summary()"
        commands.append(f'{environment}python -c "import mlflow_ckpt as ckpt; {load}"')
    return commands


def environment_for(uri: str, run: Run) -> str:
    """What a command needs in front of it to reach the server of `uri` from this folder."""
    return _server(uri, run)[1]


def _resume(run: Run) -> str:
    """Continue the run the way it was started, as its tags say: as a project, or as a script."""
    if run.tags.get("mlflow.source.type") == "PROJECT":
        return f"mlflow-ckpt resume {run.run_id}"
    source = run.tags.get("mlflow.source.name", "")
    return f"MLFLOW_RUN_ID={run.run_id} python {shlex.quote(Path(source).name or 'train.py')}"


def _server(uri: str, run: Run) -> tuple[str, str]:
    """How to look at the run, and what a command needs in front to reach the same server.

    A user or password is not printed: who has one in the URI has it in the environment.
    """
    parts = urlsplit(uri)
    _, secret, host = parts.netloc.rpartition("@")
    environment = "" if secret else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
    if parts.scheme in ("http", "https"):
        # Without the last part the UI may open in its GenAI view, which hides models.
        page = f"experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
        return f"{parts.scheme}://{host}{parts.path.rstrip('/')}/#/{page}", environment
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if Path(unquote(str(path))).absolute() == Path("mlflow.db").absolute():
            return "mlflow ui", ""
        absolute = shlex.quote(f"sqlite:///{path.absolute()}")
        return f"mlflow ui --backend-store-uri {absolute}", f"MLFLOW_TRACKING_URI={absolute} "
    stored = '"$MLFLOW_TRACKING_URI"' if secret else shlex.quote(uri)
    return f"mlflow ui --backend-store-uri {stored}", environment


def _worth_loading(found: Sequence[Record]) -> str:
    """Selector of the newest `best` of a series; of the newest checkpoint where none has one."""
    best = [record for record in found if record["is_best"]]
    chosen = max(best or found, key=lambda record: record["created_at"])
    several = len({record["series"] for record in found}) > 1
    return ("best" if best else "latest") + (f"@{chosen['series']}" if several else "")


def load_commands(found: Record, which: str) -> list[str]:
    """The Python lines that load one checkpoint."""
    arguments = f"{json.dumps(found['run_id'])}, {json.dumps(which)}"
    files = {entry["path"] for entry in found["manifest"]["files"]}
    lines = ["import mlflow_ckpt as ckpt"]
    if found["weights_only"] and _CONFIG not in files:
        lines.append(f"ckpt.load_weights(model, {arguments})  # into a model that you build")
    else:
        lines.append(f"model = ckpt.load_model({arguments})")
    return lines
