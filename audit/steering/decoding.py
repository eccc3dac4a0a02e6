"""Rows that are written token by token: each with keys and values of its own answer, all with those of their shared prompt.

Rows stand in slots without gaps. A row that has ended leaves, and the last row takes its slot: the other rows' tensors are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.steering.attention import merged, partial
from audit.steering.hooks import RowWrites, Steering
from audit.steering.layerwise import Layerwise, Scoring
from audit.steering.prompts import Kept, Prompt, SteeredPrompt


@dataclass(slots=True, eq=False)
class Row:
    """One answer while it is written."""

    configuration: int
    """−1: an unsteered twin, which lends its queries and keys to a row with frozen attention."""
    sample: int
    tokens: list[int] = field(default_factory=list)
    slot: int = -1
    lender: Row | None = None
    """The twin of a row with frozen attention."""
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Own:
    """Prompts of configurations that have their own at one layer, in slots without gaps."""

    keys: Tensor
    """(slots, heads of keys, tokens of the prompt, size)"""
    values: Tensor
    owners: list[int] = field(default_factory=list)

    def add(self, configurations: Sequence[int], kept: Kept) -> None:
        start, end = len(self.owners), len(self.owners) + len(configurations)
        self.keys[start:end], self.values[start:end] = kept
        self.owners += configurations

    def remove(self, configuration: int) -> None:
        place, last = self.owners.index(configuration), len(self.owners) - 1
        if place < last:
            self.keys[place], self.values[place] = self.keys[last].clone(), self.values[last].clone()
            self.owners[place] = self.owners[last]
        self.owners.pop()


@dataclass(frozen=True, slots=True, eq=False)
class _Sharing:
    """Which rows read which prompt at a layer."""

    plain: Tensor | None
    """(n,) rows that read the unsteered model's; None where no row does."""
    own: Tensor | None
    """(m,) rows that read their configuration's own; None where no row does."""
    places: Tensor | None
    """(configurations, most rows of any) row at each place; where a configuration has fewer, any row stands in."""
    back: Tensor | None
    """(m,) place of each row of ``own``, counted through."""


