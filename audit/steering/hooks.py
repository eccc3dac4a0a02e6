"""The hooks that steer: one a written layer, whatever number of treatments the batch holds.

Each row of a batch has a treatment of its own. What it writes is kept in buffers of shape (rows, d_model), so that a
hook adds one tensor for all rows at once, and rows that are not treated at a layer get zeros there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from audit.errors import UsageError
from audit.records import FeatureId, Operation, Treatment
from audit.steering.places import Reach, reach_of
from audit.steering.strengths import Scales, clamp_value, decoder_of, direction_of
from audit.steering.treatments import check, parse_direction, render
from audit.subject import Dictionary, LanguageModel
from audit.subject.activations import DENSE_ELEMENTS
from audit.subject.architecture import NAMES
from audit.subject.dictionary import LayerWeights
from audit.subject.hookpoints import capture, resolve_write, rewrite


@dataclass(slots=True, eq=False)
class Gate:
    """Features whose activation decides what is written; of one source layer, one feature a row."""

    weights: LayerWeights
    """Of the source layer."""
    index: Tensor
    """(rows,) the feature of each row, −1 for a row without such a treatment."""
    encoder: Tensor
    """(rows, d_in); zeros for a row without such a treatment."""
    bias: Tensor
    """(rows,)"""
    threshold: Tensor
    """(rows,): active strictly above it."""

    def activation(self, x: Tensor) -> Tensor:
        """Activations, (rows, tokens), of what the source layer's input hook point holds, (rows, tokens, d_in)."""
        if self.weights.k is not None:  # which features are active depends on all of them
            found = torch.zeros(x.shape[:2], device=x.device)
            step = max(1, DENSE_ELEMENTS // self.weights.n_features)
            for row in torch.nonzero(self.index >= 0).flatten().tolist():
                parts = [self.weights.encode_some(some, [int(self.index[row])])[:, 0] for some in torch.split(x[row], step)]
                found[row] = torch.cat(parts)
            return found
        x = x.float()
        if self.weights.centre is not None:
            x = x - self.weights.centre.to(x.device)
        pre = torch.einsum("rtd,rd->rt", x, self.encoder) + self.bias[:, None]
        return pre * (pre > self.threshold[:, None])

    def each(self, change: Callable[[Tensor], Tensor]) -> Gate:
        """The same gate of other rows."""
        return Gate(self.weights, change(self.index), change(self.encoder), change(self.bias), change(self.threshold))


@dataclass(slots=True, eq=False)
class RowWrites:
    """What every row of a batch writes."""

    reaches: tuple[Reach | None, ...]
    """At which tokens, one a row; None for an unsteered row."""
    fixed: dict[int, Tensor]
    """Layer → (rows, d_model): added as it is."""
    gated: dict[tuple[int, int], Tensor]
    """(source layer, layer) → (rows, d_model): added times the row's activation at the source layer."""
    gates: dict[int, Gate]
    """Source layer → the encoders of its gates."""
    writers: dict[int, Tensor]
    """Layer → (rows,) whether the row's treatment names the layer, whatever its strength."""

    def __len__(self) -> int:
        return len(self.reaches)

    @classmethod
    def unsteered(cls, n: int) -> RowWrites:
        """n rows that nothing is done to, for which no hook is attached."""
        return cls(reaches=(None,) * n, fixed={}, gated={}, gates={}, writers={})

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that some row writes to."""
        return tuple(sorted(self.writers))

    def selected(self, rows: Sequence[int]) -> RowWrites:
        """Only these rows, any of them as often as it is named; −1 is an unsteered one."""
        made = self._each(lambda tensor: _taken(tensor, torch.tensor(rows, dtype=torch.long, device=tensor.device)))
        return replace(made, reaches=tuple(None if row < 0 else self.reaches[row] for row in rows))

    def zeroed(self) -> RowWrites:
        """The same treatments at a dose of nothing: everything is computed, and zeros are added."""
        nothing = {key: torch.zeros_like(tensor) for key, tensor in self.gated.items()}
        return replace(self, fixed={key: torch.zeros_like(tensor) for key, tensor in self.fixed.items()}, gated=nothing)

    def _each(self, change: Callable[[Tensor], Tensor]) -> RowWrites:
        return RowWrites(
            reaches=self.reaches,
            fixed={key: change(tensor) for key, tensor in self.fixed.items()},
            gated={key: change(tensor) for key, tensor in self.gated.items()},
            gates={key: gate.each(change) for key, gate in self.gates.items()},
            writers={key: change(tensor) for key, tensor in self.writers.items()},
        )


def _taken(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor; zeros, or a feature that is none, for −1."""
    if not len(tensor):
        return tensor.new_zeros((len(rows), *tensor.shape[1:]))
    found = tensor[rows.clamp_min(0)]
    found[rows < 0] = -1 if tensor.dtype is torch.long else 0
    return found


def compile_rows(model: LanguageModel, dictionary: Dictionary, treatments: Sequence[Treatment | None], scales: Scales) -> RowWrites:
    """Buffers for a batch with one treatment a row; None is an unsteered row.

    Raises:
        UsageError: a treatment is refused.
    """
    rows = replace(RowWrites.unsteered(0), reaches=tuple(None if each is None else reach_of(each) for each in treatments))
    for row, treatment in enumerate(treatments):
        if treatment is not None:
            check(treatment, dictionary)
            _compile(rows, row, treatment, _Makes(model, dictionary, scales, len(treatments)))
    return rows


@dataclass(frozen=True, slots=True)
class _Makes:
    """What buffers are made for."""

    model: LanguageModel
    dictionary: Dictionary
    scales: Scales
    n_rows: int

    def buffer(self, vector: Tensor) -> Tensor:
        """(n_rows, width) of zeros."""
        return torch.zeros(self.n_rows, vector.shape[-1], device=self.model.device)


def _compile(rows: RowWrites, row: int, treatment: Treatment, makes: _Makes) -> None:
    """One row: a fixed vector a layer, a vector that its activation multiplies, or, for a clamp, both."""
    for layer in treatment.layers:
        rows.writers.setdefault(layer, torch.zeros(makes.n_rows, dtype=torch.bool, device=makes.model.device))[row] = True
    if treatment.operation is Operation.ADDITIVE:
        for layer, vector in direction_of(makes.dictionary, treatment, makes.scales).items():
            rows.fixed.setdefault(layer, makes.buffer(vector))[row] = vector
        return
    source = parse_direction(treatment.direction).feature
    _refuse_circle(makes.dictionary, treatment, source)
    _open_gate(rows, row, source, makes)
    kept = treatment.strength if treatment.operation is Operation.MULTIPLICATIVE else 0.0
    for layer, vector in decoder_of(makes.dictionary, treatment).items():
        rows.gated.setdefault((source.layer, layer), makes.buffer(vector))[row] = (kept - 1.0) * vector
        if treatment.operation is Operation.CLAMP:
            value = clamp_value(makes.dictionary, treatment, makes.scales)
            rows.fixed.setdefault(layer, makes.buffer(vector))[row] = value * vector


def _refuse_circle(dictionary: Dictionary, treatment: Treatment, source: FeatureId) -> None:
    """A feature cannot be multiplied where what it reads is computed from what it writes."""
    read, written = dictionary.input_hook, dictionary.output_hook
    if source.layer in treatment.layers and NAMES.index(read) > NAMES.index(written):
        why = f"'{render(treatment)}': the feature reads '{read}', which the model computes from '{written}', where this would write."
        raise UsageError("Treatment refused", why, "Use an additive treatment.")


def _open_gate(rows: RowWrites, row: int, source: FeatureId, makes: _Makes) -> None:
    weights, device = makes.dictionary.at(source.layer), makes.model.device
    if source.layer not in rows.gates:
        empty = torch.zeros(makes.n_rows, device=device)
        encoder = torch.zeros(makes.n_rows, weights.W_enc.shape[1], device=device)
        index = torch.full((makes.n_rows,), -1, dtype=torch.long, device=device)
        rows.gates[source.layer] = Gate(weights, index, encoder, empty, empty.clone())
    gate = rows.gates[source.layer]
    gate.index[row] = source.index
    gate.encoder[row] = weights.W_enc.row(source.index, device=device)
    gate.bias[row] = weights.b_enc[source.index]
    if weights.threshold is not None:
        gate.threshold[row] = weights.threshold[source.index]


@dataclass(slots=True, eq=False)
class Steering:
    """What the hooks write in the next forward pass, and how often they wrote."""

    rows: RowWrites | None
    """None: nothing is written in the next pass."""
    first: int
    """First position written in a pass over the prompt: behind the BOS or the opening of a chat."""
    inputs: dict[tuple[int, str], Tensor]
    """What was captured of the gates' source layers in this pass."""
    input_hook: str
    early: bool
    """Whether features read ``resid_mid`` and write it: that is done in what attention adds, before the sum is there to be read."""
    written: int = 0
    """Tokens × layers written, of rows whose treatments name them; only while ``counting``."""
    counting: bool = False
    n_prompt: int | None = None
    """Tokens of the prompt, whose last ones a pass over the prompt computes; None: all of them."""
    _covers: dict[int, Tensor | int] = field(default_factory=dict)

    def over_prompt(self, rows: RowWrites | None, n_prompt: int | None = None) -> None:
        """The next pass computes the prompt, or its last tokens."""
        self.rows, self.n_prompt, self._covers = rows, n_prompt, {}

    def over_token(self, rows: RowWrites | None, writes: Tensor) -> None:
        """The next pass computes one generated token a row; ``writes`` says which rows write to theirs, (rows,) of bool."""
        self.rows, self._covers = rows, {}
        if rows is not None and rows.writers:
            device = next(iter(rows.writers.values())).device
            self._covers[1] = 0 if bool(writes.all()) else writes.to(device)[:, None]

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Write nothing more after the ``with``, until a next pass is announced."""
        try:
            yield
        finally:
            self.rows = None

    def write(self, layer: int, x: Tensor) -> Tensor:
        """The output hook point of a layer, (rows, tokens, d_model), with every row's treatment added."""
        if self.rows is None or layer not in self.rows.writers:
            return x
        cover = self._cover(x.shape[1])
        if self.counting:
            self._count(layer, cover, x.shape[1])
        added = self._added(layer, x)
        if added is None:
            return x
        if isinstance(cover, Tensor):
            return x + (added * cover[:, :, None]).to(x)
        if cover == 0:
            return x + added.to(x)
        added = added[:, cover:] if added.shape[1] > 1 else added
        return torch.cat([x[:, :cover], x[:, cover:] + added.to(x)], dim=1)

    def _cover(self, n_tokens: int) -> Tensor | int:
        """From which token of the pass on all rows write; where they differ, (rows, tokens) which write where."""
        assert self.rows is not None
        if n_tokens not in self._covers:
            n_prompt = n_tokens if self.n_prompt is None else self.n_prompt
            skipped = n_prompt - n_tokens
            if all(each is None or each.whole_prompt for each in self.rows.reaches):
                self._covers[n_tokens] = max(0, self.first - skipped)
            else:
                covered = [None if each is None else each.in_prompt(n_prompt, self.first)[skipped:] for each in self.rows.reaches]
                table = torch.tensor([[False] * n_tokens if each is None else each for each in covered], dtype=torch.bool)
                self._covers[n_tokens] = table.to(next(iter(self.rows.writers.values())).device)
        return self._covers[n_tokens]

    def _count(self, layer: int, cover: Tensor | int, n_tokens: int) -> None:
        assert self.rows is not None
        writers = self.rows.writers[layer]
        if isinstance(cover, Tensor):
            self.written += int((cover & writers[:, None]).sum())
        else:
            self.written += int(writers.sum()) * (n_tokens - cover)

    def _added(self, layer: int, x: Tensor) -> Tensor | None:
        assert self.rows is not None
        fixed = self.rows.fixed.get(layer)
        total = None if fixed is None else fixed[:, None]
        for source, gate in self.rows.gates.items():
            vectors = self.rows.gated.get((source, layer))
            if vectors is not None:
                read = self._read(source, layer, x)[:, -x.shape[1] :].to(gate.encoder.device)
                found = gate.activation(read)[:, :, None] * vectors[:, None]
                total = found if total is None else total + found
        return total

    def _read(self, source: int, layer: int, x: Tensor) -> Tensor:
        """What features of a source layer read, when x is passed on to what a layer writes."""
        if self.early and source == layer:
            return self.inputs[source, "resid_pre"] + x
        return self.inputs[source, self.input_hook]


def gate_sites(dictionary: Dictionary, rows: RowWrites) -> list[tuple[int, str]]:
    """Hook points that the gates of these rows read."""
    names = (dictionary.input_hook, "resid_pre") if is_early(dictionary) else (dictionary.input_hook,)
    return [(layer, name) for layer in rows.gates for name in names]


def is_early(dictionary: Dictionary) -> bool:
    """Whether features read ``resid_mid`` and write it."""
    return dictionary.input_hook == dictionary.output_hook == "resid_mid"


@contextmanager
def steer(model: LanguageModel, dictionary: Dictionary, rows: RowWrites, *, first: int) -> Iterator[Steering]:
    """Steer the forward passes made inside the ``with``; it begins with a pass over the whole prompt.

    A treatment that is not additive takes its activation from the same pass, at the source layer, steered as that is.

    Args:
        model: the model.
        dictionary: whose hook points are read and written.
        rows: what to write; its number of rows is the batch of the pass.
        first: first position of the prompt that is written.

    Raises:
        SubjectError: the dictionary writes to a hook point to which nothing can be added.
    """
    with capture(model, gate_sites(dictionary, rows)) as inputs:
        state = Steering(rows, first, inputs, dictionary.input_hook, is_early(dictionary))
        handles = []
        try:
            for layer in rows.layers:
                handles.append(_attach(model, dictionary, layer, state))
            yield state
        finally:
            for handle in handles:
                handle.remove()


def _attach(model: LanguageModel, dictionary: Dictionary, layer: int, state: Steering) -> torch.utils.hooks.RemovableHandle:
    point = resolve_write(model, layer, dictionary.output_hook)
    return rewrite(point, lambda x: state.write(layer, x))
