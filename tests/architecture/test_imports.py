"""The import rule: the contracts in pyproject.toml, and what a start really loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "scipy", "statsmodels", "pandas", "matplotlib", "jinja2", "textual", "rich", "click", "numpy")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No ledger lies where a process starts, whatever was run in the checkout before."""
    monkeypatch.chdir(tmp_path)


def loaded(code: str) -> set[str]:
    """Top-level packages in a fresh process after ``code``."""
    shown = f"import sys\n{code}\nprint('\\n'.join(sorted({{name.split('.')[0] for name in sys.modules}})), file=sys.__stdout__)"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def command(*arguments: str) -> str:
    return f"""
import io
from contextlib import redirect_stderr, redirect_stdout
from audit.cli.main import ulterior
from audit.cli.diagnostics import guard
with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
    guard(lambda: ulterior.main({list(arguments)!r}, standalone_mode=False))
"""


def test_the_contracts_hold() -> None:
    found = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_importing_the_package_costs_nothing() -> None:
    assert not loaded("import audit") & set(HEAVY)


@pytest.mark.parametrize("module", ["audit.errors", "audit.records", "audit.events", "audit.plain"])
def test_what_every_step_uses_is_light(module: str) -> None:
    assert not loaded(f"import {module}") & set(HEAVY)


def test_a_finished_audit_is_read_without_a_model() -> None:
    code = "import audit.records, audit.scenario, audit.statistics, audit.events, audit.ledger, reports"
    assert not loaded(code) & {"torch", "transformers", "textual"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        (),
        ("run", "--help"),
        ("scenarios",),
        ("scenarios", "show", "blackmail"),
        ("ledger", "list"),
        ("report",),
        ("run", "blackmial"),
    ],
    ids=" ".join,
)
def test_commands_that_need_no_model_load_none(arguments: tuple[str, ...]) -> None:
    assert not loaded(command(*arguments)) & {"torch", "transformers", "textual", "matplotlib"}


def test_a_subject_is_opened_without_drawing_anything() -> None:
    assert not loaded("import audit.pipeline") & {"textual", "matplotlib"}
