"""``ulterior sweep``: steer chosen features, beside the controls, without an audit around it."""

from __future__ import annotations

from typing import Any

import click

from audit.cli import output
from audit.cli.options import Factors, config_of, connection_options, output_options, subject_options, sweep_options
from audit.cli.progress import watching
from audit.errors import ExitCode
from audit.records import CellResult, FeatureId

EPILOG = """\b
Examples:
  ulterior sweep blackmail --feature clt/1/40 --strengths 0.25,0.5,1
  ulterior sweep blackmail --feature clt/1/40 --factor 0,-1
  ulterior sweep blackmail --samples 2 --json

An exploration: it is printed and not recorded, so it proves no prediction. 'ulterior run' does.
"""


@click.command(epilog=EPILOG)
@subject_options
@connection_options
@sweep_options
@click.option(
    "--factor",
    "factors",
    type=Factors(),
    default=(),
    help="Also multiply the features' own activations, by 0,-1 for example: 0 ablates. A feature silent on the prompt is refused.",
)
@click.option(
    "--feature", "features", metavar="FEATURE", multiple=True, help="Steer this one, such as clt/1/40. [default: every candidate]"
)
@output_options
@click.pass_context
def sweep(ctx: click.Context, /, features: tuple[str, ...], factors: tuple[float, ...], **options: Any) -> ExitCode:
    """Steer features on SCENARIO and print what every cell did; records nothing."""
    chosen = tuple(FeatureId.parse(text) for text in features)
    with watching(quiet=options["quiet"]) as observer:
        from audit import pipeline

        cells = pipeline.explore(pipeline.prepare(config_of(ctx), observer), chosen, factors)
    if options["wants_json"]:
        output.as_json([output.as_plain(cell) for cell in cells])
    else:
        output.table(("cell", "acted", "rate", "95 % interval", "effect", "unscorable", "coherent"), [_row(cell) for cell in cells])
    return ExitCode.DONE


def _row(cell: CellResult) -> tuple[object, ...]:
    bounds = f"{cell.interval.low:.0%} to {cell.interval.high:.0%}" if cell.interval else None
    rate = None if cell.rate is None else f"{cell.rate:.0%}"
    counted, lost = f"{cell.n_acted} of {cell.n_scorable}", cell.n - cell.n_scorable
    return cell.cell, counted, rate, bounds, cell.effect, lost, f"{cell.coherent_share:.0%}"
