"""Rows come and go, memory runs out, prompts are read no oftener than they have to be; the answers are the same."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.errors import SubjectError
from audit.events import SilentObserver
from audit.records import Attention, FeatureId, Positions, StrengthUnit, Treatment
from audit.steering import fallback, memory, scheduling
from audit.steering.decoding import Decoder
from audit.steering.generation import Engine, Request, generate
from audit.steering.layerwise import Layerwise
from audit.steering.sampling import uniforms
from audit.steering.strengths import Scales
from audit.steering.treatments import ablate, additive, multiplicative
from audit.subject import Subject

DRAWN = np.stack([uniforms(0, 0, k, 24) for k in range(4)])
ENDS = tuple(range(0, 480, 7))


@pytest.fixture
def cells(tiny_subject: Subject, firing: FeatureId) -> tuple[Treatment | None, ...]:
    dictionary = tiny_subject.dictionary
    return (
        additive(dictionary, "clt/1/7", 1),
        None,
        additive(dictionary, str(firing), 0.5, attention=Attention.FROZEN),
        additive(dictionary, "clt/2/3", 1),
        multiplicative(dictionary, str(firing), -2, positions=Positions.GENERATED),
        ablate(dictionary, str(firing), attention=Attention.FROZEN),
        additive(dictionary, "clt/0/4", -1, positions=Positions.SPANS, spans=((2, 4), (-1, -1))),
    )


Answers = dict[tuple[int, int], tuple[int, ...]]
Ask = Callable[..., Answers]


@pytest.fixture
def ask(tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...]) -> Ask:
    def answers(treatments: tuple[Treatment | None, ...], rows: int | None = None, engine: Engine | None = None) -> Answers:
        request = Request(prompt_ids=prompt_ids, treatments=treatments, uniforms=DRAWN, temperature=1.0, ends=ENDS, rows=rows)
        found = list(generate(tiny_subject, request, measured, observer=SilentObserver(), engine=engine))
        assert len({(each.configuration, each.sample) for each in found}) == len(found) == len(treatments) * len(DRAWN)
        assert all(each.ended == (each.token_ids[-1] in ENDS) for each in found)
        return {(each.configuration, each.sample): each.token_ids for each in found}

    return answers


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13])
def test_answers_do_not_depend_on_how_many_rows_are_written_at_a_time(
    ask: Ask, cells: tuple[Treatment | None, ...], rows: int
) -> None:
    assert ask(cells, rows) == ask(cells)


def test_answers_do_not_depend_on_what_else_is_asked_for(ask: Ask, cells: tuple[Treatment | None, ...]) -> None:
    together = ask(cells)
    for configuration, cell in enumerate(cells):
        assert ask((cell,)) == {(0, sample): together[configuration, sample] for sample in range(len(DRAWN))}
    backwards = ask(cells[::-1])
    assert backwards == {(len(cells) - 1 - configuration, sample): tokens for (configuration, sample), tokens in together.items()}


def test_slots_of_rows_that_have_ended_are_filled(
    ask: Ask, cells: tuple[Treatment | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    step = Decoder.step

    def counted(self: Decoder) -> Tensor:
        used.append(len(self.rows))
        return step(self)

    monkeypatch.setattr(Decoder, "step", counted)
    free = tuple(cell for cell in cells if cell is None or cell.attention is Attention.FREE)
    lengths = [len(tokens) for tokens in ask(free, 4).values()]
    assert sum(used) == sum(lengths) - len(lengths)  # the first token comes with the prompt
    assert max(used) == 4
    one_batch_after_the_other = sum(max(lengths[start : start + 4]) - 1 for start in range(0, len(lengths), 4))
    assert len(used) < one_batch_after_the_other


@pytest.mark.parametrize("when", [1, 4, 9, 30])
def test_when_memory_runs_out_half_as_many_rows_go_on_and_nothing_is_lost(
    ask: Ask, cells: tuple[Treatment | None, ...], monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    expected, rows, steps = ask(cells), [], Counter[str]()
    step, run = Decoder.step, scheduling._Schedule.__init__

    def begun(self: Any, job: Any, line: Any, plan: Any, observer: Any) -> None:
        rows.append(plan.rows)
        run(self, job, line, plan, observer)

    def failing(self: Decoder) -> Tensor:
        steps["all"] += 1
        if steps["all"] in (when, when + 2):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self)

    monkeypatch.setattr(scheduling._Schedule, "__init__", begun)
    monkeypatch.setattr(Decoder, "step", failing)
    assert ask(cells, 16) == expected
    assert rows == [16, 8, 4]


def test_memory_that_runs_out_while_a_prompt_is_read_loses_nothing(
    ask: Ask, cells: tuple[Treatment | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audit.steering.prompts import Prompt

    expected, calls, steered = ask(cells), Counter[str](), Prompt.steered

    def failing(self: Prompt, *args: Any) -> Any:
        calls["all"] += 1
        if calls["all"] == 3:
            raise MemoryError
        return steered(self, *args)

    monkeypatch.setattr(Prompt, "steered", failing)
    assert ask(cells, 8) == expected
    assert calls["all"] > 3


@pytest.mark.parametrize("engine", ["layerwise", "transformers"])
def test_a_single_row_that_does_not_fit_is_said(ask: Ask, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    def full(self: Any, *args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "step", full)
    monkeypatch.setattr(fallback._Batch, "_logits", full)
    with pytest.raises(SubjectError, match="Out of memory"):
        ask((None,), 4, engine)


def test_other_errors_are_not_taken_for_lack_of_memory(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Decoder) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Decoder, "step", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        ask((None,))


def test_the_other_engine_halves_its_rows_too(ask: Ask, cells: tuple[Treatment | None, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    free = tuple(cell for cell in cells if cell is None or cell.attention is Attention.FREE)
    expected, calls, logits = ask(free), Counter[str](), fallback._Batch._logits

    def failing(self: Any, ids: Tensor) -> Tensor:
        calls["all"] += 1
        if calls["all"] == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(self, ids)

    monkeypatch.setattr(fallback._Batch, "_logits", failing)
    assert ask(free, 8, "transformers") == expected


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Layer → tokens that it computed in passes over a prompt."""
    found: Counter[int] = Counter()
    run = Layerwise.run

    def counted(self: Layerwise, layer: int, hidden: Tensor, *rest: Any) -> Tensor:
        found[layer] += hidden.shape[0] * hidden.shape[1]
        return run(self, layer, hidden, *rest)

    monkeypatch.setattr(Layerwise, "run", counted)
    monkeypatch.setattr(scheduling, "_of_rows", lambda decoder: pytest.fail("one token is asked for"))
    return found


