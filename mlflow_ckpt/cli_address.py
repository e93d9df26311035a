"""Let `ckpt:/<run_id>/<selector>` stand where a command asks for RUN_ID and SELECTOR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from mlflow_ckpt.address import Address, is_address


def named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command, with a URI taken apart.

    A command without SELECTOR reads the run from it, and no more.

    Raises:
        SelectorError: If it is no such URI.
        NotFound: If it is one of an experiment in which nothing fits.
        UsageError: If it names a file, or SELECTOR names a checkpoint too.
    """
    found = dict(arguments)
    if not is_address(found.get("run_id")):
        return found
    address = Address.parse(found["run_id"])
    if address.path:
        raise click.UsageError(
            f"Expected a whole checkpoint. Received: {found['run_id']!r}. Leave /{address.path} "
            "out."
        )
    if "which" in found and _is_typed("which"):
        raise click.UsageError(
            f"The URI names {str(address.selector)!r} already. Received: {found['which']!r} behind "
            "it. Leave one of them out."
        )
    run_id, which = _place(address)
    found["run_id"] = run_id
    if "which" in found:
        found["which"] = which
    return found


def _place(address: Address) -> tuple[str, str]:
    """Run and selector; of an experiment those of what is its best now."""
    if address.run_id is not None:
        return address.run_id, str(address.selector)
    from mlflow_ckpt.across import best_across
    from mlflow_ckpt.store import Store

    best = best_across(Store(), address.experiment or "", address.selector)
    return best.run.run_id, str(best.selector)


def _is_typed(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE
