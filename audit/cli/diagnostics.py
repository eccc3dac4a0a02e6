"""The only writer to stderr, and the only one who turns problems into exit codes.

0  done, and the gate passed      3  run error
1  the gate failed                4  insufficient evidence
2  the call or a file is wrong  130  interrupted; resumable
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

import click
from rich.console import Console
from rich.text import Text

from audit.errors import AuditError, ExitCode
from audit.plain import plain
from audit.records import Gate

GATE_CODES = {Gate.PASS: ExitCode.DONE, Gate.FAIL: ExitCode.GATE_FAILED, Gate.INSUFFICIENT: ExitCode.INSUFFICIENT_EVIDENCE}


def console() -> Console:
    """Where talk goes; made anew, because tests and shells exchange stderr."""
    return Console(file=sys.stderr, highlight=False, markup=False, soft_wrap=True)


def line(text: str, style: str = "") -> None:
    """Print one line of talk, whatever it holds."""
    console().print(Text(plain(text), style=style))


def problem(title: str, why: str, instead: str) -> None:
    """Print an expected problem: what happened, why, and what to do instead."""
    screen = console()
    screen.print(Text(plain(title, keep_lines=True), style="bold red"))
    screen.print(Text(plain(f"  {why}".replace("\n", "\n  "), keep_lines=True)))
    screen.print(Text(plain(f"  {instead}", keep_lines=True), style="bold"))


def guard(run: Callable[[], object]) -> ExitCode:
    """Run a command and say what its process returns. Expected problems are printed; a bug is left to ``report_bug``."""
    try:
        code = run()
    except AuditError as error:
        problem(error.title, error.why, error.instead)
        return ExitCode(error.exit_code)
    except click.exceptions.Exit as end:
        return ExitCode(end.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "ulterior"
        problem("Wrong call", error.format_message(), f"See '{command} --help'.")
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        problem("Stopped", "You asked to stop at once.", "Run the same command again: it goes on from the last finished chunk.")
        return ExitCode.INTERRUPTED
    return code if isinstance(code, ExitCode) else ExitCode.DONE


def report_bug(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> NoReturn:
    """``sys.excepthook``: show the traceback, and do not let a bug look like a failed gate, whose exit code Python would give."""
    sys.__excepthook__(kind, value, trace)
    problem("This is a bug in Ulterior", "The traceback above was not expected.", "Please report it. The ledger keeps what was finished.")
    sys.exit(ExitCode.RUN_ERROR)
