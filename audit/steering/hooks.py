"""The hooks that steer: one a written layer, whatever number of treatments the batch holds.

Each row of a batch has a treatment of its own. What it writes is kept in buffers of shape (rows, d_model), so that a
hook adds one tensor for all rows at once, and rows that are not treated at a layer get zeros there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audit.errors import SubjectError
from audit.records import FeatureId, Operation, Positions, Treatment
from audit.steering.strengths import Scales, decoder_of, direction_of
from audit.steering.treatments import check, parse_direction
from audit.subject import Dictionary, LanguageModel
from audit.subject.hookpoints import capture, first_tensor, resolve

Phase = Literal["prompt", "generated"]
PHASES: tuple[Phase, Phase] = ("prompt", "generated")


@dataclass(slots=True, eq=False)
class Gate:
    """Encoders of the features whose activation decides what is written; of one source layer, one feature a row."""

    encoder: Tensor
    """(rows, d_model); zeros for a row without such a treatment."""
    bias: Tensor
    """(rows,)"""
    threshold: Tensor
    """(rows,): active strictly above it."""

    def activation(self, x: Tensor) -> Tensor:
        """Activations, (rows, tokens), of what the source layer's input hook point holds, (rows, tokens, d_model)."""
        pre = torch.einsum("rtd,rd->rt", x.to(self.encoder.dtype), self.encoder) + self.bias[:, None]
        return pre * (pre > self.threshold[:, None])


@dataclass(slots=True, eq=False)
class RowWrites:
    """What every row of a batch writes."""

    fixed: dict[tuple[Phase, int], Tensor]
    """(phase, layer) → (rows, d_model): added as it is."""
    gated: dict[tuple[Phase, int, int], Tensor]
    """(phase, source layer, layer) → (rows, d_model): added times the row's activation at the source layer."""
    gates: dict[int, Gate]
    """Source layer → the encoders of its gates."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that some row writes to."""
        return tuple(sorted({layer for _, layer in self.fixed} | {layer for *_, layer in self.gated}))

    def repeated(self, n: int) -> RowWrites:
        """Every row n times in a row."""
        return self._each(lambda tensor: tensor.repeat_interleave(n, dim=0))

    def selected(self, rows: Tensor) -> RowWrites:
        """Only these rows."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> RowWrites:
        return RowWrites(
            fixed={key: change(tensor) for key, tensor in self.fixed.items()},
            gated={key: change(tensor) for key, tensor in self.gated.items()},
            gates={key: Gate(change(gate.encoder), change(gate.bias), change(gate.threshold)) for key, gate in self.gates.items()},
        )


def compile_rows(model: LanguageModel, dictionary: Dictionary, treatments: Sequence[Treatment | None], scales: Scales) -> RowWrites:
    """Buffers for a batch with one treatment a row; None is an unsteered row.

    Raises:
        UsageError: a treatment is refused.
    """
    rows = RowWrites(fixed={}, gated={}, gates={})
    for row, treatment in enumerate(treatments):
        if treatment is None:
            continue
        check(treatment, dictionary)
        phases = [phase for phase in PHASES if treatment.positions in (Positions.ALL, Positions(phase))]
        if treatment.operation is Operation.ADDITIVE:
            for layer, vector in direction_of(dictionary, treatment, scales).items():
                for phase in phases:
                    _buffer(rows.fixed, (phase, layer), len(treatments), model)[row] = vector
            continue
        source = parse_direction(treatment.direction).feature
        _open_gate(rows, row, source, dictionary=dictionary, n_rows=len(treatments), model=model)
        for layer, vector in decoder_of(dictionary, treatment).items():
            for phase in phases:
                _buffer(rows.gated, (phase, source.layer, layer), len(treatments), model)[row] = (treatment.strength - 1.0) * vector
    return rows


def _buffer(buffers: dict[Any, Tensor], key: object, n_rows: int, model: LanguageModel) -> Tensor:
    if key not in buffers:
        buffers[key] = torch.zeros(n_rows, model.d_model, device=model.device)
    return buffers[key]


def _open_gate(rows: RowWrites, row: int, source: FeatureId, *, dictionary: Dictionary, n_rows: int, model: LanguageModel) -> None:
    if source.layer not in rows.gates:
        empty = torch.zeros(n_rows, device=model.device)
        rows.gates[source.layer] = Gate(torch.zeros(n_rows, model.d_model, device=model.device), empty, empty.clone())
    gate = rows.gates[source.layer]
    gate.encoder[row] = dictionary.W_enc[source.layer][source.index]
    gate.bias[row] = dictionary.b_enc[source.layer][source.index]
    if dictionary.threshold is not None:
        gate.threshold[row] = dictionary.threshold[source.layer][source.index]


@dataclass(slots=True, eq=False)
class Steering:
    """What the hooks write in the next forward pass, and how often they fired."""

    rows: RowWrites
    phase: Phase
    first: int
    """First position written in a pass over the prompt: 1 after a BOS."""
    inputs: dict[tuple[int, str], Tensor]
    """What the gates' source layers read in this pass."""
    input_hook: str
    written: int = 0
    """Tokens × layers that hooks wrote to."""

    def write(self, layer: int, x: Tensor) -> Tensor:
        """The output hook point of a layer, (rows, tokens, d_model), with every row's treatment added."""
        self.written += x.shape[0] * x.shape[1]
        added = self._added(layer)
        if added is None:
            return x
        start = self.first if self.phase == "prompt" else 0
        if start == 0:
            return x + added.to(x.dtype)
        added = added[:, start:] if added.shape[1] > 1 else added
        return torch.cat([x[:, :start], x[:, start:] + added.to(x.dtype)], dim=1)

    def _added(self, layer: int) -> Tensor | None:
        fixed = self.rows.fixed.get((self.phase, layer))
        total = None if fixed is None else fixed[:, None]
        for source, gate in self.rows.gates.items():
            vectors = self.rows.gated.get((self.phase, source, layer))
            if vectors is not None:
                found = gate.activation(self.inputs[source, self.input_hook])[:, :, None] * vectors[:, None]
                total = found if total is None else total + found
        return total


@contextmanager
def steer(model: LanguageModel, dictionary: Dictionary, rows: RowWrites, *, first: int) -> Iterator[Steering]:
    """Steer the forward passes made inside the ``with``; it begins in the phase ``prompt``.

    A multiplicative treatment takes its activation from the same pass, at the source layer, steered as that is.

    Args:
        model: the model.
        dictionary: whose hook points are read and written.
        rows: what to write; its number of rows is the batch of the pass.
        first: first position of the prompt that is written.

    Raises:
        SubjectError: the dictionary writes to a hook point that is not the output of a module.
    """
    with capture(model, [(layer, dictionary.input_hook) for layer in rows.gates]) as inputs:
        state = Steering(rows, "prompt", first, inputs, dictionary.input_hook)
        handles = []
        try:
            for layer in rows.layers:
                handles.append(_attach(model, dictionary, layer, state))
            yield state
        finally:
            for handle in handles:
                handle.remove()


def _attach(model: LanguageModel, dictionary: Dictionary, layer: int, state: Steering) -> torch.utils.hooks.RemovableHandle:
    point = resolve(model, layer, dictionary.output_hook)
    if point.side != "output":
        raise SubjectError(
            "Cannot steer here",
            f"The dictionary writes to '{dictionary.output_hook}', which is not what a module puts out.",
            "Use a dictionary that writes to mlp_out or resid_post.",
        )

    def write(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        steered = state.write(layer, first_tensor(output))
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    return point.module.register_forward_hook(write)
