"""Sampling with transformers' own forward pass and cache: for models that cannot be run layer by layer.

Every row reads the prompt, steered, with its own keys and values; rows that end leave the batch. The hooks are those of the other engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from audit.errors import SubjectError
from audit.events import Observer, check_stop
from audit.steering.generation import Choosing, Request, Written
from audit.steering.hooks import RowWrites, Steering, compile_rows, steer
from audit.steering.memory import MemoryPlan, Need, is_out_of_memory, plan_memory
from audit.steering.strengths import Scales
from audit.subject import LanguageModel, Subject


@dataclass(slots=True, eq=False)
class _Row:
    configuration: int
    sample: int
    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


def run(subject: Subject, request: Request, scales: Scales, *, observer: Observer) -> Iterator[Written]:
    """See ``generation.generate``.

    Raises:
        Interrupted, SubjectError, UsageError: as there.
    """
    writes = compile_rows(subject.model, subject.dictionary, request.treatments, scales)
    todo = [(configuration, sample) for configuration in range(len(request.treatments)) for sample in range(request.n_samples)]
    size = plan_rows(subject.model, request).rows
    with steer(subject.model, subject.dictionary, writes, first=subject.model.first_content(request.prompt_ids)) as steering:
        while todo:
            rows, done = [_Row(configuration, sample) for configuration, sample in todo[:size]], set()
            try:
                for each in _Batch(subject.model, request, writes, steering, observer).run(list(rows)):
                    done.add((each.configuration, each.sample))
                    yield each
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise no_memory() from error
                size = len(rows) // 2
            todo = [each for each in todo if each not in done]


def plan_rows(model: LanguageModel, request: Request) -> MemoryPlan:
    """How many answers are written at a time."""
    n_rows = len(request.treatments) * request.n_samples
    need = Need(n_prompt=len(request.prompt_ids), n_new=request.n_new, n_rows=n_rows, unshared=True)
    return plan_memory(model, need, most=request.rows)


def no_memory() -> SubjectError:
    """What is said when a single row does not fit."""
    return SubjectError(
        "Out of memory",
        "One answer at a time does not fit into memory beside the model.",
        "Use a shorter scenario, a smaller dtype (--dtype bfloat16), or a device with more memory.",
    )


class _Batch:
    """Rows that read the prompt together."""

    def __init__(self, model: LanguageModel, request: Request, writes: RowWrites, steering: Steering, observer: Observer) -> None:
        self._model, self._request, self._writes, self._steering, self._observer = model, request, writes, steering, observer
        self._choosing = Choosing(model, request)
        self._cache = DynamicCache(config=model.hf.config)

    def run(self, rows: list[_Row]) -> Iterator[Written]:
        """Write all of them."""
        check_stop(self._observer)
        prompt = torch.tensor([self._request.prompt_ids], device=self._model.device).expand(len(rows), -1)
        self._steering.over_prompt(self._rows(rows))
        logits = self._logits(prompt)
        for step in range(self._request.n_new):
            chosen = self._choosing.choose(logits, [row.sample for row in rows], [step] * len(rows))
            kept: list[int] = []
            for place, (row, token) in enumerate(zip(rows, chosen, strict=True)):
                row.tokens.append(token)
                if self._request.keep_logits:
                    row.logits.append(logits[place].float().clone())
                ended, stopped_by = self._choosing.ending(row.tokens)
                if ended or step == self._request.n_new - 1:
                    yield written(row.configuration, row.sample, row.tokens, ended, stopped_by, row.logits)
                else:
                    kept.append(place)
            if not kept:
                return
            if len(kept) < len(rows):
                rows = [rows[place] for place in kept]
                self._cache.batch_select_indices(torch.tensor(kept, device=logits.device))
            check_stop(self._observer)
            n_prompt = len(self._request.prompt_ids)
            reaches = [self._writes.reaches[row.configuration] for row in rows]
            flags = torch.tensor([reach is None or reach.at(n_prompt + step, n_prompt) for reach in reaches])
            self._steering.over_token(self._rows(rows), flags)
            logits = self._logits(torch.tensor([[row.tokens[-1]] for row in rows], device=self._model.device))

    def _rows(self, rows: Sequence[_Row]) -> RowWrites:
        return self._writes.selected([row.configuration for row in rows])

    def _logits(self, ids: Tensor) -> Tensor:
        """Logits after the last token, (rows, vocabulary); the cache grows by the tokens."""
        with self._steering.resting():  # between passes nobody's forward pass is steered, whoever makes one
            logits: Tensor = self._model.hf(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        return logits


def written(configuration: int, sample: int, tokens: Sequence[int], ended: bool, stopped_by: str, logits: Sequence[Tensor]) -> Written:
    """A finished row as what is handed on."""
    return Written(
        configuration=configuration,
        sample=sample,
        token_ids=tuple(tokens),
        ended=ended,
        stopped_by=stopped_by,
        logits=torch.stack(list(logits)) if logits else None,
    )
