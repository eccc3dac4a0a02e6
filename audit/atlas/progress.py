"""How far a build is: pairs of layers, weighted by their work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from audit.atlas.manifest import Pair
from audit.events import Observer, StepProgress

STEP = "atlas"
WHOLE = 1000
"""Of which progress is told."""


@dataclass(slots=True, kw_only=True)
class Pace:
    """Tells an observer, with rate and time left."""

    observer: Observer
    work: Mapping[Pair, int]
    """Every pair → virtual weights to be computed."""
    done: list[Pair]
    """Pairs that are done, from earlier runs too."""
    _before: int = field(init=False)
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._before, self._started = self._weight(self.done), time.monotonic()

    def begin(self, pair: Pair) -> None:
        """A pair comes."""
        self._tell(f"layer {pair[0]} to {pair[1]}, {len(self.done)} of {len(self.work)} pairs of layers{self._rate()}")

    def end(self, pair: Pair) -> None:
        """A pair is done."""
        self.done.append(pair)
        if len(self.done) == len(self.work):
            self._tell(f"{len(self.work)} pairs of layers")

    def _tell(self, label: str) -> None:
        share = self._weight(self.done) / max(1, self._weight(list(self.work)))
        self.observer.notify(StepProgress(STEP, WHOLE if len(self.done) == len(self.work) else int(WHOLE * share), WHOLE, label))

    def _rate(self) -> str:
        made, seconds = self._weight(self.done) - self._before, time.monotonic() - self._started
        if made <= 0 or seconds <= 0:
            return ""
        left = (self._weight(list(self.work)) - self._weight(self.done)) * seconds / made
        return f", {made / seconds / 1e6:.3g} million weights/s, {_spoken(left)} left"

    def _weight(self, pairs: Sequence[Pair]) -> int:
        return sum(self.work[pair] for pair in pairs)


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
