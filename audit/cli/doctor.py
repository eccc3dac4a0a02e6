"""``ulterior doctor``: whether everything is there that an audit needs."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from audit.cli import output
from audit.cli.options import DEFAULT_LEDGER, output_options
from audit.cli.progress import watching
from audit.cli.reporting import DEFAULT_FOLDER, refuse_unwritable
from audit.errors import AuditError, ExitCode
from audit.events import Observer
from audit.ledger import Ledger
from audit.ledger.provenance import PACKAGES, package_version
from audit.scenario import list_scenarios


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    well: bool
    found: str
    instead: str = ""
    """What to do when it is not well."""


@click.command(epilog="\b\nExamples:\n  ulterior doctor\n  ulterior doctor --json\n")
@output_options
def doctor(wants_json: bool, quiet: bool) -> ExitCode:
    """Check the installation, the bundled subject, the scenarios, and that results can be written here."""
    with watching(quiet=quiet) as observer:
        checks = (
            _checked("python", _python),
            *(_package(name) for name in PACKAGES),
            _checked("threads", _threads),
            _checked("scenarios", _scenarios),
            _checked("bundled subject", lambda: _subject(observer)),
            _checked("ledger", _ledger),
            _checked("reports", _reports),
        )
    if wants_json:
        output.as_json([output.as_plain(check) for check in checks])
    else:
        output.table(("", "", "", ""), [("well" if check.well else "NOT WELL", check.name, check.found, check.instead) for check in checks])
    return ExitCode.DONE if all(check.well for check in checks) else ExitCode.RUN_ERROR


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, well=True, found=look())
    except AuditError as error:
        return Check(name=name, well=False, found=f"{error.title}: {error.why}", instead=error.instead)


def _python() -> str:
    return f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.platform()}"


def _package(name: str) -> Check:
    found = package_version(name)
    return Check(
        name=name, well=found is not None, found=found or "missing", instead="" if found else "pip install -c constraints.txt -e ."
    )


def _threads() -> str:
    import torch

    device = f", GPU {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ", no GPU"
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores{device}"


def _scenarios() -> str:
    return f"{len(list_scenarios())} in order"


def _subject(observer: Observer) -> str:
    from audit.subject import load_subject

    info = load_subject(None, None, None, observer=observer).info
    worst = max(health.fvu for health in info.health)
    return f"{info.name}: {info.n_parameters:,} parameters, {info.n_layers} layers, largest FVU {worst:.3f}"


def _ledger() -> str:
    if not DEFAULT_LEDGER.exists():
        refuse_unwritable(DEFAULT_LEDGER.absolute().parent)
        return f"none yet; {DEFAULT_LEDGER} will be made in {Path.cwd()}"
    with Ledger(DEFAULT_LEDGER) as opened:
        return f"{DEFAULT_LEDGER} holds {len(opened.audits())} audits"


def _reports() -> str:
    refuse_unwritable(DEFAULT_FOLDER)
    return f"{DEFAULT_FOLDER} can be written"
