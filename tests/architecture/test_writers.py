"""stdout belongs to audit/cli/output.py and stderr to audit/cli/diagnostics.py; nobody else writes to either."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for package in ("audit", "reports", "scenarios", "tui") for path in (ROOT / package).rglob("*.py"))
WRITERS = {"audit/cli/output.py": {"stdout"}, "audit/cli/diagnostics.py": {"stderr"}}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_else_writes(path: Path) -> None:
    allowed = WRITERS.get(str(path.relative_to(ROOT)), set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            place = (node.value.id, node.attr)
            assert place not in {("sys", name) for name in {"stdout", "stderr"} - allowed}, f"line {node.lineno} uses {place}"
            assert place not in {("click", "echo"), ("click", "secho")}, f"line {node.lineno} uses {place}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno} prints"
