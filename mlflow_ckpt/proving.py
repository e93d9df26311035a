"""Prove an MLflow Project for the command line, and show a person what was found.

Only here does a proof meet rich; who proves in a test gets the numbers and the text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from mlflow_ckpt import table, target, trial
from mlflow_ckpt.cli_options import echo_json
from mlflow_ckpt.proof import NotExact, Process, Proof
from mlflow_ckpt.table import Column, print_columns


def prove_project(
    *,
    project: str,
    entry_point: str,
    params: Mapping[str, str],
    kills: Sequence[int] | None,
    tracking_uri: str | None,
    environment: Mapping[str, str],
    as_json: bool,
) -> bool:
    """Prove a project, print the outcome, and return whether it resumes exactly."""
    command = target.project_command(project, entry_point, params)
    reason: str | None = None
    with Console(stderr=True).status("starting") as status:
        try:
            proof = trial.prove(
                command,
                kills,
                tracking_uri,
                environment=_with_this_python(environment),
                tell=status.update,
            )
        except NotExact as error:
            proof, reason = error.proof, str(error)
    if as_json:
        found = {"exact": reason is None, "reason": reason, **asdict(proof)}
        echo_json(found)
    else:
        print_proof(proof, reason)
    return reason is None


def _with_this_python(environment: Mapping[str, str]) -> dict[str, str]:
    """Let a project's `python` be the one that runs us, also where no environment is activated."""
    here = str(Path(sys.executable).parent)
    return {**environment, "PATH": os.pathsep.join([here, environment.get("PATH", os.defpath)])}


def print_proof(proof: Proof, reason: str | None) -> None:
    """Print one row per process, and the verdict; `reason` says why it is not exact."""
    console = table.console()
    if proof.batches:
        whole = Process(
            killed_at=None, resumed_from=0, trained=proof.batches, expected=proof.batches
        )
        print_columns(console, _columns([whole, *proof.processes]))
    console.print(_verdict(proof, reason))


def _columns(processes: Sequence[Process]) -> list[Column]:
    names = ["uninterrupted", *(f"process {n}" for n in range(1, len(processes)))]
    kills = ["-" if p.killed_at is None else str(p.killed_at) for p in processes]
    return [
        Column(title="", cells=names),
        Column(title="killed after", cells=kills, right=True),
        Column(title="resumed from", cells=[str(p.resumed_from) for p in processes], right=True),
        Column(title="trained", cells=[str(p.trained) for p in processes], right=True),
        Column(title="expected", cells=[str(p.expected) for p in processes], right=True),
    ]


def _verdict(proof: Proof, reason: str | None) -> str:
    if reason is not None:
        return f"not proved: {reason}"
    return (
        f"exact: {proof.variables} variables are bitwise the same in {proof.states} states, "
        f"and so are {proof.metric_points} metric points ({proof.seconds:.0f} s)."
    )
