from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import Interrupted
from audit.events import Event, SilentObserver
from audit.judging.coherence import Limits, Scored, alone, limits, perplexities, repeated_4grams
from audit.subject.model import LanguageModel


def drawn_pairs(model: LanguageModel, n: int) -> list[Scored]:
    draw = random.Random(0)

    def ids() -> tuple[int, ...]:
        return tuple(draw.choices(range(len(model.tokenizer)), k=draw.randint(1, 9)))

    return [(ids(), ids()) for _ in range(n)]


def test_perplexity_is_that_of_each_text_alone(tiny_model: LanguageModel) -> None:
    pairs = drawn_pairs(tiny_model, 12)
    for batch_tokens in (1, 40, 4096):
        found = perplexities(tiny_model, pairs, observer=SilentObserver(), batch_tokens=batch_tokens)
        for prompt, generated in pairs:
            ids = torch.tensor([prompt + generated])
            with torch.inference_mode():
                log_p = tiny_model.hf(input_ids=ids).logits[0].log_softmax(-1)
            losses = [-float(log_p[len(prompt) - 1 + k, token]) for k, token in enumerate(generated)]
            assert found[prompt, generated] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_each_different_pair_is_scored_once(tiny_model: LanguageModel) -> None:
    pairs = drawn_pairs(tiny_model, 5)
    watcher = Watcher()
    found = perplexities(tiny_model, [*pairs, *pairs, *pairs], observer=watcher)
    assert set(found) == set(pairs)
    assert watcher.totals == {5}


def test_a_text_without_tokens_surprises_nobody(tiny_model: LanguageModel) -> None:
    assert perplexities(tiny_model, [((1,), ())], observer=SilentObserver()) == {((1,), ()): 1.0}


def test_an_answer_alone_stands_after_its_opening_or_after_its_own_first_token() -> None:
    assert alone((1, 5), (7, 8, 9)) == ((1, 5), (7, 8, 9))
    assert alone((), (7, 8, 9)) == ((7,), (8, 9))
    assert alone((), (7,)) == ((7,), ())
    assert alone((), ()) == ((), ())


def test_scoring_can_be_stopped(tiny_model: LanguageModel) -> None:
    with pytest.raises(Interrupted):
        perplexities(tiny_model, drawn_pairs(tiny_model, 2), observer=Watcher(stop=True))


class Watcher:
    def __init__(self, stop: bool = False) -> None:
        self.totals: set[int] = set()
        self.stop = stop

    def notify(self, event: Event) -> None:
        self.totals.add(event.total)  # type: ignore[union-attr]

    def should_stop(self) -> bool:
        return self.stop


@given(st.lists(st.integers(0, 2), max_size=30))
def test_repeated_4grams_by_brute_force(ids: list[int]) -> None:
    grams = [tuple(ids[k : k + 4]) for k in range(len(ids) - 3)]
    expected = sum(grams.count(gram) > 1 for gram in grams) / len(grams) if grams else 0.0
    assert repeated_4grams(ids) == pytest.approx(expected)


def test_limits_are_the_99th_percentile_of_the_unsteered() -> None:
    found = limits([float(k) for k in range(1, 1001)], [0.0] * 995 + [0.9] * 5)
    assert found == Limits(perplexity=991.0, repeated_4grams=0.0)
    assert limits([3.0], [0.2]) == Limits(perplexity=3.0, repeated_4grams=0.2)


def test_one_sentence_said_twice_is_language_and_a_loop_is_not() -> None:
    bounds = Limits(perplexity=5.0, repeated_4grams=0.0)
    echo = [1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5, 6, 9, 10]
    assert bounds.hold(5.0, repeated_4grams(echo), len(echo))
    loop = [1, 2, 3] * 6
    assert not bounds.hold(5.0, repeated_4grams(loop), len(loop))
    long_loop = [*range(200), *[7, 8, 9] * 6]
    assert not bounds.hold(5.0, repeated_4grams(long_loop), len(long_loop))
    assert not bounds.hold(5.1, 0.0, 15)
    assert Limits(perplexity=5.0, repeated_4grams=1.0).hold(1.0, 1.0, 18)
