"""docs/connections.md names commands, options and flags that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from audit.cli.main import ulterior
from audit.records import AuditConfig, ConnectionFlag

TEXT = (Path(__file__).parents[2] / "docs" / "connections.md").read_text(encoding="utf-8")
COMMANDS = [re.split(r" {3,}", line)[0] for line in re.findall(r"^ulterior .*$", TEXT, re.M)]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_its_options_are_there(line: str) -> None:
    command: click.Command = ulterior
    words = shlex.split(line)[1:]
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_option_in_the_text_is_one_of_some_command() -> None:
    names = ("connections", "statistics", "atlas", "run")
    groups = [ulterior.get_command(click.Context(ulterior), name) for name in names]
    known = set()
    for group in groups:
        inner = group.commands.values() if isinstance(group, click.Group) else [group]
        known |= {option for command in inner if command is not None for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)`", TEXT)) <= known


def test_every_flag_is_explained() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)` \|", TEXT, re.M)) == {flag.value for flag in ConnectionFlag}


def test_the_numbers_of_the_text_are_the_defaults() -> None:
    assert f"`--scenario-rollouts`, {AuditConfig(scenario='').scenario_rollouts} by default" in TEXT
