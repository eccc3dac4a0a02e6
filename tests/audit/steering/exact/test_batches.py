"""What stands beside a configuration, how many rows are decoded at a time, and who ends first, change no token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from audit.errors import UsageError
from audit.records import Attention, Operation, Positions, StrengthUnit, Treatment
from audit.steering.generation import engine_of

Cells = list[Treatment | None]


def mixed(case: Any, exact: Any, form: str = "clt") -> Cells:
    """Unsteered, free and, where patterns can be frozen, frozen."""
    some = list(exact.some_treatments(case.subjects[form].dictionary))
    frozen = [] if case.name == "gpt2" else [replace(some[0], attention=Attention.FROZEN), replace(some[3], attention=Attention.FROZEN)]
    return [*some[:3], None, *frozen, *some[3:]]


def tokens_of(found: Any) -> dict[tuple[int, int], tuple[int, ...]]:
    return {place: one.token_ids for place, one in found.items()}


@pytest.mark.parametrize(("rows", "n_samples"), [(1, 1), (3, 2)])
def test_rows_at_a_time(some: Any, exact: Any, rows: int, n_samples: int) -> None:
    cells = mixed(some, exact)[2:]
    asked = exact.request(some, cells, rows=rows, uniforms=np.zeros((n_samples, exact.new_tokens)))
    found = exact.written(some, "clt", asked)
    assert exact.disagreements(some, "clt", asked, found, "one pass") == []
    every = tokens_of(exact.written(some, "clt", replace(asked, rows=None)))
    assert tokens_of(found) == every
    assert all(every[number, 0] == every[number, sample] for number, sample in every)  # greedy samples are one


def silent(case: Any, exact: Any) -> list[Treatment]:
    """Adding nothing and multiplying by 1, at every kind of positions."""
    of = exact.treatments(case.subjects["clt"].dictionary)
    return [one for place in range(5) for one in (replace(of[place], strength=0.0), replace(of[5 + place], strength=1.0))]


@pytest.mark.parametrize("engine", [None, "transformers"])
def test_a_treatment_that_changes_nothing_is_unsteered_to_the_last_bit(case: Any, exact: Any, engine: str | None) -> None:
    (plain,) = exact.written(case, "clt", exact.request(case, [None]), engine).values()
    for cell in silent(case, exact)[::3]:
        (found,) = exact.written(case, "clt", exact.request(case, [cell]), engine).values()
        assert torch.equal(found.logits, plain.logits), cell
        assert found.token_ids == plain.token_ids


def test_a_treatment_that_changes_nothing_is_unsteered_among_others_up_to_rounding(case: Any, exact: Any) -> None:
    """It has a prompt of its own, which is read in products of another shape than the unsteered one."""
    of, nothing = exact.treatments(case.subjects["clt"].dictionary), silent(case, exact)[::3]
    beside = exact.written(case, "clt", exact.request(case, [of[7], None, of[1]]))
    for cell in nothing:
        found = exact.written(case, "clt", exact.request(case, [of[7], cell, of[1]]))
        assert [found[number, 0].token_ids for number in range(3)] == [beside[number, 0].token_ids for number in range(3)]
        torch.testing.assert_close(found[1, 0].logits, beside[1, 0].logits, atol=1e-5, rtol=0)


def test_a_frozen_treatment_that_changes_nothing_is_unsteered(adapted: Any, exact: Any) -> None:
    nothing = [replace(one, attention=Attention.FROZEN) for one in silent(adapted, exact)]
    asked = exact.request(adapted, [None, *nothing])
    for one in exact.written(adapted, "clt", asked).values():
        assert one.token_ids == adapted.unsteered
        torch.testing.assert_close(one.logits, adapted.answer("clt", None).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [None, 4])
def test_rows_that_end_leave_the_others_as_they_were(some: Any, exact: Any, rows: int | None) -> None:
    cells = [None, *exact.treatments(some.subjects["clt"].dictionary)]
    whole = [some.answer("clt", cell) for cell in cells]
    ends = (whole[0].token_ids[20], whole[3].token_ids[7], whole[8].token_ids[41])
    found = exact.written(some, "clt", exact.request(some, cells, ends=ends, rows=rows))
    lengths = set()
    for number, answer in enumerate(whole):
        length = next((step + 1 for step, token in enumerate(answer.token_ids) if token in ends), exact.new_tokens)
        lengths.add(length)
        assert found[number, 0].token_ids == answer.token_ids[:length], cells[number]
        assert (found[number, 0].logits - answer.logits[:length]).abs().max() <= 1e-4
        assert found[number, 0].stopped_by == ""
    assert exact.new_tokens in lengths
    assert len(lengths) > 5


@pytest.mark.parametrize("rows", [None, 4])
def test_stop_texts_end_a_row_with_the_token_that_completes_them(some: Any, exact: Any, rows: int | None) -> None:
    cells = [None, *exact.treatments(some.subjects["clt"].dictionary)]
    whole = [some.answer("clt", cell).token_ids for cell in cells]
    decode = some.model.decode
    two = decode(whole[0][:22])[len(decode(whole[0][:20])) :].strip()  # of two tokens
    words = [decode([token]).strip() for token in whole[3]]
    one = next(word for word in words[8:] if len(word) > 3 and word.isalpha())
    asked = exact.request(some, cells, stop=(two, one), rows=rows)
    found = exact.written(some, "clt", asked)
    for number, tokens in enumerate(whole):
        texts = (decode(tokens[: step + 1]) for step in range(len(tokens)))
        length = next((step + 1 for step, text in enumerate(texts) if two in text or one in text), len(tokens))
        assert found[number, 0].token_ids == tokens[:length], cells[number]
        ended = [stop for stop in (two, one) if stop in decode(tokens[:length])]
        assert (found[number, 0].stopped_by in ended) if ended else (found[number, 0].stopped_by == "")
    assert found[0, 0].stopped_by != ""
    assert found[3, 0].stopped_by != ""
    assert len({len(one.token_ids) for one in found.values()}) > 4


def test_a_stop_text_counts_as_the_whole_answer_reads(cases: Any, exact: Any) -> None:
    # One byte of a character that was never finished makes the next byte unreadable, which by itself is an exclamation mark.
    case, stop = cases("llama"), "!"
    cells = exact.treatments(case.subjects["clt"].dictionary)[20:]
    answers = [case.answer("clt", cell).token_ids for cell in cells]
    found = exact.written(case, "clt", exact.request(case, cells, stop=(stop,)))
    for number, tokens in enumerate(answers):
        length = next((step + 1 for step in range(len(tokens)) if stop in case.model.decode(tokens[: step + 1])), len(tokens))
        assert found[number, 0].token_ids == tokens[:length], cells[number]


def splits(n: int) -> Iterable[list[list[int]]]:
    """Ways to spread configurations over requests: one at a time, in pairs, all in reverse order."""
    yield [[number] for number in range(n)]
    yield [list(range(start, min(start + 2, n))) for start in range(0, n, 2)]
    yield [list(reversed(range(n)))]


def test_a_draw_does_not_depend_on_the_batch(some: Any, exact: Any) -> None:
    cells = mixed(some, exact)[2:7]
    drawn = np.random.default_rng(3).random((2, 40))
    asked = exact.request(some, cells, uniforms=drawn, temperature=1.0, keep_logits=False)
    together = tokens_of(exact.written(some, "clt", asked))
    assert len(set(together.values())) == len(together)
    assert tokens_of(exact.written(some, "clt", replace(asked, rows=3))) == together
    for split in splits(len(cells)):
        apart: dict[tuple[int, int], tuple[int, ...]] = {}
        for numbers in split:
            found = exact.written(some, "clt", replace(asked, treatments=tuple(cells[number] for number in numbers)))
            apart |= {(numbers[place], sample): one.token_ids for (place, sample), one in found.items()}
        assert apart == together
    ended = exact.written(some, "clt", replace(asked, ends=(together[0, 0][9], together[2, 1][30])))
    assert all(one.token_ids == together[place][: len(one.token_ids)] for place, one in ended.items())


def test_a_sample_depends_on_its_own_uniforms_alone(some: Any, exact: Any) -> None:
    cells = mixed(some, exact)[:4]
    drawn = np.random.default_rng(5).random((4, exact.new_tokens))
    asked = exact.request(some, cells, uniforms=drawn, temperature=0.7, keep_logits=False)
    every = tokens_of(exact.written(some, "clt", asked))
    fewer = tokens_of(exact.written(some, "clt", replace(asked, uniforms=drawn[2:])))
    assert fewer == {(cell, sample): every[cell, sample + 2] for cell in range(len(cells)) for sample in range(2)}


def test_a_draw_inverts_the_cumulated_distribution(some: Any, exact: Any) -> None:
    cells = mixed(some, exact)[:5]
    drawn = np.random.default_rng(9).random((1, exact.new_tokens))
    found = exact.written(some, "clt", exact.request(some, cells, uniforms=drawn, temperature=1.5))
    for number, cell in enumerate(cells):
        one = found[number, 0]
        logits = some.reference("clt").read_back(cell, some.prompt_ids, one.token_ids, 1)
        assert (one.logits - logits).abs().max() <= 1e-4
        cumulated = torch.softmax(logits.double() / 1.5, dim=-1).cumsum(-1)
        for step, token in enumerate(one.token_ids):
            below = float(cumulated[step, token - 1]) if token else 0.0
            assert below - 1e-4 <= drawn[0, step] <= float(cumulated[step, token]) + 1e-4


def test_an_architecture_without_an_adapter_says_so(cases: Any, exact: Any) -> None:
    engine, reason = engine_of(cases("gpt2").model)
    assert engine == "transformers"
    assert "gpt2" in reason
    dictionary = cases("gpt2").subjects["clt"].dictionary
    with pytest.raises(UsageError, match="gpt2"):
        exact.written(cases("gpt2"), "clt", exact.request(cases("gpt2"), [None]), "layerwise")
    with pytest.raises(UsageError, match="gpt2"):
        exact.written(cases("gpt2"), "clt", exact.request(cases("gpt2"), exact.treatments(dictionary, Attention.FROZEN)[:1]))


def test_an_architecture_with_an_adapter_is_run_by_it(adapted: Any) -> None:
    assert engine_of(adapted.model) == ("layerwise", "")


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_the_fallback_gives_the_tokens_of_the_layerwise_engine(cases: Any, exact: Any, name: str) -> None:
    case = cases(name)
    free: Cells = [cell for cell in mixed(case, exact) if cell is None or cell.attention is Attention.FREE]
    asked = exact.request(case, [*free, *exact.treatments(case.subjects["clt"].dictionary)[::3]])
    layerwise, fallback = (exact.written(case, "clt", asked, engine) for engine in ("layerwise", "transformers"))
    assert tokens_of(fallback) == tokens_of(layerwise)
    assert exact.disagreements(case, "clt", asked, fallback, "one pass") == []
    assert max(float((one.logits - layerwise[place].logits).abs().max()) for place, one in fallback.items()) <= 1e-4


def test_ablation_is_multiplication_by_nothing(adapted: Any, exact: Any) -> None:
    of = exact.treatments(adapted.subjects["sae_topk"].dictionary)
    ablated = [one for one in of if one.operation is Operation.ABLATE and one.positions is not Positions.SPANS]
    by_zero = [replace(one, operation=Operation.MULTIPLICATIVE, unit=StrengthUnit.FACTOR) for one in ablated]
    found = tokens_of(exact.written(adapted, "sae_topk", exact.request(adapted, [*ablated, *by_zero])))
    assert [found[number, 0] for number in range(3)] == [found[number, 0] for number in range(3, 6)]
