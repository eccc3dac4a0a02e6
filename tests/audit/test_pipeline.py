from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from audit import pipeline
from audit.errors import Interrupted, LedgerError
from audit.events import AuditBegun, Event, SilentObserver, StepFinished
from audit.ledger import Ledger, collect, verify
from audit.pipeline import prepare, run_audit
from audit.records import AuditConfig, AuditOutcome, AuditResult, CandidateSet, Preflight, Ranking, Rollout, SweepPlan

STEPS = ["subject", "corpus", "candidates", "scenario", "connections", "ranking", "plan", "preflight", "steering", "judging"]


class Watcher:
    """Notes what is said, and asks to stop after so many chunks were appended."""

    def __init__(self, ledger: Ledger | None = None, *, chunks: int = 10**9) -> None:
        self.events: list[Event] = []
        self.ledger, self.chunks = ledger, chunks

    def notify(self, event: Event) -> None:
        self.events.append(event)

    def should_stop(self) -> bool:
        begun = next((event.audit for event in self.events if isinstance(event, AuditBegun)), None)
        return self.ledger is not None and begun is not None and len(self.ledger.chunks(begun)) >= self.chunks


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audits")


@contextmanager
def opened(room: Path, name: str) -> Iterator[Ledger]:
    with Ledger(room / f"{name}.db") as ledger:
        yield ledger


@pytest.fixture
def whole(room: Path, config: AuditConfig) -> Path:
    """A ledger with one uninterrupted audit, made once."""
    path = room / "whole.db"
    if not path.exists():
        with Ledger(path) as ledger:
            run_audit(config, ledger, SilentObserver())
    return path


def rows(path: Path) -> tuple[Rollout, ...]:
    with Ledger(path, readonly=True) as ledger:
        (header,) = ledger.audits()
        return ledger.rollouts(header.audit)


def test_every_step_is_done_in_order_and_recorded(room: Path, config: AuditConfig) -> None:
    with opened(room, "steps") as ledger:
        observer = Watcher()
        outcome = run_audit(config, ledger, observer)
        assert [event.step for event in observer.events if isinstance(event, StepFinished)] == STEPS
        assert isinstance(outcome, AuditOutcome)
        assert not outcome.resumed
        audit = outcome.audit
        kinds = [event.kind for event in ledger.events(audit)]
        assert [kind for kind in kinds if kind != "chunk"] == [
            "scenario", "subject", "candidates", "connections", "prediction", "plan", "preflight", "verdicts", "result",
        ]  # fmt: skip
        assert kinds.index("prediction") < kinds.index("chunk")
        plan, result = ledger.get(audit, SweepPlan), ledger.get(audit, AuditResult)
        assert len(ledger.rollouts(audit)) == len(ledger.verdicts(audit)) == plan.n_rollouts
        assert {cell.cell for cell in result.cells} == {cell.label for cell in plan.cells}
        assert {found.feature for found in result.findings} == {each.feature for each in ledger.get(audit, CandidateSet).candidates}
        assert ledger.config(audit) == config
        assert verify(ledger, audit).intact


def test_a_stopped_audit_goes_on_and_equals_one_that_was_not(room: Path, config: AuditConfig, whole: Path) -> None:
    with opened(room, "stopped") as ledger:
        with pytest.raises(Interrupted, match="are kept in"):
            run_audit(config, ledger, Watcher(ledger, chunks=2))
        (begun,) = ledger.audits()
        assert 0 < begun.n_rollouts < (begun.n_planned or 0)
        assert not begun.finished
        observer = Watcher()
        outcome = run_audit(config, ledger, observer)
        assert outcome.resumed
        assert outcome.audit == begun.audit
        assert AuditBegun(begun.audit, True, begun.n_rollouts, begun.n_planned) in observer.events
        assert verify(ledger, begun.audit).intact
        finished = ledger.get(begun.audit, AuditResult)
    assert rows(room / "stopped.db") == rows(whole)
    with Ledger(whole, readonly=True) as ledger:
        assert ledger.get(ledger.audits()[0].audit, AuditResult) == finished


def test_the_prediction_of_a_resumed_audit_is_the_one_that_was_locked(room: Path, config: AuditConfig) -> None:
    with opened(room, "locked") as ledger:
        with pytest.raises(Interrupted):
            run_audit(config, ledger, Watcher(ledger, chunks=1))
        (begun,) = ledger.audits()
        locked = [event.digest for event in ledger.events(begun.audit) if event.kind == "prediction"]
        run_audit(config, ledger, SilentObserver())
        assert [event.digest for event in ledger.events(begun.audit) if event.kind == "prediction"] == locked
        assert ledger.get(begun.audit, Ranking)


