from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.steering import memory
from audit.steering.memory import MAX_ROWS, Need, free_bytes, is_out_of_memory, plan_memory
from audit.subject import Subject

NEED = Need(n_prompt=100, n_new=20, n_rows=64, own_layers=(2,) * 16, frozen=False)


@given(free=st.integers(0, 10**9), rows=st.integers(1, 300), own=st.integers(0, 80), frozen=st.booleans())
def test_rows_are_halved_until_they_fit(tiny_subject: Subject, free: int, rows: int, own: int, frozen: bool) -> None:
    need = replace(NEED, n_rows=rows, own_layers=(2,) * own, frozen=frozen)
    plan = plan_memory(tiny_subject.model, need, free=free)
    assert need.least <= plan.rows <= max(need.least, min(rows, MAX_ROWS))
    assert plan.own == min(own, plan.rows)
    assert plan.memory_bytes <= 0.6 * free or plan.rows == need.least
    more = plan_memory(tiny_subject.model, need, most=min(2 * plan.rows, rows), free=10**15)
    if plan.rows < min(rows, MAX_ROWS):
        assert more.memory_bytes > 0.6 * free


def test_what_is_held_is_counted(tiny_subject: Subject) -> None:
    """Keys and values alone take 2 × heads × size × 4 bytes a token and layer; the rest is counted beside them."""
    a_layer = 2 * 2 * 8 * 4
    one, longer = (plan_memory(tiny_subject.model, replace(NEED, n_new=n), free=10**12).memory_bytes for n in (20, 21))
    assert longer - one >= 64 * 3 * a_layer
    none, sixteen = (plan_memory(tiny_subject.model, replace(NEED, own_layers=own), free=10**12).memory_bytes for own in ((), (2,) * 16))
    assert sixteen - none >= 16 * 2 * 100 * a_layer


def test_fewer_rows_may_be_asked_for(tiny_subject: Subject) -> None:
    assert plan_memory(tiny_subject.model, NEED, most=7).rows == 7


def test_free_memory_is_what_the_machine_or_the_container_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert free_bytes(cpu) > 10**6
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("5000000\n")
    used.write_text("4000000\n")
    monkeypatch.setattr(memory, "_LIMITS", ((str(limit), str(used)),))
    assert free_bytes(cpu) == 1_000_000
    limit.write_text("max\n")
    assert free_bytes(cpu) > 10**6


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_rows_that_read_their_own_prompts_take_more(tiny_subject: Subject) -> None:
    own = replace(NEED, own_layers=(), unshared=True)
    shared, apart = (plan_memory(tiny_subject.model, need, free=10**12) for need in (replace(NEED, own_layers=()), own))
    assert apart.memory_bytes - shared.memory_bytes > 63 * 100 * 3 * 2 * 2 * 8 * 4
    assert plan_memory(tiny_subject.model, own, free=10**6).rows < 64
