"""The group behind `mlflow-ckpt`: its sections of commands, and with which code it ends.

0    done
1    a failure, with one line on stderr; or a fault was found, or something is left
2    a wrong command line
130  interrupted by Ctrl-C
141  whoever read the output has closed it, as `head` does
"""

from __future__ import annotations

import difflib
import errno
import functools
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

INTERRUPTED = 130  # 128 and the number of the signal, as a shell says it
BROKEN_PIPE = 141

EXIT_CODES = """\
Exit codes:
  0    done
  1    a failure, with one line on stderr; or a fault was found, or something is left
  2    a wrong command line
  130  interrupted by Ctrl-C
  141  whoever read the output has closed it, as `head` does
"""


class Commands(click.Group):
    """Commands in sections, in the order in which a person meets them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections: dict[str, list[str]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands below a title of `--help`."""
        for command in commands:
            self.add_command(command)
            self._sections.setdefault(title, []).append(str(command.name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self._sections.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.commands))
        for title, names in self._sections.items():
            with formatter.section(title):
                limit = formatter.width - widest - 6
                rows = [(name, self.commands[name].get_short_help_str(limit)) for name in names]
                # The same second column in every section.
                formatter.write_dl([(name.ljust(widest), text) for name, text in rows])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\n{self.epilog or ''}")  # as it is, and not indented

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not ctx.resilient_parsing and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "See: mlflow-ckpt --help"
            raise click.UsageError(f"No such command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _readers_may_go():  # before click sees it, which would end with 1
            return super().invoke(ctx)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        _exit(functools.partial(run, *args, standalone_mode=False, **extra))


def _exit(run: Callable[[], Any]) -> NoReturn:
    """End this process with the code of what `run` does."""
    try:
        with _readers_may_go():
            code = _code_of(run)
            sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    sys.exit(code)


@contextmanager
def _readers_may_go() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EPIPE or not is_stdout_closed():
            raise
        _drop_output()
        sys.exit(BROKEN_PIPE)


def _code_of(run: Callable[[], Any]) -> int:
    try:
        code = run()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit as ended:
        code = ended.code
    return code if isinstance(code, int) else 0


def is_stdout_closed() -> bool:
    """Whether nobody reads our output any more: an EPIPE may also be a socket's."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll here, or no file
        return True


def _drop_output() -> None:
    """Let Python, which flushes at its end, find somebody who takes what is left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
