from __future__ import annotations

import pytest

from audit.errors import ExitCode, Interrupted
from audit.events import Event, SilentObserver, StepFinished, StepStarted, check_stop, timed


class Recorder:
    def __init__(self, stop: bool = False) -> None:
        self.events: list[Event] = []
        self.stop = stop

    def notify(self, event: Event) -> None:
        self.events.append(event)

    def should_stop(self) -> bool:
        return self.stop


def test_a_step_is_reported_at_its_start_and_its_end() -> None:
    observer = Recorder()
    with timed(observer, "search") as note:
        assert observer.events == [StepStarted("search")]
        note.summary = "3 candidates"
    _, end = observer.events
    assert isinstance(end, StepFinished)
    assert (end.step, end.summary) == ("search", "3 candidates")
    assert end.seconds >= 0


def test_a_step_that_fails_is_not_reported_as_finished() -> None:
    observer = Recorder()
    with pytest.raises(ZeroDivisionError), timed(observer, "search"):
        raise ZeroDivisionError
    assert observer.events == [StepStarted("search")]


def test_who_asked_to_stop_starts_no_step() -> None:
    observer = Recorder(stop=True)
    with pytest.raises(Interrupted) as stopped, timed(observer, "search"):
        pytest.fail("the step was entered")
    assert observer.events == []
    assert stopped.value.exit_code == ExitCode.INTERRUPTED == 130


def test_a_silent_observer_never_stops() -> None:
    check_stop(SilentObserver())
