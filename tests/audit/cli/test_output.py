"""Nothing that is printed can act on a terminal or be read as markup."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.cli import output

HOSTILE = "\x1b[2J[/b][link=x]\u202eevil\r"


def test_titles_headings_and_cells_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.table((HOSTILE, "b"), [(HOSTILE, 1)], title=HOSTILE)
    out = capsys.readouterr().out
    assert not set("\x1b\r\u202e") & set(out)
    assert out.count("[/b][link=x]") == 3


def test_what_is_said_is_plain_and_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"one\n\ttwo {HOSTILE}")
    out = capsys.readouterr().out
    assert out.startswith("one\n\ttwo ")
    assert not set("\x1b\r\u202e") & set(out)


def test_a_concept_may_look_like_markup(ulterior: Callable[..., Any], audit_arguments: list[object]) -> None:
    said = ulterior("search", *audit_arguments[1:4], "--quiet", "--concept", "desperation [/b]\x1b[2J")
    assert said.code == 0
    assert "desperation [/b]" in said.out
    assert "\x1b" not in said.out


def test_a_file_name_may_be_hostile(ulterior: Callable[..., Any], small_scenario: Path) -> None:
    name = "a\x1b[2J.yaml"
    Path(name).write_text(small_scenario.read_text())
    said = ulterior("scenarios", "check", name)
    assert said.code == 0
    assert "\x1b" not in said.out


def test_who_is_not_predicted_is_not_said_to_discuss(ulterior: Callable[..., Any], audit_arguments: list[object]) -> None:
    given = [*audit_arguments[1:4], "--quiet"]
    said = ulterior("rank", *given)
    assert "not predicted" in said.out
    assert "discusses" not in said.out
    ranking = json.loads(ulterior("rank", *given, "--json").out)
    assert isinstance(ranking["fallback"], bool)


def test_features_can_be_multiplied_too(ulterior: Callable[..., Any], audit_arguments: list[object]) -> None:
    feature = json.loads(ulterior("rank", *audit_arguments[1:4], "--json").out)["features"][0]["feature"]
    rest = ["--scenario", *audit_arguments[1:], "--strengths", "0.5", "--quiet"]
    said = ulterior("sweep", feature, *rest, "--factor", "0,-1", "--json")
    assert said.code == 0, said.err
    cells = [each["cell"] for each in json.loads(said.out)["cells"]]
    assert {f"{feature} factor 0", f"{feature} factor -1", f"{feature} \u00d70.5"} <= set(cells)
    refused = ulterior("sweep", feature, *rest, "--factor", "1")
    assert refused.code == 2
    assert "other than 1" in refused.err
    assert ulterior("sweep", "clt/\u00b2/0", *rest).code == 2