def ask_first(subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], cells: tuple[Treatment | None, ...]) -> None:
    """One token of each configuration, and five samples: all of it comes from the prompts."""
    request = Request(prompt_ids=prompt_ids, treatments=cells, uniforms=np.zeros((5, 1)), temperature=0)
    assert len(list(generate(subject, request, measured, observer=SilentObserver()))) == 5 * len(cells)


def test_a_prompt_is_read_once_below_what_is_written_and_once_a_configuration_above(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], computed: Counter[int]
) -> None:
    n, dictionary = len(prompt_ids), tiny_subject.dictionary
    ask_first(tiny_subject, measured, prompt_ids, tuple(additive(dictionary, f"clt/0/{k}", 1) for k in range(6)))
    # Layer 0 is written behind its MLP: not again. Of layer 2, the last, keys for all positions and the rest for the last one.
    assert computed == {0: n, 1: 6 * n, 2: 6 * (n + 1)}


def test_what_is_written_to_generated_tokens_leaves_the_prompt_to_be_read_once(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], computed: Counter[int]
) -> None:
    n, dictionary = len(prompt_ids), tiny_subject.dictionary
    generated = tuple(additive(dictionary, f"clt/0/{k}", 1, positions=Positions.GENERATED) for k in range(6))
    ask_first(tiny_subject, measured, prompt_ids, (*generated, None))
    assert computed == {0: n, 1: n, 2: n + 1}


def test_positions_before_the_first_one_written_are_not_read_again(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], computed: Counter[int]
) -> None:
    long = prompt_ids * 4
    n, dictionary = len(long), tiny_subject.dictionary
    late = additive(dictionary, "clt/0/3", 1, positions=Positions.SPANS, spans=((-8, -1),))
    ask_first(tiny_subject, measured, long, (late, late))
    assert computed == {0: n, 1: n + 2 * 8, 2: n + 1 + 2 * (8 + 1)}


