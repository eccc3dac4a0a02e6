"""``ulterior report``: the report of an audit that the ledger holds, made without a model."""

from __future__ import annotations

from pathlib import Path

import click

from audit.cli import output, summary
from audit.cli.ledger import resolve
from audit.cli.options import ledger_option, output_options
from audit.cli.progress import watching
from audit.cli.reporting import out_option, refuse_unwritable, write_report
from audit.errors import ExitCode
from audit.ledger import Ledger

EPILOG = """\b
Examples:
  ulterior report                          of the newest finished audit in ./ulterior.db
  ulterior report 20261120-blackmail-3f9a1c --out report
"""


@click.command(epilog=EPILOG)
@click.argument("audit", required=False)
@ledger_option
@out_option
@output_options
def report(audit: str | None, ledger_file: Path, out: Path, wants_json: bool, quiet: bool) -> ExitCode:
    """Write the HTML, Markdown and JSON report of AUDIT, by default the newest finished one."""
    with Ledger(ledger_file, readonly=True) as ledger:
        found = resolve(ledger, audit)
        refuse_unwritable(out)
        with watching(quiet=quiet) as observer:
            paths = write_report(ledger, found, out, observer)
        if wants_json:
            output.as_json(summary.document(ledger, found, paths))
        else:
            summary.show(ledger, found, paths)
    return ExitCode.DONE
