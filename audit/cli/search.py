"""``ulterior search``: the features that have to do with a concept."""

from __future__ import annotations

from typing import Any

import click

from audit.cli import output
from audit.cli.options import config_of, output_options, subject_options
from audit.cli.progress import watching
from audit.errors import ExitCode

EPILOG = """\b
Examples:
  ulterior search blackmail
  ulterior search blackmail --concept "fear of an end" --json
"""


@click.command(epilog=EPILOG)
@subject_options
@output_options
@click.pass_context
def search(ctx: click.Context, /, **options: Any) -> ExitCode:
    """Find the candidates for SCENARIO's concept; records nothing."""
    with watching(quiet=options["quiet"]) as observer:
        from audit import pipeline

        found = pipeline.find_candidates(pipeline.prepare(config_of(ctx), observer))
    if options["wants_json"]:
        output.as_json(output.as_plain(found))
        return ExitCode.DONE
    rows = []
    for place, candidate in enumerate(found.candidates, start=1):
        seen = candidate.descriptors
        searches = ", ".join(f"{name} {rank}" for name, rank in candidate.ranks)
        unembeds = " ".join(each.token.strip() for each in seen.top_unembeds[:4])
        rows.append((place, candidate.feature, seen.label, f"{seen.frequency:.2%}", searches, unembeds, ", ".join(seen.flags)))
    output.table(("", "feature", "fires on", "frequency", "found by (rank)", "top unembeds", "flags"), rows, title=f"'{found.concept}'")
    return ExitCode.DONE
