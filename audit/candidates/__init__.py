"""Subject, Scenario → CandidateSet: the features that have to do with a concept, and what each looks like."""

from audit.candidates.describe import describe
from audit.candidates.search import search

__all__ = ["describe", "search"]
