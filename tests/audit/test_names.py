from __future__ import annotations

import pytest

from audit.errors import UsageError
from audit.records import FeatureId

NOT_FEATURES = ("clt/\u00b2/0", "clt/0/\u0663", "clt/0/" + "9" * 5000, "clt/-1/0", "clt/0", "clt/0/1/2", "c-t/0/1", "clt/ 1/0", "")


@pytest.mark.parametrize("text", NOT_FEATURES, ids=range(len(NOT_FEATURES)))
def test_only_ascii_numbers_name_a_feature(text: str) -> None:
    with pytest.raises(UsageError, match="does not name a feature|Not a feature"):
        FeatureId.parse(text)


def test_a_feature_reads_back() -> None:
    assert FeatureId.parse("clt/2/81") == FeatureId("clt", 2, 81)
    assert str(FeatureId.parse("clt/2/81")) == "clt/2/81"
