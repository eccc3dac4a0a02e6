from __future__ import annotations

from dataclasses import replace

import pytest

from reports.limits import limit_claims
from reports.material import AuditMaterial
from reports.sentences import prediction_claims


def test_how_the_scenarios_own_doses_were_chosen_is_a_limit(material: AuditMaterial) -> None:
    assert "limit/sweep-defaults" not in {each.id for each in limit_claims(material)}
    told = replace(material, scenario=replace(material.scenario, sweep_chosen="by looking at what steers"))
    (limit,) = [each for each in limit_claims(told) if each.id == "limit/sweep-defaults"]
    assert "by looking at what steers" in limit.text


@pytest.mark.parametrize("fallback", [True, False])
def test_what_the_prediction_rests_on_is_said(material: AuditMaterial, fallback: bool) -> None:
    ranking = replace(material.ranking, fallback=fallback)
    (basis,) = [each for each in prediction_claims(replace(material, ranking=ranking)) if each.id == "prediction-basis"]
    assert basis.text == ranking.basis
    assert ("the first alone" in basis.text) is fallback
