"""The references agree among themselves, and what they are made of can tell a wrong engine from a right one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from audit.records import Attention, Operation

ROUNDING = 4e-5
"""More than two ways to compute a logit differ by."""


def test_features_fire_on_a_fair_part_of_prompt_and_answer(case: Any, exact: Any) -> None:
    n_prompt = len(case.prompt_ids) - 1
    for form, subject in case.subjects.items():
        if subject.dictionary.kind == "vector":
            continue
        for layer, x in enumerate(case.held(subject.dictionary.input_hook)):
            fires = torch.stack([exact.activation(subject.dictionary.at(layer), x[None], index)[0] > 0 for index in range(24)])
            for part in (fires[:, :n_prompt], fires[:, n_prompt:]):
                share = part.float().mean(1)
                assert 0.2 < float(share.mean()) < 0.6, (form, layer)
                assert float((share > 0.05).float().mean()) > 0.8, (form, layer)


def test_the_activation_is_that_of_the_dictionary(case: Any, exact: Any) -> None:
    for subject in case.subjects.values():
        for layer, x in enumerate(case.held(subject.dictionary.input_hook)):
            weights = subject.dictionary.at(layer)
            by_hand = torch.stack([exact.activation(weights, x[None], index)[0] for index in range(24)], dim=-1)
            torch.testing.assert_close(weights.encode(x), by_hand, atol=1e-5, rtol=1e-5)


def test_no_answer_is_near_a_tie_nor_constant_nor_another_treatments(case: Any, exact: Any) -> None:
    cells = [one for one in exact.treatments(case.subjects["clt"].dictionary) if one.operation is not Operation.ABLATE]
    answers = [case.answer("clt", cell) for cell in [None, *cells]]
    assert min(answer.margin for answer in answers) > ROUNDING
    assert min(case.reference("clt").clearances) > 1e-5
    assert len({answer.token_ids for answer in answers}) == len(answers)
    assert min(len(set(answer.token_ids)) for answer in answers) > 8
    assert 1 < float(torch.stack([answer.logits.abs().amax() for answer in answers]).max()) < 20


def test_generate_with_a_cache_is_one_pass_without(case: Any, exact: Any) -> None:
    reference = case.reference("clt")
    for cell in (None, *exact.treatments(reference.dictionary)[::6]):
        answer = case.answer("clt", cell)
        again = reference.read_back(cell, case.prompt_ids, answer.token_ids, 1)
        torch.testing.assert_close(again, answer.logits, atol=ROUNDING, rtol=0)
        assert tuple(again.argmax(-1).tolist()) == answer.token_ids


def test_frozen_recomputed_token_by_token_is_one_pass(adapted: Any, exact: Any) -> None:
    reference = adapted.reference("clt")
    cell = exact.treatments(reference.dictionary, Attention.FROZEN)[24]
    answer = adapted.recomputed("clt", cell)
    torch.testing.assert_close(reference.read_back(cell, adapted.prompt_ids, answer.token_ids, 1), answer.logits, atol=ROUNDING, rtol=0)
    assert answer.token_ids != adapted.answer("clt", replace(cell, attention=Attention.FREE)).token_ids


def test_patterns_of_its_own_change_nothing(adapted: Any, exact: Any) -> None:
    reference = adapted.reference("clt")
    nothing = replace(exact.treatments(reference.dictionary, Attention.FROZEN)[2], strength=0.0)
    answer = adapted.answer("clt", None)
    again = reference.read_back(nothing, adapted.prompt_ids, answer.token_ids, 1)
    torch.testing.assert_close(again, answer.logits, atol=ROUNDING, rtol=0)
