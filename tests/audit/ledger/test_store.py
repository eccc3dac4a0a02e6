from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.errors import LedgerError
from audit.ledger import Ledger, Provenance
from audit.records import AuditConfig, AuditResult, Ranking, Rollout, SubjectInfo, SweepPlan, Verdict
from audit.scenario import Scenario


def test_an_audit_comes_back_as_it_went(
    ledger: Ledger,
    path: Path,
    finished: str,
    scenario: Scenario,
    ranking: Ranking,
    plan: SweepPlan,
    result: AuditResult,
    provenance: Provenance,
    rollouts: tuple[Rollout, ...],
    verdicts: tuple[Verdict, ...],
) -> None:
    ledger.close()
    with Ledger(path, readonly=True) as read:
        assert read.scenario(finished) == scenario
        assert read.scenario(finished).digest == scenario.digest == read.header(finished).scenario_digest
        assert (read.get(finished, Ranking), read.get(finished, SweepPlan), read.get(finished, AuditResult)) == (ranking, plan, result)
        assert read.rollouts(finished) == rollouts
        assert read.verdicts(finished) == verdicts
        assert read.provenance(finished) == provenance
        assert read.chunks(finished) == {0, 1}
        assert [event.kind for event in read.events(finished)] == ["scenario", "prediction", "plan", "chunk", "chunk", "verdicts", "result"]


def test_what_was_passed_is_kept_apart_from_what_was_defaulted(ledger: Ledger, begin: Callable[..., str], scenario: Scenario) -> None:
    audit = begin(seed=7, strengths=(0.5, 1.0))
    assert ledger.config(audit) == AuditConfig(scenario=scenario.id, seed=7, strengths=(0.5, 1.0), passed=("scenario", "seed", "strengths"))
    row = ledger.audit_row(audit)
    assert '"seed":7' in row["config_passed"]
    assert '"samples"' in row["config_defaulted"]


def test_an_id_is_the_date_the_scenario_and_six_digits(begin: Callable[..., str], scenario: Scenario) -> None:
    first, second = begin(), begin()
    assert first != second
    date, name, digits = first.rsplit("-", 2)[0].split("-", 1)[0], scenario.id, first.rsplit("-", 1)[1]
    assert first == f"{date}-{name}-{digits}"
    assert date == "20261120"
    assert len(digits) == 6


def test_no_rollout_is_taken_before_the_prediction(
    ledger: Ledger, path: Path, begin: Callable[..., str], rollouts: tuple[Rollout, ...], ranking: Ranking
) -> None:
    audit = begin()
    with pytest.raises(LedgerError, match="prediction"):
        ledger.append_chunk(audit, 0, rollouts)
    with sqlite3.connect(path) as other, pytest.raises(sqlite3.IntegrityError, match="prediction"):
        other.execute("INSERT INTO rollouts VALUES (?, 0, 0, 'none', 0, 0, '{}')", (audit,))
    assert ledger.rollouts(audit) == ()
    ledger.append(audit, ranking)
    ledger.append_chunk(audit, 0, rollouts)
    assert ledger.rollouts(audit) == rollouts


def test_a_prediction_is_made_once(ledger: Ledger, begin: Callable[..., str], ranking: Ranking) -> None:
    audit = begin()
    ledger.append(audit, ranking)
    with pytest.raises(LedgerError):
        ledger.append(audit, ranking)
    assert [event.kind for event in ledger.events(audit)] == ["scenario", "prediction"]


@pytest.mark.parametrize("table", ["audits", "events", "rollouts", "verdicts"])
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {} SET rowid_like = 1"])
def test_nothing_is_changed_or_deleted(path: Path, finished: str, table: str, change: str) -> None:
    column = "created" if table in ("audits", "events") else "payload"
    with sqlite3.connect(path) as other, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        other.execute(change.format(table).replace("rowid_like = 1", f"{column} = 'x'"))


def test_a_chunk_is_taken_whole_or_not_at_all(
    ledger: Ledger, begin: Callable[..., str], ranking: Ranking, rollouts: tuple[Rollout, ...]
) -> None:
    audit = begin()
    ledger.append(audit, ranking)
    ledger.append_chunk(audit, 0, rollouts[:2])
    with pytest.raises(LedgerError):
        ledger.append_chunk(audit, 1, (rollouts[2], rollouts[0]))  # the second is there already
    assert ledger.rollouts(audit) == rollouts[:2]
    assert ledger.chunks(audit) == {0}
    ledger.append_chunk(audit, 1, rollouts[2:])
    assert ledger.rollouts(audit) == rollouts


def test_a_second_process_cannot_write_the_same_chunk(
    ledger: Ledger, path: Path, begin: Callable[..., str], ranking: Ranking, rollouts: tuple[Rollout, ...]
) -> None:
    audit = begin()
    ledger.append(audit, ranking)
    with Ledger(path) as other:
        other.append_chunk(audit, 0, rollouts)
    with pytest.raises(LedgerError):
        ledger.append_chunk(audit, 0, rollouts)
    assert ledger.rollouts(audit) == rollouts


def test_the_newest_unfinished_audit_of_a_fingerprint_is_found(ledger: Ledger, begin: Callable[..., str], result: AuditResult) -> None:
    assert ledger.unfinished("sha256:aa") is None
    _, newer, _ = begin("sha256:aa"), begin("sha256:aa"), begin("sha256:bb")
    assert ledger.unfinished("sha256:aa") == newer
    ledger.append(newer, result)
    assert ledger.unfinished("sha256:aa") != newer


def test_the_table_of_contents_counts(ledger: Ledger, finished: str, begin: Callable[..., str]) -> None:
    started = begin()
    whole, empty = ledger.audits()
    assert (whole.audit, whole.n_rollouts, whole.n_planned, whole.finished) == (finished, 4, 4, True)
    assert (empty.audit, empty.n_rollouts, empty.n_planned, empty.finished) == (started, 0, None, False)


def test_what_is_missing_is_said(ledger: Ledger, begin: Callable[..., str]) -> None:
    audit = begin()
    assert ledger.find(audit, SubjectInfo) is None
    with pytest.raises(LedgerError, match="no subject yet"):
        ledger.get(audit, SubjectInfo)
    with pytest.raises(LedgerError, match=audit):
        ledger.header("20200101-none-000000")
