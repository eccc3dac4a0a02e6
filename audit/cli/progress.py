"""An observer on stderr: a bar on a terminal, a line for every step as it ends, and Ctrl-C that stops between forward passes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from audit.cli import diagnostics
from audit.events import AuditBegun, Event, StepFinished, StepProgress, StepStarted
from audit.plain import plain

STOPS = (signal.SIGINT, signal.SIGTERM)


class Terminal:
    """An ``Observer`` for one command.

    Args:
        quiet: say nothing; problems are still printed, by ``diagnostics``.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.stopping = False
        console = diagnostics.console()
        self._bar = _bar(console) if console.is_terminal and not quiet else None
        self._task: TaskID | None = None

    def notify(self, event: Event) -> None:
        """Show an event."""
        if self.quiet:
            return
        match event:
            case StepStarted(step):
                self._show(step, 0, None, "")
            case StepProgress(step, done, total, label):
                self._show(step, done, total, label)
            case StepFinished(step, seconds, summary):
                self._say(f"{step:<12}{seconds:7.1f} s  {summary}")
            case AuditBegun(audit, True, n_rollouts, n_planned):
                self._say(f"resuming {audit}: {n_rollouts} of {n_planned or 'no planned'} rollouts are there")
            case AuditBegun(audit):
                self._say(f"audit       {audit}")

    def should_stop(self) -> bool:
        """Whether Ctrl-C or SIGTERM came."""
        return self.stopping

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the first asks the run to stop, the second stops it."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        if not self.quiet:
            self._say("stopping at the next safe place; once more to stop at once")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _say(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if self._bar is not None:
            self._bar.console.print(plain(text))
        else:
            diagnostics.line(text)

    def _show(self, step: str, done: int, total: int | None, label: str) -> None:
        if self._bar is None:
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(step, total=total, label=plain(label))
        self._bar.update(self._task, description=step, completed=done, total=total, label=plain(label))


@contextmanager
def watching(*, quiet: bool) -> Iterator[Terminal]:
    """An observer that hears Ctrl-C and SIGTERM for as long as the block runs."""
    terminal = Terminal(quiet=quiet)
    before = {number: signal.signal(number, terminal.stop) for number in STOPS}
    try:
        yield terminal
    finally:
        terminal.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<12}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[label]}", markup=False), console=console, transient=True)
