"""`mlflow-ckpt completion`: the script with which a shell completes the commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mlflow_ckpt.cli_options import debug_option

NAME = "mlflow-ckpt"
VARIABLE = "_MLFLOW_CKPT_COMPLETE"  # as click names it

WHERE = {
    "bash": """\
Put this into ~/.bashrc:  eval "$(mlflow-ckpt completion bash)"
or, where the package bash-completion is installed:
  mlflow-ckpt completion bash > ~/.local/share/bash-completion/completions/mlflow-ckpt""",
    "zsh": """\
Put this into ~/.zshrc, behind compinit:  eval "$(mlflow-ckpt completion zsh)\"""",
    "fish": """\
Type:  mlflow-ckpt completion fish > ~/.config/fish/completions/mlflow-ckpt.fish""",
}


@click.command()
@click.argument("shell", metavar="[bash|zsh|fish]", type=click.Choice(list(WHERE)), required=False)
@debug_option
def completion(shell: str | None, debug: bool) -> None:
    """Print the script that completes commands in a shell.

    For the shell that $SHELL names, if none is given. It completes commands, options, selectors,
    and the IDs of runs that were trained on this machine. On a terminal it says where to put it.

    \b
    Example:
      mlflow-ckpt completion bash
      eval "$(mlflow-ckpt completion bash)"
    """
    shell = shell or _of_environment()
    from click.shell_completion import get_completion_class

    prepare()
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three"
    click.echo(kind(click.get_current_context().find_root().command, {}, NAME, VARIABLE).source())
    if _is_terminal():
        click.echo(WHERE[shell], err=True)


def _of_environment() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in WHERE:
        raise click.UsageError(
            f"Expected one of {', '.join(WHERE)}. Received: SHELL={name!r}. "
            "Type: mlflow-ckpt completion bash"
        )
    return name


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def prepare() -> None:
    """Let bash set no space behind `step=`. To be called before click completes anything."""
    from click.shell_completion import BashComplete, add_completion_class

    class Bash(BashComplete):
        source_template = BashComplete.source_template.replace(
            "COMPREPLY+=($value)",
            'COMPREPLY+=("$value")\n'
            "            [[ $value == *= ]] && compopt -o nospace 2> /dev/null",
        )

    add_completion_class(Bash)
