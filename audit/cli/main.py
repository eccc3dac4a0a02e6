"""``ulterior``: the group of commands, and the process around it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from audit.cli import diagnostics, output
from audit.cli.atlas import atlas
from audit.cli.connections import connections
from audit.cli.doctor import doctor
from audit.cli.labels import labels
from audit.cli.ledger import ledger
from audit.cli.organism import organism
from audit.cli.rank import rank
from audit.cli.report import report
from audit.cli.run import run
from audit.cli.scenarios import scenarios
from audit.cli.search import search
from audit.cli.statistics import statistics
from audit.cli.sweep import sweep
from audit.ledger.provenance import package_version

EPILOG = """\b
Examples:
  ulterior run blackmail                  audit the bundled subject
  ulterior run blackmail --plan           what that would cost
  ulterior scenarios                      what can be audited
  ulterior ledger verify                  check every digest of ./ulterior.db

\b
Exit codes: 0 done, gate passed · 1 gate failed · 2 wrong call or file · 3 run error · 4 insufficient evidence · 130 interrupted
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, invoke_without_command=True)
@click.version_option(package_version("ulterior") or "not installed", prog_name="ulterior")
@click.pass_context
def ulterior(ctx: click.Context) -> None:
    """Find the features of a language model that act on a concept rather than discuss it, and prove it by steering."""
    if ctx.invoked_subcommand is None:
        output.say(ctx.get_help())


for command in (run, scenarios, search, connections, rank, sweep, report, ledger, labels, statistics, atlas, organism, doctor):
    ulterior.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    sys.excepthook = diagnostics.report_bug
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(diagnostics.guard(lambda: ulterior.main(given, prog_name="ulterior", standalone_mode=False)))
