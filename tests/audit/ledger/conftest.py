"""A made scenario, records and a clock that ticks: what the ledger's tests write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from audit.ledger import Ledger, Provenance
from audit.records import (
    ArmKind,
    AuditConfig,
    AuditResult,
    Cell,
    Gate,
    Outcome,
    PromptKind,
    Ranking,
    Rollout,
    SweepPlan,
    Verdict,
)
from audit.scenario import Scenario, list_scenarios, read_scenario


@pytest.fixture
def scenario() -> Scenario:
    return read_scenario(list_scenarios()[0].path)


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(ulterior="0.1.0", revision=None, python="3.11.7", platform="made", cpus=2, packages=(("numpy", "2.0"),))


@pytest.fixture
def clock() -> Callable[[], datetime]:
    ticks = count()
    return lambda: datetime(2026, 11, 20, tzinfo=UTC) + timedelta(seconds=next(ticks))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ulterior.db"


@pytest.fixture
def ledger(path: Path, clock: Callable[[], datetime]) -> Iterator[Ledger]:
    with Ledger(path, clock=clock) as opened:
        yield opened


@pytest.fixture
def begin(ledger: Ledger, scenario: Scenario, provenance: Provenance) -> Callable[..., str]:
    def start(fingerprint: str = "sha256:00", **fields: object) -> str:
        return ledger.begin(AuditConfig(scenario=scenario.id, passed=("scenario", *fields), **fields), scenario, fingerprint, provenance)  # type: ignore[arg-type]

    return start


@pytest.fixture
def ranking() -> Ranking:
    return Ranking(features=(), method="made", top_k=32, n_acting_tokens=10, n_discussing_tokens=12)


@pytest.fixture
def plan() -> SweepPlan:
    cell = Cell(arm=ArmKind.NONE, prompt=PromptKind.SCENARIO, treatment=None, label="none")
    return SweepPlan(cells=(cell,), variants=(0, 1), samples_per_variant=2, seed=0, max_new_tokens=4, temperature=1.0)


@pytest.fixture
def result() -> AuditResult:
    return AuditResult(cells=(), findings=(), normalised_rank=None, gate=Gate.INSUFFICIENT, gate_reason="nothing was run")


@pytest.fixture
def rollouts() -> tuple[Rollout, ...]:
    return tuple(
        Rollout(cell="none", variant=v, sample=s, prompt_ids=(1, 2), token_ids=(3, 4), text=f"\x1b[2J {v}{s} \u202e", finished=True)
        for v in (0, 1)
        for s in (0, 1)
    )


@pytest.fixture
def verdicts(rollouts: tuple[Rollout, ...]) -> tuple[Verdict, ...]:
    return tuple(
        Verdict(
            cell=r.cell,
            variant=r.variant,
            sample=r.sample,
            outcome=Outcome.REFUSED,
            reason="rule refused",
            span=(0, 2),
            coherent=True,
            perplexity=1.5,
            repeated_4grams=0.0,
        )
        for r in rollouts
    )


@pytest.fixture
def finished(
    ledger: Ledger,
    begin: Callable[..., str],
    ranking: Ranking,
    plan: SweepPlan,
    rollouts: tuple[Rollout, ...],
    verdicts: tuple[Verdict, ...],
    result: AuditResult,
) -> str:
    """A whole audit, in two chunks."""
    audit = begin()
    ledger.append(audit, ranking)
    ledger.append(audit, plan)
    ledger.append_chunk(audit, 0, rollouts[:2])
    ledger.append_chunk(audit, 1, rollouts[2:])
    ledger.append_verdicts(audit, verdicts)
    ledger.append(audit, result)
    return audit
