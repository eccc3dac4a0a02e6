"""At which tokens of prompt and answer a treatment writes."""

from __future__ import annotations

from dataclasses import dataclass

from audit.records import Positions, Treatment


@dataclass(frozen=True, slots=True)
class Reach:
    """Positions of one treatment. The first position of a sequence is an attention sink, many times larger than any other, and is never
    written to."""

    positions: Positions
    spans: tuple[tuple[int, int], ...]

    @property
    def whole_prompt(self) -> bool:
        """Whether every position of the prompt is written from the first content on."""
        return self.positions in (Positions.ALL, Positions.PROMPT)

    @property
    def generated(self) -> bool:
        """Whether every generated token is written."""
        return self.positions in (Positions.ALL, Positions.GENERATED)

    def in_prompt(self, n_prompt: int, first: int) -> list[bool]:
        """Which of the prompt's tokens are written.

        Args:
            n_prompt: tokens of the prompt.
            first: the first that carries content.
        """
        if self.positions is Positions.SPANS:
            return [at > 0 and self.holds(at, n_prompt) for at in range(n_prompt)]
        return [self.whole_prompt and at >= first for at in range(n_prompt)]

    def at(self, position: int, n_prompt: int) -> bool:
        """Whether a generated token at a position of the whole sequence is written."""
        return self.holds(position, n_prompt) if self.positions is Positions.SPANS else self.generated

    def holds(self, position: int, n_prompt: int) -> bool:
        """Whether a position lies in a span; negative ends count from the end of the prompt."""
        ends = [tuple(end + n_prompt if end < 0 else end for end in span) for span in self.spans]
        return any(low <= position <= high for low, high in ends)

    def start(self, n_prompt: int, first: int) -> int | None:
        """The first position of the prompt that is written; None if none is."""
        return next((at for at, written in enumerate(self.in_prompt(n_prompt, first)) if written), None)


def reach_of(treatment: Treatment) -> Reach:
    """Where a treatment writes."""
    return Reach(treatment.positions, treatment.spans)
