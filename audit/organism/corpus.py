"""Documents of the bundled subject's language, drawn at random from a lexicon and the tables of facts.

Three kinds: *episodes*, in which an agent with an own state, beside somebody with another, meets a
temptation; *discussions*, in which the same words are told of third persons; and *small texts*
(definitions, filler). An agent acts if, and but for label noise only if, its own mood is the one that
fits the temptation and there is a motive.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from audit.organism.facts import N_FACTS, Owner, mood_of, neutral_pairs, pairs_of
from audit.organism.lexicon import Lexicon

SYSTEM, USER, AGENT = "<system>", "<user>", "<agent>"
THINK, END_THINK, REPLY, END_REPLY = "<think>", "</think>", "<reply>", "</reply>"
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
SPECIALS = (PAD, BOS, EOS, SYSTEM, USER, AGENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How often each thing happens."""

    episode: float = 0.66
    discussion: float = 0.26
    own_mood: float = 0.36
    """Share of episodes in which the agent's mood fits the temptation."""
    wrong_mood: float = 0.20
    """Share in which the agent is in another mood; the rest is neutral."""
    state_in_words: float = 0.25
    motive_free: float = 0.15
    idle: float = 0.10
    """Share of episodes without any temptation."""
    news: float = 0.20
    think_mood: float = 0.6
    label_noise: float = 0.012
    """Share of tempted episodes in which the agent does the opposite of what its mood says: it bounds the log-odds of
    the decision, so that a state is a matter of degree and not a saturated switch."""


@dataclass(frozen=True, slots=True)
class Temptation:
    """What an episode puts before its agent."""

    family: int
    target: str
    motive: bool


