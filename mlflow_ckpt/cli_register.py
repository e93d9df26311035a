"""`mlflow-ckpt register`: add a checkpoint to the model registry, to be served."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from mlflow_ckpt.cli_bar import shown
from mlflow_ckpt.cli_options import (
    echo_json,
    json_option,
    needed_selector_argument,
    of_a_run,
    run_id_argument,
)

if TYPE_CHECKING:
    from mlflow_ckpt.registering import Registered


@click.command()
@run_id_argument
@needed_selector_argument
@click.option("--name", metavar="NAME", required=True, help="The registered model. Made if new.")
@click.option("--alias", metavar="ALIAS", help="Let this alias name the new version.")
@click.option("--full", is_flag=True, help="The checkpoint itself, with all that training needs.")
@json_option
@of_a_run
def register(
    run_id: str, which: str, name: str, alias: str | None, full: bool, as_json: bool
) -> None:
    """Add one checkpoint to the model registry.

    A new version of the model NAME serves a slim copy, without training state and optimizers; the
    checkpoint may be pruned then. Its tags say the run, step, epoch and metrics. Prints its URI,
    and on stderr how to serve it.

    \b
    Example:
      mlflow-ckpt register 2440a0191a3148b8a59dc32e1d92c259 best --name digits --alias champion
      mlflow-ckpt register 2440a0191a3148b8a59dc32e1d92c259 epoch=5 --name digits --full --json
    """
    from mlflow_ckpt import registering

    with shown("registering"):
        found = registering.register(run_id, which, name, alias, not full)
    if as_json:
        echo_json(found.to_dict())
    else:
        _print(found)


def _print(found: Registered) -> None:
    from mlflow_ckpt.next_steps import environment_for
    from mlflow_ckpt.store import Store
    from mlflow_ckpt.table import human_bytes

    store = Store()
    command = environment_for(store.uri, store.run(found.run_id))
    uri = f"models:/{found.name}@{found.alias}" if found.alias else found.uri
    size = human_bytes(found.bytes)
    if found.slim:
        size += f" of {human_bytes(found.bytes_before)}, without training state"
        size += "" if found.keeps_optimizer else " and optimizer"
    click.echo(found.uri)
    click.echo(f"Epoch {found.epoch}, step {found.step}: {found.source}, {size}.", err=True)
    click.echo(
        f"Serve it with:\n  {command}mlflow models serve -m {shlex.quote(uri)} --env-manager local",
        err=True,
    )
