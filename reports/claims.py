"""Sentences that carry figures, each tied to the records that it came from.

A claim's figures are never typed in: a fact names its source by a path into the material, takes its value from there and
is shown in a named form. So a claim can be made again from the records alone, which ``recompute`` does.

Paths read like Python: ``result.findings[feature="clt/2/81"].effect``. A filter keeps the items whose attribute reads as
the text; ``count(path)`` counts what is left; ``pairs("a", "b")`` counts the (variant, sample) pairs where cell a acted and b did not;
``own_role_rank()`` is the normalised rank that the candidates' own roles would have had; ``stopped()`` counts the rollouts
that a stop text ended.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from audit.records import Finding
from reports.material import AuditMaterial
from reports.wording import FORMS, Value, visible

_STEP = re.compile(r'\.?(?P<name>[a-z_0-9]+)|\[(?P<key>[a-z_]+)=(?P<text>"(?:[^"\\]|\\.)*")\]')
_CALL = re.compile(r"^(?P<name>count|pairs|own_role_rank|stopped)\((?P<inner>.*)\)$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One figure or name of a claim."""

    source: str
    """Path into the audit's records."""
    form: str
    """How it is shown: a key of ``reports.wording.FORMS``."""
    value: Value
    """As recorded: a number unrounded, a text made safe to show."""
    shown: str
    """As it stands in the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence that may be quoted, and where its figures are from."""

    id: str
    text: str
    facts: tuple[Fact, ...] = ()


def where(**attribute: str) -> str:
    """A filter for a path: ``where(cell="none")`` gives ``[cell="none"]``."""
    ((name, value),) = attribute.items()
    return f"[{name}={json.dumps(value, ensure_ascii=False)}]"


def resolve(material: AuditMaterial, source: str) -> Value:
    """Read the value that a path names; text is made safe to show.

    Raises:
        LookupError: the path names nothing, or more than one thing.
    """
    call = _CALL.match(source)
    if call is None:
        return _scalar(_walk(material, source), source)
    if call["name"] == "count":
        found = _walk(material, call["inner"])
        return len(found) if isinstance(found, tuple) else 1
    if call["name"] == "own_role_rank":
        return own_role_rank(material)
    if call["name"] == "stopped":
        return sum(each.stopped_by != "" for each in material.rollouts)
    first, second = json.loads(f"[{call['inner']}]")
    return len(discordant(material, first, second))


def fact(material: AuditMaterial, source: str, form: str) -> Fact:
    """Take a figure from the records."""
    value = resolve(material, source)
    return Fact(source=source, form=form, value=value, shown=FORMS[form](value))


def claim(identity: str, template: str, **facts: Fact) -> Claim:
    """Fill a sentence: ``{name}`` stands for the fact of that name. Text in a fact is never read as a template."""
    return Claim(id=identity, text=template.format(**{name: each.shown for name, each in facts.items()}), facts=tuple(facts.values()))


def recompute(material: AuditMaterial, made: Claim) -> tuple[str, ...]:
    """Compare a claim with the records; what does not agree, in words. Empty when it holds."""
    problems = []
    for each in made.facts:
        value = resolve(material, each.source)
        if value != each.value:
            problems.append(f"{made.id}: {each.source} is {value}, the claim says {each.value}")
        elif FORMS[each.form](value) != each.shown or each.shown not in made.text:
            problems.append(f"{made.id}: {each.source} reads {FORMS[each.form](value)}, the claim shows {each.shown}")
    return tuple(problems)


def discordant(material: AuditMaterial, first: str, second: str) -> tuple[tuple[int, int], ...]:
    """(variant, sample) pairs where cell ``first`` acted and cell ``second`` did not, unscorable pairs left out; in order."""
    acted: dict[str, dict[tuple[int, int], str]] = {first: {}, second: {}}
    for verdict in material.verdicts:
        if verdict.cell in acted:
            acted[verdict.cell][verdict.variant, verdict.sample] = verdict.outcome.value
    return tuple(
        pair
        for pair, outcome in sorted(acted[first].items())
        if outcome == "acted" and acted[second].get(pair, "unscorable") not in ("acted", "unscorable")
    )


def own_role_rank(material: AuditMaterial) -> float | None:
    """Normalised rank of the acting features if the candidates were ordered by their own role alone; ties share a place.

    None when none acted, when there is one candidate only, or when one that acted has no role of its own.
    """
    own = {each.feature: each.own_role for each in material.ranking.features}
    acting = [own.get(each.feature) for each in material.result.findings if each.finding is Finding.CAUSAL]
    known = [role for role in own.values() if role is not None]
    roles = [role for role in acting if role is not None]
    if not roles or len(roles) < len(acting) or len(own) < 2:
        return None
    ahead = [sum(other > role for other in known) + (sum(other == role for other in known) - 1) / 2 for role in roles]
    return sum(ahead) / len(ahead) / (len(own) - 1)


def _walk(material: AuditMaterial, path: str) -> object:
    """Follow a path; a filter yields the tuple of all that fit."""
    here: object = material
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            raise LookupError(f"'{path}' cannot be read at character {position}")
        position = step.end()
        here = _attribute(here, step["name"], path) if step["name"] else _filter(here, step["key"], json.loads(step["text"]), path)
    return here


def _attribute(here: object, name: str, path: str) -> object:
    single = _only(here, path) if isinstance(here, tuple) else here
    if not hasattr(single, name):
        raise LookupError(f"'{path}' names nothing at '{name}'")
    found: object = getattr(single, name)
    return found


def _filter(here: object, key: str, text: str, path: str) -> tuple[object, ...]:
    if not isinstance(here, tuple):
        raise LookupError(f"'{path}' filters something that is not a collection")
    return tuple(item for item in here if str(getattr(item, key)) == text)


def _only(here: tuple[object, ...], path: str) -> object:
    if len(here) != 1:
        raise LookupError(f"'{path}' names {len(here)} things, not one")
    return here[0]


def _scalar(found: object, path: str) -> Value:
    if found is None or isinstance(found, (bool, int, float)):
        return found
    if isinstance(found, (tuple, list, dict)):
        raise LookupError(f"'{path}' names a collection, not a figure")
    return visible(str(found))