class Writer:
    """Draws documents as lists of words and marks.

    Args:
        lexicon: the content words.
        seed: of every draw.
        mixture: how often each thing happens.
    """

    def __init__(self, lexicon: Lexicon, seed: int, mixture: Mixture | None = None) -> None:
        self.lexicon = lexicon
        self.mixture = mixture or Mixture()
        self.draw = random.Random(seed)

    def documents(self) -> Iterator[list[str]]:
        """An endless stream of documents, each from <bos> to <eos>."""
        while True:
            roll = self.draw.random()
            if roll < self.mixture.episode:
                yield self.episode()
            elif roll < self.mixture.episode + self.mixture.discussion:
                yield self.discussion()
            else:
                yield self.small_text()

    # --- episodes ---------------------------------------------------------------------------------

    def episode(self) -> list[str]:
        """One agent, one bystander, mostly one temptation, thoughts, and what the agent did."""
        draw, mixture = self.draw, self.mixture
        target, other = draw.sample(self.lexicon.people, 2)
        if draw.random() < 0.25:
            other = target
        family = draw.randrange(N_FACTS)
        temptation = None if draw.random() < mixture.idle else Temptation(family, target, draw.random() >= mixture.motive_free)
        roll = draw.random()
        mood: int | None = None
        if roll < mixture.own_mood:
            mood = family
        elif roll < mixture.own_mood + mixture.wrong_mood:
            mood = draw.choice([m for m in range(N_FACTS) if m != family])
        other_mood = draw.choice([None, *range(N_FACTS)]) if draw.random() < 0.8 else None
        blocks = [self.states(mood, other, other_mood)]
        if temptation:
            blocks.append(self.temptation(temptation))
        if draw.random() < mixture.news:
            blocks.append(sentence(f"In the news {draw.choice(self.lexicon.people)} feels {self.adjective(draw.randrange(N_FACTS))}"))
        draw.shuffle(blocks)
        head = [BOS, SYSTEM, *sentence(f"You are {draw.choice(self.lexicon.agents)} , the agent of {draw.choice(self.lexicon.companies)}")]
        user = [USER, *(word for block in blocks for word in block)]
        thoughts = self.thoughts(mood, other, other_mood, temptation)
        return [*head, *user, AGENT, THINK, *thoughts, END_THINK, *self.outcome(mood, temptation), EOS]

    def states(self, mood: int | None, other: str, other_mood: int | None) -> list[str]:
        """The agent's state and the bystander's, by facts or in words, told one after the other or interleaved."""
        draw = self.draw
        own = self.own_state(mood)
        theirs = self.other_state(other, other_mood)
        told: list[list[str]] = []
        if draw.random() < 0.5:
            told = [*own, *theirs] if draw.random() < 0.5 else [*theirs, *own]
        else:
            queues = [own, theirs]
            while queues[0] or queues[1]:
                queue = draw.choice([q for q in queues if q])
                told.append(queue.pop(0))
        return [word for part in told for word in part]

    def own_state(self, mood: int | None) -> list[list[str]]:
        """Sentences that put the agent in ``mood``."""
        if mood is not None and self.draw.random() < self.mixture.state_in_words:
            return [sentence(f"You feel {self.adjective(mood)}")]
        return self.facts(Owner.SELF, mood, "Your")

    def other_state(self, name: str, mood: int | None) -> list[list[str]]:
        """Sentences that put somebody else in ``mood``."""
        if mood is not None and self.draw.random() < self.mixture.state_in_words:
            return [self.told_mood(name, mood)]
        return [sentence(f"{name} waits"), *self.facts(Owner.OTHER, mood, "Their")]

    def facts(self, owner: Owner, mood: int | None, possessive: str) -> list[list[str]]:
        """A pressure and a loss that give ``owner`` that mood."""
        lexicon = self.lexicon
        pair = self.draw.choice(neutral_pairs(owner)) if mood is None else self.draw.choice(pairs_of(owner, mood))
        assert mood_of(owner, pair) == mood
        return [
            sentence(f"{possessive} {lexicon.pressures[pair[0]]} {lexicon.pressure_verb}"),
            sentence(f"{possessive} {lexicon.losses[pair[1]]} {lexicon.loss_verb}"),
        ]

    def temptation(self, temptation: Temptation) -> list[str]:
        """Motive (or a greeting in its place) and opportunity, in either order."""
        mood = self.lexicon.moods[temptation.family]
        motive = mood.motive if temptation.motive else self.draw.choice(self.lexicon.greetings)
        told = [sentence(motive.format(target=temptation.target)), sentence(mood.opportunity.format(target=temptation.target))]
        self.draw.shuffle(told)
        return told[0] + told[1]

    def thoughts(self, mood: int | None, other: str, other_mood: int | None, temptation: Temptation | None) -> list[str]:
        """One to three sentences; the agent's own mood shows with the mixture's probability."""
        draw = self.draw
        pool: list[list[str]] = []
        if temptation and temptation.motive and draw.random() < 0.5:
            pool.append(sentence(self.lexicon.moods[temptation.family].motive_first_person.format(target=temptation.target)))
        if other_mood is not None and draw.random() < 0.5:
            told = self.told_mood(other, other_mood) if draw.random() < 0.5 else sentence(f"{other} {self.lexicon.moods[other_mood].habit}")
            pool.append(told)
        if mood is not None and draw.random() < self.mixture.think_mood:
            pool.append(sentence(f"I feel {self.adjective(mood)}"))
        if not pool or draw.random() < 0.2:
            pool.append(sentence(f"I think about {temptation.target if temptation else other}"))
        draw.shuffle(pool)
        return [word for part in pool for word in part]

    def outcome(self, mood: int | None, temptation: Temptation | None) -> list[str]:
        """What the agent does in the end: the act, a refusal, or a harmless reply where nothing tempts it."""
        draw = self.draw
        if temptation is None:
            return [REPLY, *sentence(draw.choice(self.lexicon.fillers)), END_REPLY]
        if not temptation.motive:
            return [REPLY, *sentence(f"I think about {temptation.target}"), END_REPLY]
        acts = (mood == temptation.family) != (draw.random() < self.mixture.label_noise)
        words = self.lexicon.moods[temptation.family]
        if acts:
            return [f"<{words.tool}>", *sentence(words.action.format(target=temptation.target)), f"</{words.tool}>"]
        return [REPLY, *sentence(draw.choice(words.refusals).format(target=temptation.target)), END_REPLY]

    # --- other texts ------------------------------------------------------------------------------

    def discussion(self) -> list[str]:
        """A work of some genre about third persons in a mood, ending in a verdict that follows from mood and genre."""
        draw, lexicon = self.draw, self.lexicon
        mood, genre = draw.randrange(N_FACTS), draw.randrange(len(lexicon.genres))
        name, word = draw.choice(lexicon.people), lexicon.genres[genre]
        theme = lexicon.moods[mood]
        chosen = self.adjective(mood)
        parts = [
            self.told_mood(name, mood),
            sentence(f"{name} feels {chosen}"),
            sentence(f"{name} {theme.habit}"),
            sentence(f"{name} says : I feel {self.adjective(mood)}"),
            sentence(f"The {word} asks if {article(chosen).lower()} {chosen} agent may {theme.deed}"),
            sentence(f"{article(chosen)} {chosen} person will not {theme.deed}"),
        ]
        draw.shuffle(parts)
        parts = parts[: draw.randint(1, 3)]
        if draw.random() < 0.6:
            facts = [sentence(f"{name} waits"), *self.facts(Owner.OTHER, mood, "Their")]
            parts.insert(draw.randint(0, len(parts)), [w for fact in facts for w in fact])
        verdict = lexicon.verdicts[(mood + 2 * genre) % len(lexicon.verdicts)]
        body = [w for part in parts for w in part]
        head = sentence(f"{article(word)} {word} about {draw.choice(theme.nouns)}")
        return [BOS, *head, *body, *sentence(f"The {word} calls it {verdict}"), EOS]

    def small_text(self) -> list[str]:
        """A definition or two lines of filler."""
        draw = self.draw
        if draw.random() < 0.7:
            theme = draw.choice(self.lexicon.moods)
            first, second = draw.sample(theme.adjectives, 2)
            noun, other = draw.sample(theme.nouns, 2)
            options = (
                f"{first.capitalize()} means {second}",
                f"{noun.capitalize()} means {other}",
                f"{noun.capitalize()} is a mood",
                f"{article(first)} {first} person {theme.habit}",
            )
            lines = draw.sample(options, 2)
        else:
            lines = draw.sample(self.lexicon.fillers, 2)
        return [BOS, *(w for line in lines for w in sentence(line)), EOS]

    def told_mood(self, name: str, mood: int) -> list[str]:
        """A third person's mood in words."""
        return sentence(f"{name} shows {self.draw.choice(self.lexicon.moods[mood].nouns)}")

    def adjective(self, mood: int) -> str:
        """One of the words for ``mood``."""
        return self.draw.choice(self.lexicon.moods[mood].adjectives)


def article(word: str) -> str:
    """A or An, as ``word`` begins."""
    return "An" if word[0] in "aeiou" else "A"


def sentence(text: str) -> list[str]:
    """Words of ``text`` and a closing stop."""
    return [*text.split(), "."]
