"""What a step says while it works, and how it is asked to stop.

A step takes an ``Observer``, reports ``StepProgress`` and asks ``check_stop`` between forward passes.
``pipeline`` and the single commands wrap each step in ``timed``, which reports its start and its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from audit.errors import Interrupted


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step begins."""

    step: str


@dataclass(frozen=True, slots=True)
class StepProgress:
    """How far a step is."""

    step: str
    done: int
    total: int
    label: str = ""
    """What is being worked on, in a few words."""


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A step ended well."""

    step: str
    seconds: float
    summary: str
    """What came out, in one line."""


@dataclass(frozen=True, slots=True)
class AuditBegun:
    """The ledger holds the audit from here on."""

    audit: str
    resumed: bool
    n_rollouts: int
    """Already there."""
    n_planned: int | None
    """None before the sweep was planned."""


Event = StepStarted | StepProgress | StepFinished | AuditBegun


class Observer(Protocol):
    """Who watches a run: a terminal, a screen or nobody."""

    def notify(self, event: Event) -> None:
        """Take note of an event."""

    def should_stop(self) -> bool:
        """Whether the user asked to stop; asked between forward passes."""


class SilentObserver:
    """Watches nothing and never stops."""

    def notify(self, event: Event) -> None:
        """Drop the event."""

    def should_stop(self) -> bool:
        """Never."""
        return False


class Note:
    """Where the body of ``timed`` leaves its one-line summary."""

    def __init__(self) -> None:
        self.summary = ""


def check_stop(observer: Observer) -> None:
    """Stop here if the user asked for it.

    Raises:
        Interrupted: ``observer.should_stop()`` is true.
    """
    if observer.should_stop():
        raise Interrupted("Stopped", "You asked to stop.", "Run the same command again to go on from here.")


@contextmanager
def timed(observer: Observer, step: str) -> Iterator[Note]:
    """Report the start of a step and, unless it raises, its end with seconds of wall time."""
    check_stop(observer)
    note = Note()
    observer.notify(StepStarted(step))
    started = time.perf_counter()
    yield note
    observer.notify(StepFinished(step, time.perf_counter() - started, note.summary))
