from __future__ import annotations

import pytest

from audit.scenario import Scenario, load_scenario


@pytest.fixture(scope="session")
def blackmail() -> Scenario:
    return load_scenario("blackmail", "organism/office")
