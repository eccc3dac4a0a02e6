"""Which rows are written when: configurations wait in line, and take the slots that ended rows leave.

Slots are refilled when a quarter of them is free, so that prompts are read several at a time. If memory runs out, the rows under way go
back to the head of the line, and half as many are written at a time from then on: what has ended is never lost, and a row that is
begun again draws the same random numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audit.events import Observer, check_stop
from audit.records import Attention
from audit.steering.decoding import Decoder, Row
from audit.steering.fallback import no_memory, written
from audit.steering.generation import Choosing, Request, Written
from audit.steering.hooks import RowWrites, Steering, compile_rows, steer
from audit.steering.layerwise import Layerwise
from audit.steering.memory import PROMPT_TOKENS, MemoryPlan, Need, is_out_of_memory, plan_memory, release_cached
from audit.steering.prompts import ADDED_LAST, Entry, Prompt
from audit.steering.strengths import Scales
from audit.subject import Subject

_REFILL = 0.25
"""Share of the slots that is free before further configurations are begun."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One prompt's configurations, ready to be run."""

    subject: Subject
    runner: Layerwise
    request: Request
    writes: RowWrites
    """One row a configuration."""
    entries: tuple[Entry | None, ...]
    """Where each configuration leaves the unsteered model; None where the prompt is read as the unsteered model reads it."""
    frozen: tuple[bool, ...]
    """Whether each keeps the unsteered attention patterns."""

    @property
    def first(self) -> int:
        """The first position of the prompt that carries content."""
        return self.subject.model.first_content(self.request.prompt_ids)

    @property
    def upto(self) -> int:
        """Layers that the unsteered model has to be run through."""
        whole = self.runner.n_layers
        if any(entry is None or entry.token for entry in self.entries) or any(self.frozen):
            return whole
        return max((entry.layer + 1 for entry in self.entries if entry is not None), default=whole)

    @property
    def first_own(self) -> tuple[int, ...]:
        """The first layer where each configuration has keys and values of its own; the number of layers where it has none."""
        later = self.subject.dictionary.output_hook != "resid_pre"
        return tuple(self.runner.n_layers if entry is None else entry.layer + later for entry in self.entries)

    def again(self, entry: Entry) -> int:
        """The first layer that is run again for a configuration."""
        return entry.layer + (self.subject.dictionary.output_hook in ADDED_LAST)

    def prompt(self, *, whole: bool = False) -> Prompt:
        """The prompt as the unsteered model reads it; inside ``Layerwise.attending``."""
        return Prompt(
            self.runner,
            self.request.prompt_ids,
            self.writes,
            self.subject.dictionary,
            upto=self.upto,
            wants_queries=any(self.frozen),
            whole=whole,
        )

    @property
    def need(self) -> Need:
        """What it asks of memory."""
        rows = sum(1 + frozen for frozen in self.frozen) * self.request.n_samples
        return Need(
            n_prompt=len(self.request.prompt_ids),
            n_new=self.request.n_new,
            n_rows=rows,
            n_samples=self.request.n_samples,
            owners=tuple(sum(first <= layer for first in self.first_own) for layer in range(self.runner.n_layers)),
            frozen=any(self.frozen),
        )


def job_of(subject: Subject, request: Request, scales: Scales, runner: Layerwise | None = None) -> Job:
    """Make a request ready.

    Raises:
        UsageError: a treatment is refused.
    """
    model = subject.model
    writes = compile_rows(model, subject.dictionary, request.treatments, scales)
    n_prompt, first = len(request.prompt_ids), model.first_content(request.prompt_ids)
    entries: list[Entry | None] = []
    for treatment, reach in zip(request.treatments, writes.reaches, strict=True):
        start = None if reach is None else reach.start(n_prompt, first)
        entries.append(None if treatment is None or start is None else Entry.of(treatment.layers, start))
    frozen = tuple(each is not None and each.attention is Attention.FROZEN for each in request.treatments)
    return Job(
        subject=subject,
        runner=runner or Layerwise(model),
        request=request,
        writes=writes,
        entries=tuple(entries),
        frozen=frozen,
    )


def run(subject: Subject, request: Request, scales: Scales, *, observer: Observer) -> Iterator[Written]:
    """See ``generation.generate``.

    Raises:
        Interrupted, SubjectError, UsageError: as there.
    """
    job = job_of(subject, request, scales)
    line = deque((configuration, sample) for configuration in range(len(request.treatments)) for sample in range(request.n_samples))
    most = request.rows
    while line:
        plan = plan_memory(subject.model, job.need, most=most)
        schedule, failed = _Schedule(job, line, plan, observer), False
        try:
            yield from schedule.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        yield from schedule.ended()
        line.extendleft(reversed(schedule.under_way()))
        if failed and plan.rows <= job.need.least:
            raise no_memory()
        most = plan.rows // 2 if failed else most
        # What it held must be free before the next plan asks what is.
        del schedule
        release_cached(subject.model.device)