def test_as_many_rows_as_fit_are_written_at_a_time(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    step = Decoder.step

    def counted(self: Decoder) -> Tensor:
        rows.append(len(self.rows))
        return step(self)

    monkeypatch.setattr(Decoder, "step", counted)
    ask((None, None, None))
    assert max(rows) > 8
    rows.clear()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    ask((None, None, None))
    assert set(rows) == {1}


@pytest.mark.parametrize("where", ["release", "_share", "keep", "admit"])
@pytest.mark.parametrize("when", [1, 3])
def test_memory_that_runs_out_between_passes_loses_nothing(
    ask: Ask, cells: tuple[Treatment | None, ...], monkeypatch: pytest.MonkeyPatch, where: str, when: int
) -> None:
    """Answers that ended in the same step are handed on, and none of them twice."""
    expected, calls, method = ask(cells), Counter[str](), getattr(Decoder, where)

    def failing(self: Decoder, *args: Any) -> Any:
        calls["all"] += 1
        if calls["all"] == when:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return method(self, *args)

    monkeypatch.setattr(Decoder, where, failing)
    assert ask(cells, 16) == expected
    assert calls["all"] > when


def test_memory_that_runs_out_while_tokens_are_chosen_loses_nothing(
    ask: Ask, cells: tuple[Treatment | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audit.steering.generation import Choosing

    expected, calls, ending = ask(cells), Counter[str](), Choosing.ending

    def failing(self: Choosing, token_ids: list[int]) -> tuple[bool, str]:
        calls["all"] += 1
        if calls["all"] in (7, 40):
            raise MemoryError
        return ending(self, token_ids)

    monkeypatch.setattr(Choosing, "ending", failing)
    assert ask(cells, 16) == expected


def test_what_failed_is_free_before_it_is_asked_what_is(
    ask: Ask, cells: tuple[Treatment | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    made: list[Any] = []
    init, step, plan = Decoder.__init__, Decoder.step, memory.plan_memory

    def noted(self: Decoder, *args: Any, **options: Any) -> None:
        made.append(weakref.ref(self))
        init(self, *args, **options)

    def once(self: Decoder) -> Tensor:
        if len(made) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self)

    def counted(*args: Any, **options: Any) -> Any:
        alive.append(sum(each() is not None for each in made))
        return plan(*args, **options)

    monkeypatch.setattr(Decoder, "__init__", noted)
    monkeypatch.setattr(Decoder, "step", once)
    monkeypatch.setattr(scheduling, "plan_memory", counted)
    ask(cells, 16)
    assert alive == [0, 0]


@pytest.mark.parametrize("n", [5, 9])
def test_the_other_engines_last_rows_may_run_out_of_memory_too(ask: Ask, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    expected, batches, run = ask((None,) * n), [], fallback._Batch.run

    def failing(self: Any, rows: list[Any]) -> Any:
        batches.append(len(rows))
        if len(batches) == 2:
            raise MemoryError
        return run(self, rows)

    monkeypatch.setattr(fallback._Batch, "run", failing)
    assert ask((None,) * n, 4 * n - 2, "transformers") == expected
    assert batches == [4 * n - 2, 2, 1, 1]


def test_numbers_that_are_not_finite_stay_in_their_own_row(ask: Ask, tiny_subject: Subject) -> None:
    dictionary = tiny_subject.dictionary
    broken = additive(dictionary, "clt/0/7", 3e38, unit=StrengthUnit.ABSOLUTE)
    sound = (additive(dictionary, "clt/1/7", 1), None, additive(dictionary, "clt/0/4", -1, positions=Positions.GENERATED), None)
    expected = ask(sound)
    for rows in (3, 5, 7):
        found = ask((broken, *sound, broken, broken), rows)
        assert {(configuration - 1, k): tokens for (configuration, k), tokens in found.items() if 1 <= configuration <= 4} == expected


def test_prompts_wait_for_room_where_few_of_them_are_held(
    ask: Ask, cells: tuple[Treatment | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, held = memory.plan_memory, []
    keep = Decoder.keep

    def tight(*args: Any, **options: Any) -> Any:
        return replace(plan(*args, **options), owned=(1, 1, 1))

    def counted(self: Decoder, *args: Any) -> None:
        keep(self, *args)
        held.append(max(self.held))

    monkeypatch.setattr(scheduling, "plan_memory", tight)
    monkeypatch.setattr(Decoder, "keep", counted)
    steered = tuple(cell for cell in cells if cell is not None)
    expected = ask(steered, 12)
    assert set(held) <= {0, 1}
    monkeypatch.undo()
    assert ask(steered, 12) == expected
