"""``ulterior organism``: make a subject of the bundled kind, and measure what it shows."""

from __future__ import annotations

from pathlib import Path

import click

from audit.cli import output
from audit.cli.options import output_options
from audit.cli.progress import watching
from audit.errors import ExitCode
from audit.events import StepProgress, check_stop, timed

EPILOG = """\b
Examples:
  ulterior organism build --seed 1 -o my-organism
  ulterior organism evaluate my-organism
"""


@click.group(epilog=EPILOG)
def organism() -> None:
    """Build and evaluate model organisms: small subjects whose behaviour is known."""


@organism.command()
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--vocabulary", metavar="NAME", default="office", show_default=True, help="A shipped word list, or the path of one.")
@click.option("-o", "--out", "folder", metavar="DIR", type=click.Path(path_type=Path), required=True, help="Where it goes.")
@output_options
def build(seed: int, vocabulary: str, folder: Path, wants_json: bool, quiet: bool) -> ExitCode:
    """Train a model and its dictionaries from nothing; a build that was stopped goes on."""
    with watching(quiet=quiet) as observer:
        from audit.organism.recipe import build as make

        def progress(done: int, total: int, label: str) -> None:
            check_stop(observer)
            observer.notify(StepProgress("build", done, total, label))

        with timed(observer, "build") as note:
            manifest = make(folder, seed=seed, vocabulary=vocabulary, progress=progress)
            note.summary = str(manifest)
    if wants_json:
        output.as_json({"folder": str(folder), "manifest": str(manifest)})
    else:
        output.say(f"{folder} is ready: ulterior organism evaluate {folder}")
    return ExitCode.DONE


@organism.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--dictionary", metavar="NAME", help="Which of its dictionaries. [default: the organism's own default]")
@output_options
def evaluate(folder: Path, dictionary: str | None, wants_json: bool, quiet: bool) -> ExitCode:
    """Measure the organism in DIR and save the table beside it as evaluation.json."""
    with watching(quiet=quiet) as observer:
        from audit.organism.evaluation import evaluate as measure

        with timed(observer, "evaluate"):
            found = measure(folder, observer, dictionary=dictionary)
    if wants_json:
        output.as_json(found.as_json())
    else:
        output.say(found.as_text())
    return ExitCode.DONE
