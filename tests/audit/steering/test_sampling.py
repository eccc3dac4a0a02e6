from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.steering.sampling import choose, uniforms


def test_uniforms_depend_on_seed_variant_and_sample_alone() -> None:
    assert np.array_equal(uniforms(1, 2, 3, 10), uniforms(1, 2, 3, 40)[:10])
    keys = [(seed, variant, sample) for seed in range(3) for variant in range(3) for sample in range(3)]
    assert len({float(uniforms(*key, 1)[0]) for key in keys}) == len(keys)
    many = np.concatenate([uniforms(0, 0, sample, 100) for sample in range(200)])
    assert 0 <= many.min() < many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)


@given(
    st.lists(st.floats(-30, 30) | st.just(-np.inf), min_size=2, max_size=12).filter(lambda found: max(found) > -np.inf),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.2, 3),
)
def test_choose_inverts_the_cumulated_distribution(logits: list[float], uniform: float, temperature: float) -> None:
    scaled = torch.tensor(logits, dtype=torch.float32).double() / temperature
    weights = torch.softmax(scaled, 0).tolist()
    total, expected = 0.0, None
    for token, weight in enumerate(weights):
        total += weight
        if expected is None and total > uniform * sum(weights):
            expected = token
    got = int(choose(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), temperature)[0])
    near = sum(weights[: max(got, expected or 0)]) - uniform
    assert got == expected or abs(near) < 1e-12
    assert weights[got] > 0 or abs(near) < 1e-12


def test_temperature_zero_takes_the_likeliest() -> None:
    assert choose(torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 5.0]]), torch.zeros(2, dtype=torch.float64), 0).tolist() == [1, 0]


def test_a_large_vocabulary_is_cumulated_as_a_small_one_is() -> None:
    """In blocks, against the cumulated distribution in one piece."""
    logits = 3 * torch.randn(40, 3001)
    logits[:, 700:1300] = -torch.inf
    uniform = torch.from_numpy(uniforms(0, 0, 0, 40))
    uniform[0], uniform[1] = 0.0, float(np.nextafter(1.0, 0.0))
    cumulated = torch.softmax(logits.double(), -1).cumsum(-1)
    got = choose(logits, uniform, 1.0)
    below = torch.where(got > 0, cumulated.gather(1, (got - 1).clamp_min(0)[:, None])[:, 0], 0.0)
    above = cumulated.gather(1, got[:, None])[:, 0]
    assert bool(((below <= uniform + 1e-6) & (uniform <= above + 1e-6)).all())
    assert not bool(((got >= 700) & (got < 1300)).any())
    assert len(set(got.tolist())) > 20