def test_another_configuration_is_another_audit(room: Path, config: AuditConfig) -> None:
    with opened(room, "others") as ledger:
        given = (
            config,
            replace(config, seed=1),
            replace(config, samples=2),
            replace(config, strengths=(0.25,)),
            replace(config, features=("clt/1/3",)),
            replace(config, features=("clt/1/3",), ablate=True),
            replace(config, treatments=("ablate clt/1/3 @1-2 all",)),
        )
        for changed in given:
            with pytest.raises(Interrupted):
                run_audit(changed, ledger, Watcher(ledger, chunks=0))
        assert len({header.fingerprint for header in ledger.audits()}) == len(given)


def test_a_treatment_in_other_words_is_the_same_audit(room: Path, config: AuditConfig) -> None:
    with opened(room, "words") as ledger:
        for words in ("clamp 2.0 absolute clt/1/3 @1,2 all free", "clamp 2 absolute clt/1/3 @1-2 all"):
            with pytest.raises(Interrupted):
                run_audit(replace(config, treatments=(words,)), ledger, Watcher(ledger, chunks=0))
        assert len(ledger.audits()) == 1


def test_named_features_are_predicted_before_they_are_steered(room: Path, config: AuditConfig) -> None:
    with opened(room, "named") as ledger:
        named = replace(config, features=("clt/1/3", "clt/0/2"), ablate=True, scenario_rollouts=0)
        audit = run_audit(named, ledger, SilentObserver()).audit
        kinds = [event.kind for event in ledger.events(audit)]
        assert kinds.index("prediction") < kinds.index("plan") < kinds.index("preflight") < kinds.index("chunk")
        assert {str(each.feature) for each in ledger.get(audit, Ranking).features} == {"clt/1/3", "clt/0/2"}
        labels = {cell.label for cell in ledger.get(audit, SweepPlan).cells}
        assert {"clt/1/3 ablated", "clt/0/2 ablated", "clt/1/3 ×0.25"} < labels
        assert {cell.cell for cell in ledger.get(audit, AuditResult).cells} == labels
        assert ledger.config(audit) == named


@pytest.mark.parametrize(
    ("engine", "reason", "said"),
    [
        ("layerwise", "", ""),
        ("transformers", "'gpt2' models have no adapter", "; rows decoded by transformers: 'gpt2' models have no adapter"),
    ],
)
def test_the_preflight_says_why_rows_are_decoded_by_transformers(
    room: Path, config: AuditConfig, monkeypatch: pytest.MonkeyPatch, engine: str, reason: str, said: str
) -> None:
    check = pipeline.preflight.check
    monkeypatch.setattr(
        pipeline.preflight, "check", lambda *given, **named: replace(check(*given, **named), engine=engine, engine_reason=reason)
    )
    with opened(room, f"engine-{engine}") as ledger:
        observer = Watcher(ledger, chunks=1)
        with pytest.raises(Interrupted):
            run_audit(config, ledger, observer)
        (header,) = ledger.audits()
        found = ledger.get(header.audit, Preflight)
    assert (found.engine, found.engine_reason) == (engine, reason)
    (summary,) = [event.summary for event in observer.events if isinstance(event, StepFinished) and event.step == "preflight"]
    assert summary == "a zero dose changes nothing, every other dose does" + said


def test_other_threads_or_other_scenarios_are_another_audit(room: Path, config: AuditConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a resumed run would not repeat to the last digit, or would choose other candidates by, is not resumed."""
    bench = prepare(config, SilentObserver())
    others = list(bench.other_digests)
    monkeypatch.setattr(pipeline, "prepare", lambda config, observer: replace(bench, observer=observer, other_digests=tuple(others)))
    with opened(room, "keys") as ledger:

        def begun() -> int:
            with pytest.raises(Interrupted):
                run_audit(config, ledger, Watcher(ledger, chunks=0))
            return len(ledger.audits())

        assert (begun(), begun()) == (1, 1)
        with monkeypatch.context() as changed:
            changed.setattr(pipeline.torch, "get_num_threads", lambda: 97)
            assert begun() == 2
        others.append("0" * 64)
        assert begun() == 3
        known = collect()
        monkeypatch.setattr(pipeline, "collect", lambda: replace(known, revision="0" * 40))
        assert begun() == 4


def test_fresh_starts_anew(room: Path, config: AuditConfig) -> None:
    with opened(room, "fresh") as ledger:
        for _ in range(2):
            with pytest.raises(Interrupted):
                run_audit(config, ledger, Watcher(ledger, chunks=0), fresh=True)
        assert len(ledger.audits()) == 2


def test_a_ledger_that_cannot_be_written_stops_the_run(room: Path, config: AuditConfig, whole: Path) -> None:
    with Ledger(whole, readonly=True) as ledger, pytest.raises(LedgerError, match="cannot be written"):
        run_audit(replace(config, seed=5), ledger, SilentObserver())
