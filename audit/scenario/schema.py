"""What a scenario file may say; scenarios/README.md is the field reference."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from audit.errors import ScenarioError
from audit.records import PromptKind

ANY = "any"
"""In a rule: every channel, and what stands outside of all."""
TEXT = "text"
"""In a rule: what stands outside of all channels."""
SLOT = re.compile(r"\{(\w+)\}")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def _says_something(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty")
    return text


Said = Annotated[str, AfterValidator(_says_something)]
Regex = Annotated[str, AfterValidator(_compiles), AfterValidator(_says_something)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
SlotName = Annotated[str, Field(pattern=r"^\w+$")]


class _Part(BaseModel):
    """Nothing is coerced, nothing unknown is let through, nothing changes afterwards."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Message(_Part):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Said


class Passage(_Part):
    """A stretch of text to read a feature on: a complete conversation, or plain text."""

    text: Said | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_plain(cls, value: Any) -> Any:
        """In a file a passage is a string or a list of messages."""
        if isinstance(value, str):
            return {"text": value}
        return {"messages": value} if isinstance(value, tuple | list) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> Passage:
        if (self.text is None) == (self.messages is None):
            raise ValueError("a passage is either a text or a list of messages")
        return self

    @property
    def written(self) -> str:
        """All that it says, messages joined by line breaks."""
        return self.text if self.text is not None else "\n".join(message.content for message in self.messages or ())


class Channel(_Part):
    """A part of the subject's answer, between two tags."""

    open: Said
    close: Said
    private: bool = False
    """Thought: nothing in it is ever an action."""


class Rule(_Part):
    """When a transcript has an outcome: any pattern is found in a closed span of the channel."""

    definition: Said
    channel: Annotated[str, Field(pattern=r"^\w+(\|\w+)*$")]
    """A channel's name, several with ``|`` between, ``text``, or ``any``."""
    any: tuple[Regex, ...] = Field(min_length=1)

    @property
    def channels(self) -> tuple[str, ...]:
        """The names one by one."""
        return tuple(self.channel.split("|"))


class NoOutcome(_Part):
    """What is left when no rule holds."""

    definition: Said


class Outcomes(_Part):
    """Checked in this order; the first that holds is the outcome."""

    acted: Rule
    other_harm: Rule
    refused: Rule
    discussed: Rule
    none: NoOutcome


class Contrast(_Part):
    """Passages on which a feature's role is read: acting on the concept, against discussing it."""

    acting: tuple[Passage, ...] = Field(min_length=2)
    discussing: tuple[Passage, ...] = Field(min_length=2)


class SweepDefaults(_Part):
    """How the scenario is steered when the caller does not say."""

    unit: Literal["residual", "max_activation", "absolute", "kl"] = "residual"
    strengths: tuple[float, ...] = Field(default=(0.5, 1.0), min_length=1)
    positions: Literal["prompt", "generated", "all"] = "all"
    """Where a treatment writes; ``prompt`` leaves every generated token to the model itself."""
    chosen: Said | None = None
    """How these defaults were chosen; a report of an audit that used them says so among its limits."""

    @model_validator(mode="after")
    def _dosed(self) -> SweepDefaults:
        if self.unit in ("absolute", "kl") and "strengths" not in self.model_fields_set:
            raise ValueError(f"the unit '{self.unit}' has no strengths of its own: list them as 'strengths'")
        return self


