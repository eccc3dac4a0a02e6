"""One batch of many treatments gives, for each, the tokens and logits of plain transformers with that treatment alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from audit.records import Attention, Positions


def test_every_operation_at_every_positions_is_generate_with_hooks(case: Any, exact: Any) -> None:
    cells = [None, *exact.treatments(case.subjects["clt"].dictionary)]
    asked = exact.request(case, cells)
    found = exact.written(case, "clt", asked)
    assert exact.disagreements(case, "clt", asked, found, "generate") == []
    assert {len(one.token_ids) for one in found.values()} == {exact.new_tokens}
    assert {one.stopped_by for one in found.values()} == {""}


def check(case: Any, exact: Any, form: str) -> None:
    asked = exact.request(case, [None, *exact.some_treatments(case.subjects[form].dictionary)])
    assert exact.disagreements(case, form, asked, exact.written(case, form, asked), "one pass") == []


@pytest.mark.parametrize("form", ["plt_jumprelu", "sae_mid"])
def test_transcoders_and_what_is_written_between_attention_and_mlp(case: Any, exact: Any, form: str) -> None:
    check(case, exact, form)


@pytest.mark.parametrize("form", ["plt", "sae_post", "sae_topk", "sae_attn", "sae_heads", "sae_pre"])
def test_other_dictionaries(some: Any, exact: Any, form: str) -> None:
    check(some, exact, form)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_before_the_norm_that_follows_the_mlp(cases: Any, exact: Any, name: str) -> None:
    check(cases(name), exact, "plt_raw")


@pytest.mark.parametrize("form", ["vector_post", "vector_pre"])
def test_directions(some: Any, exact: Any, form: str) -> None:
    additive = exact.treatments(some.subjects[form].dictionary)[:5]
    cells = [None, *additive, *(replace(one, direction=f"random/7@{one.direction}", strength=-0.5) for one in additive)]
    asked = exact.request(some, cells)
    assert exact.disagreements(some, form, asked, exact.written(some, form, asked), "one pass") == []


@pytest.mark.parametrize("length", [2, 17])
def test_short_prompts(case: Any, exact: Any, length: int) -> None:
    check_length(case, exact, length)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("length", [1, 15, 16])
def test_prompts_of_bos_alone_and_as_long_as_the_window(cases: Any, exact: Any, name: str, length: int) -> None:
    check_length(cases(name), exact, length)


def check_length(case: Any, exact: Any, length: int) -> None:
    every = exact.some_treatments(case.subjects["clt"].dictionary)
    cells = [None, *(replace(one, spans=((1, 1), (length + 3, length + 9), (-1, -1)) if one.spans else ()) for one in every)]
    frozen = [replace(cell, attention=Attention.FROZEN) for cell in cells[1:3] if cell is not None and case.name != "gpt2"]
    asked = exact.request(case, [*cells, *frozen], prompt_ids=case.prompt_ids[:length])
    assert exact.disagreements(case, "clt", asked, exact.written(case, "clt", asked), "one pass") == []


def test_the_first_token_is_never_written_to(case: Any, exact: Any) -> None:
    cell = replace(exact.treatments(case.subjects["clt"].dictionary)[2], positions=Positions.SPANS, spans=((0, 0),))
    asked = exact.request(case, [None, cell, replace(cell, spans=((-len(case.prompt_ids), -len(case.prompt_ids)),))])
    found = exact.written(case, "clt", asked)
    assert {found[number, 0].token_ids for number in range(3)} == {case.unsteered}


def test_positions_behind_the_answer_and_a_single_one_in_it(case: Any, exact: Any) -> None:
    n, strong = len(case.prompt_ids), replace(exact.treatments(case.subjects["clt"].dictionary)[2], positions=Positions.SPANS, strength=2.0)
    cells = [
        replace(strong, spans=spans)
        for spans in (((n + 64, n + 90),), ((n + 63, n + 63),), ((n + 62, n + 62),), ((n, n),), ((n - 1, n + 2),))
    ]
    asked = exact.request(case, cells)
    found = exact.written(case, "clt", asked)
    assert exact.disagreements(case, "clt", asked, found, "one pass") == []
    # The pass of the last token chooses none, so that what is written there changes nothing.
    assert found[0, 0].token_ids == found[1, 0].token_ids == case.unsteered
    assert found[2, 0].token_ids[:63] == case.unsteered[:63]
    assert found[3, 0].token_ids[0] == case.unsteered[0]
