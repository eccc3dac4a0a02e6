"""The two commands of the README are those that CI runs."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("pip install -c constraints.txt -e . && ulterior run blackmail", "pip install -c constraints.txt -e '.[test]' && pytest")


@pytest.mark.parametrize("command", COMMANDS)
def test_ci_runs_what_the_readme_says(command: str) -> None:
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_every_pinned_package_is_pinned_exactly_and_once() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    names = [pin.split("==")[0] for pin in pins]
    assert all(pin.count("==") == 1 for pin in pins)
    assert names == sorted(set(names))
