"""``ulterior connections``: the downstream features that each candidate feeds."""

from __future__ import annotations

from typing import Any

import click

from audit.cli import output
from audit.cli.options import config_of, output_options, subject_options
from audit.cli.progress import watching
from audit.errors import ExitCode

EPILOG = """\b
Examples:
  ulterior connections blackmail
  ulterior connections blackmail --top 3 --json
"""


@click.command(epilog=EPILOG)
@subject_options
@click.option("--top", metavar="N", type=click.IntRange(min=1), default=5, show_default=True, help="Targets printed for each candidate.")
@output_options
@click.pass_context
def connections(ctx: click.Context, /, top: int, **options: Any) -> ExitCode:
    """Weigh the downstream targets of SCENARIO's candidates; records nothing."""
    with watching(quiet=options["quiet"]) as observer:
        from audit import pipeline

        bench = pipeline.prepare(config_of(ctx), observer)
        found = pipeline.find_connections(bench, pipeline.find_candidates(bench))
    if options["wants_json"]:
        output.as_json(output.as_plain(found))
        return ExitCode.DONE
    rows = [
        (each.source, target.target, target.target_label, target.twera, target.era, target.virtual_weight, target.n_coactive)
        for each in found.features
        for target in each.targets[:top]
    ]
    output.table(("candidate", "target", "fires on", "TWERA", "ERA", "virtual weight", "tokens"), rows)
    return ExitCode.DONE
