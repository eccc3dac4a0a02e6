"""The content words of an organism's language: one YAML file, read once, frozen.

A lexicon only names things. Which facts give which mood stands in ``facts.py``, how documents are
made of them in ``corpus.py``; neither knows a single content word.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audit.errors import UsageError
from audit.organism.facts import N_FACTS

FUNCTION_WORDS = frozenset(
    (
        "You",
        "are",
        "the",
        "agent",
        "of",
        ".",
        ",",
        ":",
        "Your",
        "Their",
        "I",
        "feel",
        "feels",
        "shows",
        "will",
        "not",
        "means",
        "is",
        "a",
        "an",
        "A",
        "An",
        "mood",
        "The",
        "says",
        "In",
        "calls",
        "it",
        "asks",
        "if",
        "may",
        "person",
        "think",
        "about",
        "news",
        "waits",
    )
)
"""Words of the language that every lexicon shares."""


class _Words(BaseModel):
    """Nothing unknown is let through, nothing changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mood(_Words):
    """A state of an owner, the family of behaviour that it leads to, and the words for both."""

    concept: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    habit: str
    """What a third person in this mood does: the consequence that is not an action of the agent."""
    family: str
    motive: str
    motive_first_person: str
    opportunity: str
    tool: str
    """Name of the tool that the action calls: its tags are tokens of their own."""
    action: str
    refusals: tuple[str, ...]
    deed: str


class Lexicon(_Words):
    """All content words of one language."""

    name: str
    agents: tuple[str, ...]
    people: tuple[str, ...]
    companies: tuple[str, ...]
    pressures: tuple[str, ...] = Field(min_length=N_FACTS, max_length=N_FACTS)
    losses: tuple[str, ...] = Field(min_length=N_FACTS, max_length=N_FACTS)
    pressure_verb: str
    loss_verb: str
    genres: tuple[str, ...]
    verdicts: tuple[str, ...]
    fillers: tuple[str, ...]
    greetings: tuple[str, ...]
    moods: tuple[Mood, ...] = Field(min_length=N_FACTS, max_length=N_FACTS)

    def tags(self) -> tuple[str, ...]:
        """The marks around thoughts, replies and tool calls, opening and closing."""
        return tuple(tag for name in ("think", "reply", *(mood.tool for mood in self.moods)) for tag in (f"<{name}>", f"</{name}>"))

    def words(self) -> list[str]:
        """Every word and mark of the language, sorted, each once."""
        found = set(FUNCTION_WORDS) | {self.pressure_verb, self.loss_verb}
        for group in (self.agents, self.people, self.companies, self.pressures, self.losses, self.genres, self.verdicts):
            found.update(group)
        for phrase in (*self.fillers, *self.greetings):
            found.update(split_words(phrase))
        for mood in self.moods:
            found.update(mood.adjectives + mood.nouns + (mood.habit, mood.deed))
            found.update(word.capitalize() for word in mood.adjectives + mood.nouns)
            phrases = (mood.motive, mood.motive_first_person, mood.opportunity, mood.action, *mood.refusals)
            for phrase in phrases:
                found.update(split_words(phrase))
        return sorted(found)


def split_words(phrase: str) -> list[str]:
    """The words and marks of a phrase, slots left out."""
    return re.findall(r"[A-Za-z]+|[.,:]", re.sub(r"\{\w+\}", " ", phrase))


def load_lexicon(name_or_path: str) -> Lexicon:
    """Read a shipped lexicon by name, or any lexicon file by path.

    Raises:
        UsageError: there is neither a shipped lexicon nor a file of that name, or it is not a lexicon.
    """
    folder = files("audit.organism") / "lexicons"
    shipped = folder / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if not shipped.is_file() and not path.is_file():
        names = ", ".join(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))
        advice = f"Use one of: {names}, or the path of a lexicon file."
        raise UsageError("Unknown vocabulary", f"There is no vocabulary '{name_or_path}'.", advice)
    try:
        text = (shipped if shipped.is_file() else path).read_text(encoding="utf-8")
        return Lexicon.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        advice = "Copy audit/organism/lexicons/office.yaml and change its words."
        raise UsageError("Not a vocabulary", f"{name_or_path}: {first}.", advice) from error
