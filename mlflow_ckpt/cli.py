"""The command line `mlflow-ckpt`: look at the checkpoints of a run, take them out, go on.

Commands only parse and print. MLflow, Keras and rich take seconds to import, so every
import that needs one of them stands inside a command, and `--help` answers at once.
"""

from __future__ import annotations

import click

from mlflow_ckpt import __version__
from mlflow_ckpt.cli_completion import completion
from mlflow_ckpt.cli_diff import diff
from mlflow_ckpt.cli_doctor import doctor
from mlflow_ckpt.cli_fork import fork
from mlflow_ckpt.cli_group import EXIT_CODES, Commands
from mlflow_ckpt.cli_keep import gc, pin, prune
from mlflow_ckpt.cli_look import list_, show
from mlflow_ckpt.cli_prove import prove
from mlflow_ckpt.cli_register import register
from mlflow_ckpt.cli_report import report
from mlflow_ckpt.cli_resume import resume
from mlflow_ckpt.cli_sync import sync
from mlflow_ckpt.cli_take import export, pull
from mlflow_ckpt.cli_trust import resolve, verify


@click.group(
    cls=Commands,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)
@click.version_option(__version__, prog_name="mlflow-ckpt", message="%(prog)s %(version)s")
def main() -> None:
    """Look at the checkpoints of an MLflow run, take them out, and go on from them.

    RUN_ID is the ID of an MLflow run. SELECTOR names one of its checkpoints: latest, final,
    best, best(METRIC[,min|max]), step=N or epoch=N, then @SERIES if the run has several.

    \b
    Example:
      mlflow-ckpt list 2440a0191a3148b8a59dc32e1d92c259
      mlflow-ckpt show 2440a0191a3148b8a59dc32e1d92c259 best
    """


main.add_section("Look", list_, show, diff, resolve, report)
main.add_section("Take out", pull, export, register)
main.add_section("Trust", verify, prove)
main.add_section("Keep", pin, prune, gc)
main.add_section("Move on", resume, fork)
main.add_section("Repair", sync, doctor)
main.add_section("Set up", completion)