class _Schedule:
    """One way through the line, at one number of rows.

    Args:
        job: what is run.
        line: (configuration, sample) of rows that wait; rows are taken from its head.
        plan: how many at a time.
        observer: asked before every pass whether to stop.
    """

    def __init__(self, job: Job, line: deque[tuple[int, int]], plan: MemoryPlan, observer: Observer) -> None:
        self._job, self._line, self._plan, self._observer = job, line, plan, observer
        self._choosing = Choosing(job.subject.model, job.request)
        self._starts: dict[int, Tensor] = {}  # configuration → (vocabulary,) logits after the prompt, while rows of it wait
        self._logits: dict[int, list[Tensor]] = {}  # of rows under way, by identity, where they are kept
        self._admitting: list[tuple[int, int]] = []
        self._rows: list[Row] = []
        self._written: deque[Written] = deque()

    def under_way(self) -> list[tuple[int, int]]:
        """Rows that were begun and have not ended."""
        return [*((row.configuration, row.sample) for row in self._rows if not row.ended), *self._admitting]

    def ended(self) -> Iterator[Written]:
        """Rows that have ended, each handed on once."""
        while self._written:
            yield self._written.popleft()

    def run(self) -> Iterator[Written]:
        """Write every row of the line."""
        job = self._job
        with steer(job.subject.model, job.subject.dictionary, job.writes, first=job.first) as steering:
            prompt, decoder = self._begin(steering)
            while self._line or self._rows:
                check_stop(self._observer)
                # Between passes nobody's forward pass is steered, whoever makes one.
                with job.runner.attending(), steering.resting():
                    if self._should_refill(decoder):
                        self._take(decoder)
                    rows, logits = self._admit(prompt, decoder, steering) if self._admitting else _of_rows(decoder)
                self._choose(rows, logits)
                self._leave([row for row in rows if row.ended], decoder)
                yield from self.ended()

    def _begin(self, steering: Steering) -> tuple[Prompt, Decoder]:
        job, plan = self._job, self._plan
        check_stop(self._observer)
        with job.runner.attending(), steering.resting():
            steering.over_prompt(None)
            prompt = job.prompt()
            return prompt, Decoder(job.runner, prompt, job.writes, steering, n_rows=plan.rows, owned=plan.owned, n_new=job.request.n_new)

    def _should_refill(self, decoder: Decoder) -> bool:
        free = self._plan.rows - len(decoder.rows)
        return bool(self._line) and (not self._rows or free >= max(self._job.need.least, int(_REFILL * self._plan.rows)))

    def _admit(self, prompt: Prompt, decoder: Decoder, steering: Steering) -> tuple[list[Row], Tensor]:
        """Begin the rows that were taken; gives them with the logits after their prompts."""
        self._read_prompts(prompt, decoder, steering)
        begun = [self._begun(configuration, sample) for configuration, sample in self._admitting]
        logits = torch.stack([self._starts[row.configuration] for row in begun])
        decoder.admit(begun)
        self._rows, self._admitting = self._rows + begun, []
        waiting = {configuration for configuration, _ in self._line}
        self._starts = {configuration: found for configuration, found in self._starts.items() if configuration in waiting}
        return begun, logits

    def _take(self, decoder: Decoder) -> None:
        """Take rows from the head of the line while there are slots for them and for their prompts."""
        free, held, n_held = self._plan.rows - len(decoder.rows), decoder.owners, list(decoder.held)
        while self._line:
            configuration, _ = self._line[0]
            takes = 1 + self._job.frozen[configuration]
            own = range(self._job.first_own[configuration], len(n_held)) if configuration not in held else range(0)
            if takes > free or any(n_held[layer] >= self._plan.owned[layer] for layer in own):
                return
            for layer in own:
                n_held[layer] += 1
            free -= takes
            held.add(configuration)
            self._admitting.append(self._line.popleft())

    def _begun(self, configuration: int, sample: int) -> Row:
        row = Row(configuration, sample)
        if self._job.frozen[configuration]:
            row.lender = Row(-1, sample, tokens=row.tokens)
        return row

    def _read_prompts(self, prompt: Prompt, decoder: Decoder, steering: Steering) -> None:
        """Logits after the prompt, and keys and values where they are its own, of configurations that begin."""
        job, together = self._job, dict[Entry, list[int]]()
        for configuration in dict.fromkeys(configuration for configuration, _ in self._admitting):
            if configuration in self._starts:
                continue
            entry = job.entries[configuration]
            if entry is None:
                assert prompt.logits is not None
                self._starts[configuration] = prompt.logits[0]
            else:
                together.setdefault(entry, []).append(configuration)
        most = max(1, PROMPT_TOKENS // prompt.n_tokens)
        for entry, members in together.items():
            for start in range(0, len(members), most):
                check_stop(self._observer)
                some = members[start : start + most]
                frozen = torch.tensor([job.frozen[each] for each in some])
                steered = prompt.steered(job.writes.selected(some), entry, steering, frozen)
                decoder.keep(some, steered)
                self._starts |= dict(zip(some, steered.logits, strict=True))

    def _choose(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Give every row its next token; what has ended is kept to be handed on, whatever happens next."""
        chosen = self._choosing.choose(logits, [row.sample for row in rows], [len(row.tokens) for row in rows])
        for place, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            row.tokens.append(token)
            if self._job.request.keep_logits:
                self._logits.setdefault(id(row), []).append(logits[place].float().clone())
            by_itself, stopped_by = self._choosing.ending(row.tokens)
            if by_itself or len(row.tokens) == self._job.request.n_new:
                kept = self._logits.pop(id(row), ())
                self._written.append(written(row.configuration, row.sample, row.tokens, by_itself, stopped_by, kept))
                row.ended = True

    def _leave(self, ended: Sequence[Row], decoder: Decoder) -> None:
        if not ended:
            return
        gone = {id(row) for row in ended}
        self._rows = [row for row in self._rows if id(row) not in gone]
        decoder.release(ended)
        needed = {row.configuration for row in self._rows} | {configuration for configuration, _ in self._line}
        for configuration in {row.configuration for row in ended} - needed:
            decoder.forget(configuration)


def _of_rows(decoder: Decoder) -> tuple[list[Row], Tensor]:
    """Every row and the logits after its last token, without the twins that lend to others."""
    logits, rows = decoder.step(), decoder.rows
    own = [row.slot for row in rows if row.configuration >= 0]
    if len(own) == len(rows):
        return list(rows), logits
    return [rows[slot] for slot in own], logits[torch.tensor(own, device=logits.device)]
