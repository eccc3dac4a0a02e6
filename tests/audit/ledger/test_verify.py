from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from audit.ledger import Ledger, verify

FORGERIES = {
    "audits row": "UPDATE audits SET config_passed = '{}'",
    "events row 1": """UPDATE events SET payload = replace(payload, 'made', 'fake') WHERE kind = 'prediction'""",
    "events row 3": "UPDATE events SET created = '2020' WHERE seq = 3",
    "events row 2": "DELETE FROM events WHERE kind = 'plan'",
    "rollouts chunk 1": "UPDATE rollouts SET payload = replace(payload, 'true', 'false') WHERE chunk = 1 AND position = 0",
    "rollouts chunk 0": "DELETE FROM rollouts WHERE chunk = 0 AND position = 1",
    "rollouts row 0/0": "UPDATE rollouts SET cell = 'other' WHERE chunk = 0 AND position = 0",
    "rollouts chunk 7": "INSERT INTO rollouts SELECT audit, 7, 0, 'x', 0, 0, replace(payload, 'none', 'x') FROM rollouts LIMIT 1",
    "verdicts": "UPDATE verdicts SET payload = replace(payload, 'refused', 'acted') WHERE position = 2",
}


def test_an_untouched_audit_is_intact(ledger: Ledger, finished: str) -> None:
    found = verify(ledger, finished)
    assert found.intact
    assert found.problem is None
    assert (found.n_events, found.n_rollouts, found.n_verdicts) == (7, 4, 4)
    assert found.head == ledger.events(finished)[-1].digest


@pytest.mark.parametrize("where", FORGERIES)
def test_a_forgery_is_named(path: Path, ledger: Ledger, finished: str, where: str) -> None:
    with sqlite3.connect(path) as other:
        for (trigger,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            other.execute(f"DROP TRIGGER {trigger}")
        other.execute(FORGERIES[where])
    found = verify(ledger, finished)
    assert not found.intact
    assert found.problem is not None
    assert found.problem.startswith(where)


def test_a_shortened_audit_has_another_head(path: Path, ledger: Ledger, finished: str) -> None:
    head = verify(ledger, finished).head
    with sqlite3.connect(path) as other:
        other.execute("DROP TRIGGER events_no_DELETE")
        other.execute("DELETE FROM events WHERE kind = 'result'")
    assert verify(ledger, finished).head != head
