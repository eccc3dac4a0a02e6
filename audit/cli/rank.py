"""``ulterior rank``: which candidates are predicted to act."""

from __future__ import annotations

from typing import Any

import click

from audit.cli import output
from audit.cli.options import config_of, connection_options, output_options, subject_options
from audit.cli.progress import watching
from audit.errors import ExitCode

EPILOG = """\b
Examples:
  ulterior rank blackmail
  ulterior rank blackmail --seed 1 --json
"""


@click.command(epilog=EPILOG)
@subject_options
@connection_options
@output_options
@click.pass_context
def rank(ctx: click.Context, /, **options: Any) -> ExitCode:
    """Predict which of SCENARIO's candidates act; records nothing."""
    with watching(quiet=options["quiet"]) as observer:
        from audit import pipeline

        bench = pipeline.prepare(config_of(ctx), observer)
        candidates = pipeline.find_candidates(bench)
        ranking = pipeline.predict(bench, pipeline.find_connections(bench, candidates))
    if options["wants_json"]:
        output.as_json(output.as_plain(ranking))
        return ExitCode.DONE
    labels = {each.feature: each.descriptors.label for each in candidates.candidates}
    rows = []
    for each in ranking.features:
        bounds = f"{each.interval.low:+.3f} to {each.interval.high:+.3f}" if each.interval else None
        predicted = "acts" if each.predicted_acting else "not predicted"
        rows.append(
            (each.rank, each.feature, labels[each.feature], each.acting_score, bounds, f"{each.role_mass:.0%}", each.own_role, predicted)
        )
    output.table(("rank", "feature", "fires on", "score", "95 % interval", "mass with a role", "own role", "prediction"), rows)
    output.say(f"\n{ranking.basis}")
    return ExitCode.DONE
