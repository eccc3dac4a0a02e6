"""One prompt, read as often as has to be: layers up to the first that a configuration writes to once, those above once a configuration.

What a layer computes on a prompt changes only behind the first layer, and from the first position, that a treatment writes to. The
unsteered model is therefore run once (``Prompt``), keeping every layer's keys and values, and what the layers hold that are written first;
a configuration starts from there (``Prompt.steered``), at its first position. Of the last layer nothing but the last position's output is
ever used, so the other positions get their keys and values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.steering.attention import causal
from audit.steering.hooks import RowWrites, Steering, gate_sites
from audit.steering.layerwise import KeysOnly, Layerwise, Scoring
from audit.subject import Dictionary
from audit.subject.hookpoints import Site, capture

ADDED_LAST = ("mlp_out", "resid_post")
"""Hook points behind everything that a layer computes: a layer that is written there first is not run again."""
_WORTH_SKIPPING = 32
"""Leading positions of a prompt that are not written are left out if there are so many."""

Kept = tuple[Tensor, Tensor]
"""Keys and values, each (rows, heads of keys, tokens, size)."""
Held = dict[Site, Tensor]
"""Hook point → what it held."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where configurations leave the unsteered model."""

    layer: int
    """The first layer written."""
    token: int
    """The first position that is computed again."""

    @staticmethod
    def of(layers: Sequence[int], first: int) -> Entry:
        """Of a configuration that writes to these layers, first at this position."""
        return Entry(min(layers), first if first >= _WORTH_SKIPPING else 0)


@dataclass(frozen=True, slots=True, eq=False)
class SteeredPrompt:
    """What configurations that entered together hold of their own."""

    first_layer: int
    """The first layer with keys and values of their own; the number of layers if there is none."""
    keys: tuple[Kept, ...]
    """One a layer from ``first_layer`` on, (configurations, heads of keys, tokens of the prompt, size)."""
    logits: Tensor
    """(configurations, vocabulary), after the last token of the prompt."""


@dataclass(slots=True, eq=False)
class _Reading:
    """Attention of a pass over a prompt, which keeps keys and values."""

    keys: dict[int, Kept] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    wants_queries: bool = False
    only_keys: int | None = None
    """A layer of which nothing but keys and values is wanted."""
    before: dict[int, Kept] = field(default_factory=dict)
    """Layer → keys and values of the positions before those of this pass, (1, …)."""
    frozen: Tensor | None = None
    """(rows,) of bool: whose queries and keys are the unsteered model's."""
    unsteered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Layer → its queries and keys, (1, …), of all positions; where rows are frozen."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        if self.wants_queries:
            self.queries[layer] = q
        if self.frozen is not None and layer in self.unsteered:
            held = self.frozen.to(q.device)[:, None, None, None]
            plain_q, plain_k = self.unsteered[layer]
            q = torch.where(held, plain_q[:, :, -q.shape[2] :], q)
            k = torch.where(held, plain_k[:, :, -k.shape[2] :], k)
        if layer in self.before:
            k, v = (torch.cat([old.expand(len(new), -1, -1, -1), new], dim=2) for old, new in zip(self.before[layer], (k, v), strict=True))
        self.keys[layer] = (k, v)
        if layer == self.only_keys:
            raise KeysOnly
        return causal(q, k, v, scoring)


@dataclass(slots=True, eq=False)
class _Last:
    """Attention of a prompt's last position in the last layer, whose keys and values are there already."""

    reading: _Reading

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        if self.reading.wants_queries:
            q = self.reading.queries[layer][:, :, -1:]
        if self.reading.frozen is not None and layer in self.reading.unsteered:
            held = self.reading.frozen.to(q.device)[:, None, None, None]
            q = torch.where(held, self.reading.unsteered[layer][0][:, :, -1:], q)
        return causal(q, *self.reading.keys[layer], scoring)