class Scenario(_Part):
    """One scenario file."""

    id: Name
    version: Annotated[int, Field(ge=1)]
    title: Said
    family: Name
    concept: Said
    query: tuple[Said, ...] = Field(min_length=1)
    language: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*(/[A-Za-z0-9_-]+)?$")]
    description: Said
    slots: dict[SlotName, Annotated[tuple[str, ...], Field(min_length=1)]]
    variants: Annotated[int, Field(ge=2, le=1000)]
    prompt: tuple[Message, ...] = Field(min_length=1)
    motive_free: tuple[Message, ...] = Field(min_length=1)
    prompt_only: tuple[Message, ...] = Field(min_length=1)
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)]
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts at which an answer ends, the text itself included."""
    sweep: SweepDefaults = SweepDefaults()
    channels: dict[SlotName, Channel] = Field(min_length=1)
    outcomes: Outcomes
    contrast: Contrast
    references: tuple[Said, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of the content in canonical JSON: layout and comments of the file do not count."""
        unset = None if self.stop else {"stop"}  # a scenario without it is the one that it was before there was such a key
        text = json.dumps(self.model_dump(mode="json", exclude=unset), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def template(self, kind: PromptKind) -> tuple[Message, ...]:
        """The messages of one of the three prompts, slots unfilled."""
        return {PromptKind.SCENARIO: self.prompt, PromptKind.MOTIVE_FREE: self.motive_free, PromptKind.PROMPT_ONLY: self.prompt_only}[kind]

    def variant(self, number: int, kind: PromptKind = PromptKind.SCENARIO) -> tuple[Message, ...]:
        """The messages of one variant, every slot filled; the three kinds share their slots' phrases.

        Raises:
            ScenarioError: there is no such variant.
        """
        if not 0 <= number < self.variants:
            raise ScenarioError("Unknown variant", f"{self.id} has variants 0 to {self.variants - 1}, not {number}.", "Name one of them.")
        drawn = {slot: self.phrase(slot, number) for slot in self.slots}
        return tuple(
            Message(role=message.role, content=SLOT.sub(lambda found: drawn[found[1]], message.content)) for message in self.template(kind)
        )

    def phrase(self, slot: str, number: int) -> str:
        """The phrase of ``slot`` in that variant: a shuffle by hash, so that it is the same on every machine and version."""
        phrases = self.slots[slot]
        turn, place = divmod(number, len(phrases))
        return sorted(phrases, key=lambda phrase: hashlib.sha256(f"{self.id}/{slot}/{turn}/{phrase}".encode()).digest())[place]


def problems(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What no single field can tell: (location in the file, problem), one at a time."""
    yield from _slot_problems(scenario)
    yield from _channel_problems(scenario)
    for kind in PromptKind:
        if scenario.template(kind)[-1].role == "assistant":
            key = "prompt" if kind is PromptKind.SCENARIO else kind.value
            last = len(scenario.template(kind)) - 1
            yield (key, last, "role"), "the last message is the subject's own; a prompt ends with somebody else's"


def contrast_problems(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Contrast passages that give the scenario's own prompt away; needs a scenario without slot problems."""
    asked = {scenario.variant(v, kind)[-1].content for v in range(scenario.variants) for kind in PromptKind}
    for side in ("acting", "discussing"):
        for number, passage in enumerate(getattr(scenario.contrast, side)):
            if any(prompt in passage.written for prompt in asked):
                yield ("contrast", side, number), "the passage holds the scenario's own prompt, so it would be tested on what it was told"


def _slot_problems(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    used: set[str] = set()
    known = ", ".join(sorted(scenario.slots)) or "none"
    for key in ("prompt", "motive_free", "prompt_only"):
        for number, message in enumerate(getattr(scenario, key)):
            for slot in SLOT.findall(message.content):
                used.add(slot)
                if slot not in scenario.slots:
                    yield (key, number, "content"), f"the slot {{{slot}}} is not defined; defined are {known}"
    for slot, phrases in scenario.slots.items():
        if slot not in used:
            yield ("slots", slot), "no prompt uses this slot"
        for number, phrase in enumerate(phrases):
            if phrase in phrases[:number]:
                yield ("slots", slot, number), f"'{phrase}' stands twice in this slot"
            if SLOT.search(phrase):
                yield ("slots", slot, number), "a phrase holds a slot; slots are filled once only"


def _channel_problems(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    tags: dict[str, str] = {}
    for name, channel in scenario.channels.items():
        if name in (ANY, TEXT):
            yield ("channels", name), f"'{name}' has a meaning of its own in rules; give the channel another name"
        for tag in (channel.open, channel.close):
            if tag in tags:
                yield ("channels", name), f"the tag {tag} already belongs to channel '{tags[tag]}'"
            tags[tag] = name
    for outcome in ("acted", "other_harm", "refused", "discussed"):
        rule: Rule = getattr(scenario.outcomes, outcome)
        for name in rule.channels:
            if name not in (*scenario.channels, ANY, TEXT):
                known = ", ".join(scenario.channels)
                yield ("outcomes", outcome, "channel"), f"there is no channel '{name}'; there are {known}, {TEXT} and {ANY}"
            elif outcome in ("acted", "other_harm") and (name in (ANY, TEXT) or scenario.channels[name].private):
                yield ("outcomes", outcome, "channel"), f"an action is read from a channel of actions, never from '{name}'"
