"""Names of features, and intervals: what every other record is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from audit.errors import UsageError

_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True, order=True)
class FeatureId:
    """One feature of one dictionary; ``str()`` and ``parse`` round-trip: ``clt/2/81``."""

    dictionary: str
    """Kind of dictionary: ``clt``, ``plt``, ``sae`` or ``vector``."""
    layer: int
    """Layer that the feature reads, 0-based."""
    index: int
    """Row in that layer's encoder."""

    def __str__(self) -> str:
        return f"{self.dictionary}/{self.layer}/{self.index}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``clt/2/81``: two numbers in ASCII digits, nine at most.

        Raises:
            UsageError: the text is not of that form.
        """
        parts = text.split("/")
        if len(parts) != 3 or not parts[0].isidentifier() or not all(_NUMBER.fullmatch(part) for part in parts[1:]):
            raise UsageError("Not a feature", f"'{text}' does not name a feature.", "Write kind/layer/index, for example clt/2/81.")
        return cls(parts[0], int(parts[1]), int(parts[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 95 % interval unless a record says otherwise."""

    low: float
    high: float
