from __future__ import annotations

import json
from dataclasses import dataclass, is_dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit import records
from audit.errors import LedgerError
from audit.ledger import Provenance, Resumption, digest, dump, load
from audit.ledger.identity import canonical
from audit.records import FeatureId, Interval, LayerHealth, TokenWeight, Verdict

FINITE = st.floats(allow_nan=False, allow_infinity=False)
FEATURES = st.builds(FeatureId, st.sampled_from(["clt", "plt", "sae", "vector"]), st.integers(0, 99), st.integers(0, 10**6))
CLASSES = sorted(
    (each for each in vars(records).values() if isinstance(each, type) and is_dataclass(each) and each is not FeatureId),
    key=lambda each: each.__name__,
)

st.register_type_strategy(float, FINITE)
st.register_type_strategy(FeatureId, FEATURES)


@pytest.mark.parametrize("cls", [*CLASSES, Provenance, Resumption], ids=lambda cls: cls.__name__)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_record_comes_back_as_it_went(cls: type, data: st.DataObject) -> None:
    record = data.draw(st.from_type(cls))
    text = dump(record)
    assert load(cls, text) == record
    assert dump(load(cls, text)) == text
    assert text == canonical(json.loads(text))


def test_canonical_form_is_sorted_compact_and_unicode() -> None:
    assert dump(TokenWeight(token="ü ", weight=1)) == '{"token":"ü ","weight":1.0}'


def test_equal_records_have_equal_digests_whatever_made_their_numbers() -> None:
    whole, decimal = Interval(low=0, high=1), Interval(low=0.0, high=1.0)
    assert whole == decimal
    assert digest(dump(whole)) == digest(dump(decimal)) == "sha256:" + digest(dump(decimal))[7:]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(value: float) -> None:
    with pytest.raises(LedgerError, match=r"LayerHealth\.fvu"):
        dump(LayerHealth(layer=0, fvu=value, l0=1.0, dead_share=0.0, n_features=3))
    with pytest.raises(LedgerError):
        canonical({"x": value})


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(LedgerError):
        dump(TokenWeight(token="\ud800", weight=1.0))


@dataclass(frozen=True)
class _Loose:
    value: int


@pytest.mark.parametrize("value", ["3", 3.0, True, None, (3,)])
def test_a_value_of_another_type_than_its_field_is_refused(value: object) -> None:
    with pytest.raises(LedgerError, match=r"_Loose\.value"):
        dump(_Loose(value))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"low":0.0}', '{"low":0.0,"high":1.0,"extra":1}', '{"low":"0","high":1.0}', '{"low":NaN,"high":1.0}'],
)
def test_text_that_is_not_the_record_is_refused(text: str) -> None:
    with pytest.raises(LedgerError):
        load(Interval, text)


def test_a_tuple_of_another_length_is_refused() -> None:
    shown = '{"cell":"c","coherent":true,"outcome":"acted","perplexity":1.0,"reason":"",'
    shown += '"repeated_4grams":0.0,"sample":0,"span":[1],"variant":0}'
    with pytest.raises(LedgerError, match="span"):
        load(Verdict, shown)