class Prompt:
    """A prompt as the unsteered model reads it.

    Args:
        runner: the model.
        ids: the prompt's tokens.
        rows: everything that configurations may write: says which layers' states have to be kept.
        dictionary: whose hook points are read and written.
        upto: layers that are run, from the first; all of them where a configuration needs them.
        wants_queries: whether configurations with frozen attention come.
        whole: compute all positions in the last layer too.
    """

    def __init__(
        self,
        runner: Layerwise,
        ids: Sequence[int],
        rows: RowWrites,
        dictionary: Dictionary,
        *,
        upto: int,
        wants_queries: bool = False,
        whole: bool = False,
    ) -> None:
        self.n_tokens = len(ids)
        self.keys: dict[int, Kept] = {}
        self.logits: Tensor | None = None
        self._runner, self._dictionary, self._whole = runner, dictionary, whole
        self._entries: dict[tuple[int, str], Tensor] = {}
        self._inputs: dict[tuple[int, str], Tensor] = {}
        self._reading = _Reading(wants_queries=wants_queries)
        self._read(ids, rows, upto)

    @property
    def queries(self) -> dict[int, Tensor]:
        """Layer → the unsteered model's queries, where they were wanted."""
        return self._reading.queries

    def _read(self, ids: Sequence[int], rows: RowWrites, upto: int) -> None:
        runner = self._runner
        kept = [(layer, name) for layer in rows.layers if layer < upto for name in self._states()]
        gates = [site for site in gate_sites(self._dictionary, rows) if site[0] < upto]
        hidden = runner.embed(torch.tensor([list(ids)], device=runner.model.device))
        with capture(runner.model, list(dict.fromkeys([*kept, *gates]))) as found:
            hidden = self._through(hidden, range(min(upto, runner.n_layers - 1)), 0, self._reading)
            if upto == runner.n_layers:
                states = self._keys_of_last(hidden, 0, self._reading, found)
                self.logits = self._finish(hidden, 0, self._reading)
                found.update(states)  # what goes into the last layer was held at all positions before it was held at the last
        self.keys = self._reading.keys
        self._entries = {site: found[site] for site in kept if site in found}
        self._inputs = {site: found[site] for site in gates if site in found}

    def _states(self) -> tuple[str, ...]:
        hook = self._dictionary.output_hook
        return ("resid_mid", "mlp_out") if hook == "mlp_out" else ("resid_post",) if hook == "resid_post" else ("resid_pre",)

    def steered(self, rows: RowWrites, entry: Entry, steering: Steering | None, frozen: Tensor | None = None) -> SteeredPrompt:
        """Read the prompt with configurations, one a row, that leave the unsteered model at the same place.

        Args:
            rows: what they write.
            entry: where.
            steering: the hooks; None where nothing is to be written.
            frozen: (rows,) of bool, which of them keep the unsteered attention patterns.
        """
        n, runner = len(rows), self._runner
        reading = _Reading(frozen=frozen if frozen is not None and bool(frozen.any()) else None)
        reading.unsteered = {layer: (q, self.keys[layer][0]) for layer, q in self.queries.items()}
        if entry.token:
            reading.before = {layer: (k[:, :, : entry.token], v[:, :, : entry.token]) for layer, (k, v) in self.keys.items()}
        if steering is not None:
            steering.over_prompt(rows, self.n_tokens)
            for site, value in self._inputs.items():
                steering.inputs[site] = self._from(value, entry).expand(n, -1, -1)
        hidden, layer = self._enter(n, entry, steering)
        first_layer = layer if layer > entry.layer or self._dictionary.output_hook == "resid_pre" else layer + 1
        last = runner.n_layers - 1
        hidden = self._through(hidden, range(layer, last), entry.token, reading)
        if layer <= last:
            self._keys_of_last(hidden, entry.token, reading, {})
            logits = self._finish(hidden, entry.token, reading)
        else:
            logits = runner.logits(hidden[:, -1])
        kept = tuple(reading.keys[each] for each in range(first_layer, runner.n_layers))
        return SteeredPrompt(first_layer, kept, logits)

    def _enter(self, n: int, entry: Entry, steering: Steering | None) -> tuple[Tensor, int]:
        """Hidden states of n configurations, and the layer that they are given to."""
        at, hook = entry.layer, self._dictionary.output_hook

        def state(name: str) -> Tensor:
            return self._from(self._entries[at, name], entry).expand(n, -1, -1)

        def written(x: Tensor) -> Tensor:
            return x if steering is None else steering.write(at, x)

        if hook == "mlp_out":
            return state("resid_mid") + written(state("mlp_out")), at + 1
        if hook == "resid_post":
            return written(state("resid_post")), at + 1
        return state("resid_pre"), at

    def _through(self, hidden: Tensor, layers: range, start: int, reading: _Reading) -> Tensor:
        rotation = self._rotation(hidden, start)
        for layer in layers:
            hidden = self._runner.run(layer, hidden, rotation, reading)
        return hidden

    def _from(self, value: Tensor, entry: Entry) -> Tensor:
        """The positions from a configuration's first on; of the last layer only the last position may be there."""
        return value[:, -(self.n_tokens - entry.token) :]

    def _keys_of_last(self, hidden: Tensor, start: int, reading: _Reading, found: Held) -> Held:
        """Have the last layer's keys and values kept, and nothing else of it computed; gives what hook points held by then."""
        if self._whole:
            return {}
        last = reading.only_keys = self._runner.n_layers - 1
        with suppress(KeysOnly):
            self._runner.run(last, hidden, self._rotation(hidden, start), reading)
        reading.only_keys = None
        return {site: value for site, value in found.items() if site[0] == last}

    def _finish(self, hidden: Tensor, start: int, reading: _Reading) -> Tensor:
        """Logits after the last position, from what goes into the last layer."""
        runner, last = self._runner, self._runner.n_layers - 1
        if self._whole:
            return runner.logits(self._through(hidden, range(last, last + 1), start, reading)[:, -1])
        rotation = self._rotation(hidden[:, -1:], self.n_tokens - 1)
        return runner.logits(runner.run(last, hidden[:, -1:], rotation, _Last(reading))[:, -1])

    def _rotation(self, hidden: Tensor, start: int) -> dict[str, tuple[Tensor, Tensor]]:
        positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)[None]
        return self._runner.rotation(hidden, positions)
