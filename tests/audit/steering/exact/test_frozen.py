"""Frozen attention: patterns of the unsteered model on the same tokens, values of the steered one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from audit.records import Attention


def test_every_operation_at_every_positions_is_patterns_of_the_unsteered_model(adapted: Any, exact: Any) -> None:
    asked = exact.request(adapted, exact.treatments(adapted.subjects["clt"].dictionary, Attention.FROZEN))
    found = exact.written(adapted, "clt", asked)
    assert exact.disagreements(adapted, "clt", asked, found, "one pass") == []
    free = [adapted.answer("clt", replace(cell, attention=Attention.FREE)).token_ids for cell in asked.treatments]
    assert all(found[number, 0].token_ids != tokens for number, tokens in enumerate(free))  # the answers cross what patterns change


def check(case: Any, exact: Any, form: str) -> None:
    free = exact.some_treatments(case.subjects[form].dictionary)[:5]
    cells = [cell for one in free for cell in (replace(one, attention=Attention.FROZEN), one)]
    asked = exact.request(case, [*cells[:5], None, *cells[5:]])
    assert exact.disagreements(case, form, asked, exact.written(case, form, asked), "one pass") == []


def test_frozen_and_free_and_unsteered_in_one_batch(adapted: Any, exact: Any) -> None:
    check(adapted, exact, "sae_mid")


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("form", ["sae_post", "sae_topk", "sae_heads"])
def test_frozen_with_other_dictionaries(cases: Any, exact: Any, name: str, form: str) -> None:
    check(cases(name), exact, form)


def test_token_by_token(adapted: Any, exact: Any) -> None:
    cell = exact.treatments(adapted.subjects["clt"].dictionary, Attention.FROZEN)[24]
    found = exact.written(adapted, "clt", exact.request(adapted, [cell]))
    assert found[0, 0].token_ids == adapted.recomputed("clt", cell).token_ids
