"""`mlflow-ckpt resume`: launch a run's project again, into the run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from mlflow_ckpt.cli_options import (
    echo_json,
    json_option,
    of_a_run,
    original_environment,
    param_option,
    run_id_argument,
)

if TYPE_CHECKING:
    from mlflow_ckpt.launch import Launch
    from mlflow_ckpt.relaunching import Script

MANAGERS = ("local", "uv", "virtualenv", "conda")


@click.command()
@run_id_argument
@param_option("Ask for another value of the project's parameter, such as more epochs.")
@click.option(
    "--env-manager",
    type=click.Choice(MANAGERS),
    help="What makes the project's environment.  [default: as the last time]",
)
@click.option(
    "--project", metavar="URI", help="Folder or git URI of the project, if it is elsewhere now."
)
@click.option(
    "--any-commit", is_flag=True, help="Launch the code that is there, at whatever commit it is."
)
@click.option("--dry-run", is_flag=True, help="Say what would be launched. Changes nothing.")
@json_option
@of_a_run
def resume(
    run_id: str,
    params: dict[str, str],
    env_manager: str | None,
    project: str | None,
    any_commit: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Continue a run the way it was launched.

    A run of `mlflow run` is launched again into itself, with the project, commit, entry point
    and parameters that it records; no run is made around it. The training takes the place of
    this command: the exit code is its own, such as 143 after SIGTERM; 0 or 1 if MLflow makes an
    environment for it. With --json its output goes to stderr. For the run of a script or notebook
    it prints what to type, and launches nothing.

    \b
    Example:
      mlflow-ckpt resume 2440a0191a3148b8a59dc32e1d92c259
      mlflow-ckpt resume 2440a0191a3148b8a59dc32e1d92c259 -P epochs=40 --dry-run
    """
    from mlflow_ckpt import relaunching

    found = relaunching.plan(
        run_id, params, env_manager=env_manager, project=project, any_commit=any_commit
    )
    if isinstance(found, relaunching.Script):
        _show_script(found, as_json)
        return
    _show(found, dry_run=dry_run, as_json=as_json)
    if not dry_run:
        if as_json:
            os.dup2(2, 1)
        relaunching.go(found, original_environment())


def _show_script(script: Script, as_json: bool) -> None:
    if as_json:
        notes = {"notes": list(script.notes), "command": script.command}
        echo_json({"run_id": script.run.run_id, "launched": False} | notes)
        return
    for note in script.notes:
        click.echo(note, err=True)
    click.echo(script.command)


def _show(launch: Launch, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        echo_json(_record(launch, launched=not dry_run))
        return
    for line in (_summary(launch), *launch.notes):
        click.echo(line, err=not dry_run)
    if dry_run:
        click.echo(f"Would launch what this does:\n  {launch.command}")


def _summary(launch: Launch) -> str:
    run, newest = launch.run, launch.newest
    places = [newest.name] if newest else []
    places += ["what waits in the spool of this machine"] if launch.waiting else []
    commit = f" at commit {launch.commit[:10]}" if launch.commit else ""
    name = f" ({run.name})" if run.name else ""
    return (
        f"Continues run {run.run_id}{name} from {' or '.join(places)}: {launch.source.shown}"
        f"{commit}, entry point {launch.entry_point}{_changes(launch)}."
    )


def _changes(launch: Launch) -> str:
    words = [
        f"{name}={value}" + (f" instead of {launch.before[name]}" if name in launch.before else "")
        for name, value in launch.changed.items()
    ]
    return ", with " + ", ".join(words) if words else ""


def _record(launch: Launch, *, launched: bool) -> dict[str, Any]:
    newest = launch.newest
    return {
        "run_id": launch.run.run_id,
        "launched": launched,
        "status": launch.run.status,
        "checkpoint": newest.name if newest else None,
        "epoch": newest.epoch if newest else None,
        "step": newest.step if newest else None,
        "project": launch.source.shown,
        "folder": str(launch.project.folder),
        "commit": launch.commit or None,
        "entry_point": launch.entry_point,
        "env_manager": launch.env_manager,
        "params": dict(launch.params),
        "changed": launch.changed,
        "left_to_the_script": launch.left_out,
        "notes": list(launch.notes),
        "command": launch.command,
    }
