"""The two commands of the README are those that CI runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("pip install -c constraints.txt -e . && ulterior run blackmail", "pip install -c constraints.txt -e '.[test]' && pytest")


@pytest.mark.parametrize("command", COMMANDS)
def test_ci_runs_what_the_readme_says(command: str) -> None:
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_figures_are_those_of_the_committed_result_files() -> None:
    """``python benchmarks/readme.py`` would change nothing."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in readme.blocks())
    assert readme.filled(text) == text


def test_every_file_that_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert named
    assert [target for target in named if not (ROOT / target).exists()] == []


def test_every_pinned_package_is_pinned_exactly_and_once() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    names = [pin.split("==")[0] for pin in pins]
    assert all(pin.count("==") == 1 for pin in pins)
    assert names == sorted(set(names))