class Decoder:
    """Rows of one prompt.

    Args:
        runner: the model.
        prompt: as the unsteered model reads it.
        writes: what every configuration writes.
        steering: the hooks; None where nothing is to be written.
        n_rows: slots.
        owned: configurations with prompts of their own at a time, one number a layer.
        n_new: most tokens of an answer.
    """

    def __init__(
        self,
        runner: Layerwise,
        prompt: Prompt,
        writes: RowWrites,
        steering: Steering | None,
        *,
        n_rows: int,
        owned: Sequence[int],
        n_new: int,
    ) -> None:
        self.rows: list[Row] = []
        self._owned = owned
        self._runner, self._prompt, self._writes, self._steering = runner, prompt, writes, steering
        weight = next(runner.model.backbone.parameters())
        self._like = torch.empty(0, dtype=runner.model.dtype, device=weight.device)
        shape = (n_rows, runner.n_key_heads, n_new, runner.head_size)
        self._keys = [self._like.new_empty(shape) for _ in range(runner.n_layers)]
        # Zeros, since what is not seen has a weight of 0, which makes nothing of any number that is finite; and see ``release``.
        self._values = [self._like.new_zeros(shape) for _ in range(runner.n_layers)]
        self._own: dict[int, _Own] = {}
        self._sharings: dict[tuple[int, ...], _Sharing] = {}
        self._rows_now: RowWrites | None = None
        self._lenders: Tensor | None = None
        self._at: list[int] = []
        self._ages: Tensor = torch.empty(0, dtype=torch.long)

    # --- rows come and go -------------------------------------------------------------------------

    @property
    def owners(self) -> set[int]:
        """Configurations that have prompts of their own here."""
        return {configuration for own in self._own.values() for configuration in own.owners}

    @property
    def held(self) -> list[int]:
        """Configurations that have prompts of their own, one number a layer."""
        return [len(self._own[layer].owners) if layer in self._own else 0 for layer in range(self._runner.n_layers)]

    def keep(self, configurations: Sequence[int], steered: SteeredPrompt) -> None:
        """Take over the prompts of configurations that entered together."""
        for layer, kept in enumerate(steered.keys, start=steered.first_layer):
            if layer not in self._own:
                shape = (self._owned[layer], *kept[0].shape[1:])
                self._own[layer] = _Own(kept[0].new_empty(shape), kept[1].new_empty(shape))
            self._own[layer].add(configurations, kept)
        self._sharings = {}

    def forget(self, configuration: int) -> None:
        """Give up the prompt of a configuration that no row needs any more."""
        for own in self._own.values():
            if configuration in own.owners:
                own.remove(configuration)
        self._sharings = {}

    def admit(self, rows: Sequence[Row]) -> None:
        """Put rows into free slots, twins behind those that they lend to."""
        for row in rows:
            for each in (row, row.lender):
                if each is not None:
                    each.slot = len(self.rows)
                    self.rows.append(each)
        self._changed()

    def release(self, ended: Sequence[Row]) -> None:
        """Free the slots of rows, and of their twins."""
        gone = {id(each) for row in ended for each in (row, row.lender) if each is not None}
        n_left = len(self.rows) - len(gone)
        holes = [slot for slot in range(n_left) if id(self.rows[slot]) in gone]
        movers = [slot for slot in range(n_left, len(self.rows)) if id(self.rows[slot]) not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
            self.rows[hole].slot = hole
        del self.rows[n_left:]
        for keys, values in zip(self._keys, self._values, strict=True):
            if holes:
                keys[holes], values[holes] = keys[movers], values[movers]
            # A row whose numbers were not finite must not leave them to the next one here.
            values[n_left : n_left + len(gone)] = 0
        self._changed()

    def _changed(self) -> None:
        """Gather what depends on which rows there are."""
        self._sharings = {}
        if self._writes.layers:
            self._rows_now = self._writes.selected([row.configuration for row in self.rows])
        lent = any(row.lender is not None for row in self.rows)
        lenders = [row.slot if row.lender is None else row.lender.slot for row in self.rows]
        self._lenders = torch.tensor(lenders, device=self._like.device) if lent else None

    # --- one token a row --------------------------------------------------------------------------

    def step(self) -> Tensor:
        """Logits, (rows, vocabulary), after the last token of every row."""
        runner, rows = self._runner, self.rows
        self._at = [len(row.tokens) - 1 for row in rows]
        self._ages = torch.tensor(self._at, device=self._like.device)
        ids = torch.tensor([[row.tokens[-1]] for row in rows], device=runner.model.device)
        if self._steering is not None:
            self._steering.over_token(self._rows_now, self._covered())
        hidden = runner.embed(ids)
        same = len(set(self._at)) == 1
        positions = self._prompt.n_tokens + (self._ages[:1, None] if same else self._ages[:, None])
        rotation = runner.rotation(hidden, positions)
        for layer in range(runner.n_layers):
            hidden = runner.run(layer, hidden, rotation, self)
        return runner.logits(hidden[:, -1])

    def _covered(self) -> Tensor:
        """Whether each row's treatment writes to its newest token."""
        n_prompt = self._prompt.n_tokens
        reaches = [None if row.configuration < 0 else self._writes.reaches[row.configuration] for row in self.rows]
        return torch.tensor(
            [reach is None or reach.at(n_prompt + at, n_prompt) for reach, at in zip(reaches, self._at, strict=True)], dtype=torch.bool
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """Attention of one token a row over its prompt and its own answer; see ``layerwise.Attend``."""
        if self._lenders is not None:
            q, k = q[self._lenders], k[self._lenders]
        n, heads, _, size = q.shape
        q = q.reshape(n, self._runner.n_key_heads, -1, size)
        answer = self._over_answer(layer, q, (k[:, :, 0], v[:, :, 0]), scoring)
        prompt = self._over_prompt(layer, q, scoring)
        found = answer[0] if prompt is None else merged(prompt, answer)
        return found.reshape(n, heads, 1, size)

    def _over_answer(self, layer: int, q: Tensor, new: Kept, scoring: Scoring) -> tuple[Tensor, Tensor]:
        """Attention over what each row wrote, its newest token included."""
        keys, values, n = self._keys[layer], self._values[layer], len(q)
        oldest, newest = min(self._at), max(self._at)
        same = oldest == newest
        if same:
            keys[:n, :, newest], values[:n, :, newest] = new
        else:
            slots = torch.arange(n, device=keys.device)
            keys[slots, :, self._ages], values[slots, :, self._ages] = new
        low = 0 if scoring.window is None else max(0, oldest - scoring.window + 1)
        seen = None if same else self._seen(low, newest + 1, scoring.window)[:, None, None]
        return partial(q, keys[:n, :, low : newest + 1], values[:n, :, low : newest + 1], scoring, seen)

    def _seen(self, low: int, high: int, window: int | None) -> Tensor:
        """Which positions of the answers, from low to high, each row sees, (rows, positions)."""
        back = self._ages[:, None] - torch.arange(low, high, device=self._ages.device)
        return (back >= 0) & (back < window) if window is not None else back >= 0

    def _over_prompt(self, layer: int, q: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor] | None:
        """Attention over each row's prompt; None where it lies out of every row's window."""
        n_prompt = self._prompt.n_tokens
        low = 0 if scoring.window is None else max(0, n_prompt + min(self._at) - scoring.window + 1)
        if low >= n_prompt:
            return None
        seen = None
        if scoring.window is not None and n_prompt + max(self._at) - scoring.window + 1 > low:
            seen = n_prompt + self._ages[:, None] - torch.arange(low, n_prompt, device=q.device) < scoring.window
        share = self._sharing(layer)
        parts: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []
        if share.plain is not None:
            whole = len(share.plain) == len(q)
            some = q if whole else q[share.plain]
            part = self._over_plain(layer, some, low, scoring, seen if seen is None or whole else seen[share.plain])
            if whole:
                return part
            parts.append((share.plain, part))
        if share.own is not None:
            part = self._over_own(layer, q, low, scoring, seen)
            if len(share.own) == len(q):
                return part
            parts.append((share.own, part))
        found, sums = torch.empty_like(q), torch.empty(q.shape[:-1], device=q.device)
        for rows, (outcome, total) in parts:
            found[rows], sums[rows] = outcome, total
        return found, sums

    def _over_plain(self, layer: int, q: Tensor, low: int, scoring: Scoring, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows (n, heads of keys, queries a key, size) over the unsteered model's prompt: all at once, since its keys are the same."""
        keys, values = self._prompt.keys[layer]
        n, key_heads, each, size = q.shape
        if seen is not None:
            seen = seen.repeat_interleave(each, dim=0)
        stacked = q.transpose(0, 1).reshape(1, key_heads, n * each, size)
        outcome, total = partial(stacked, keys[:, :, low:], values[:, :, low:], scoring, seen)
        return outcome.view(key_heads, n, each, size).transpose(0, 1), total.view(key_heads, n, each).transpose(0, 1)

    def _over_own(self, layer: int, q: Tensor, low: int, scoring: Scoring, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows over their configurations' own prompts, configuration by configuration; in the order of ``_Sharing.own``."""
        share, own = self._sharing(layer), self._own[layer]
        assert share.places is not None
        assert share.back is not None
        groups, most = share.places.shape
        _, key_heads, each, size = q.shape
        stacked = q[share.places.flatten()].view(groups, most, key_heads, each, size).transpose(1, 2).reshape(groups, key_heads, -1, size)
        if seen is not None:
            seen = seen[share.places].repeat_interleave(each, dim=1)[:, None]
        outcome, total = partial(stacked, own.keys[:groups, :, low:], own.values[:groups, :, low:], scoring, seen)
        outcome = outcome.view(groups, key_heads, most, each, size).transpose(1, 2).reshape(-1, key_heads, each, size)
        total = total.view(groups, key_heads, most, each).transpose(1, 2).reshape(-1, key_heads, each)
        return outcome[share.back], total[share.back]

    def _sharing(self, layer: int) -> _Sharing:
        owners = tuple(self._own[layer].owners) if layer in self._own else ()
        if owners not in self._sharings:
            self._sharings[owners] = self._share(owners)
        return self._sharings[owners]

    def _share(self, owners: tuple[int, ...]) -> _Sharing:
        device = self._like.device
        place = {configuration: at for at, configuration in enumerate(owners)}
        of_own: list[list[int]] = [[] for _ in owners]
        plain: list[int] = []
        for row in self.rows:
            (of_own[place[row.configuration]] if row.configuration in place else plain).append(row.slot)
        most = max(map(len, of_own), default=0)
        if not most:
            return _Sharing(torch.tensor(plain, device=device), None, None, None)
        padded = [[*slots, *[0] * (most - len(slots))] for slots in of_own]
        back = [at * most + k for at, slots in enumerate(of_own) for k in range(len(slots))]
        rows = [slot for slots in of_own for slot in slots]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        return _Sharing(
            plain=torch.tensor(plain, device=device) if plain else None,
            own=torch.tensor([rows[at] for at in order], device=device),
            places=torch.tensor(padded, device=device),
            back=torch.tensor([back[at] for at in order], device=device),
        )
