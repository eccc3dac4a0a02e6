from __future__ import annotations

import os
import signal
import sys

import pytest

from audit.cli.progress import STOPS, Terminal, watching
from audit.events import AuditBegun, StepFinished, StepProgress, StepStarted


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_asks_to_stop_and_a_second_one_stops(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with watching(quiet=False) as terminal:
        assert not terminal.should_stop()
        os.kill(os.getpid(), number)
        assert terminal.should_stop()
        assert "stopping" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_off_a_terminal_there_is_one_line_for_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    for event in (StepStarted("steering"), StepProgress("steering", 1, 2, "x"), StepFinished("steering", 1.25, "2 rollouts \x1b[2J")):
        terminal.notify(event)
    terminal.notify(AuditBegun("20261120-blackmail-3f9a1c", True, 3, 10))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["steering        1.2 s  2 rollouts ␛[2J", "resuming 20261120-blackmail-3f9a1c: 3 of 10 rollouts are there"]


def test_on_a_terminal_there_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    terminal = Terminal()
    terminal.notify(StepStarted("steering"))
    terminal.notify(StepProgress("steering", 1, 2, "variant [/bold] 1"))
    terminal.notify(StepFinished("steering", 1.0, "2 rollouts"))
    terminal.close()
    err = capsys.readouterr().err
    assert "steering" in err
    assert "2 rollouts" in err


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    for event in (
        StepStarted("steering"),
        StepProgress("steering", 1, 2),
        StepFinished("steering", 1.0, ""),
        AuditBegun("a", False, 0, None),
    ):
        terminal.notify(event)
    assert capsys.readouterr().err == ""
