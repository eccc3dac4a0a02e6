"""Each flag says what it is said to say, and removes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from audit.connections.flags import antipodal, flags
from audit.connections.gathering import Strongest
from audit.connections.twera import Edge
from audit.ledger.identity import dump, load
from audit.records import Connection, FeatureId
from audit.records.connections import ConnectionFlag
from audit.subject import Dictionary, Subject
from audit.subject.matrix import Matrix

SOURCE, TARGET = FeatureId("clt", 0, 1), FeatureId("clt", 2, 3)
EDGE = Edge(target=TARGET, virtual_weight=0.5, era=0.1, twera=0.2, n_coactive=30, target_frequency=0.1)


def flagged(dictionary: Dictionary, edge: Edge) -> tuple[ConnectionFlag, ...]:
    found = Strongest(source=SOURCE, edges=(edge,), n_unsupported=0, n_never_coactive=0, typical={2: 5.0})
    return flags(dictionary, found, edge, 20)


def test_limits_are_exclusive(tiny_subject: Subject) -> None:
    assert flagged(tiny_subject.dictionary, EDGE) == ()
    assert flagged(tiny_subject.dictionary, replace(EDGE, target_frequency=0.1001)) == (ConnectionFlag.DENSE,)
    assert flagged(tiny_subject.dictionary, replace(EDGE, virtual_weight=-0.499)) == (ConnectionFlag.SMALL_V_LARGE_TWERA,)
    assert flagged(tiny_subject.dictionary, replace(EDGE, n_coactive=20)) == ()
    assert flagged(tiny_subject.dictionary, replace(EDGE, n_coactive=19)) == (ConnectionFlag.UNSUPPORTED,)


def test_a_loud_target_that_never_fires_with_its_source_is_flagged_as_such_alone(tiny_subject: Subject) -> None:
    edge = replace(EDGE, era=0.0, twera=0.0, n_coactive=0, virtual_weight=0.0)
    found = Strongest(source=SOURCE, edges=(), n_unsupported=0, n_never_coactive=1, never_coactive=(TARGET,), typical={2: 5.0})
    assert flags(tiny_subject.dictionary, found, edge, 20) == (ConnectionFlag.NEVER_COACTIVE,)


@pytest.mark.parametrize(
    ("reads", "writes", "expected"),
    [(-1.0, -1.0, True), (-0.96, -0.95, True), (-0.95, -0.94, False), (1.0, 1.0, False), (-1.0, 1.0, False)],
)
def test_antipodes_read_and_write_opposite_directions(tiny_subject: Subject, reads: float, writes: float, expected: bool) -> None:
    def turned(like: torch.Tensor, cosine: float) -> torch.Tensor:
        """A vector of that cosine with another."""
        other = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
        other -= like * (other @ like) / (like @ like)
        return torch.add(cosine * like / like.norm(), other / other.norm(), alpha=(1 - cosine**2) ** 0.5)

    dictionary = tiny_subject.dictionary
    weights = dictionary.at(2)
    W_enc, W_dec = weights.W_enc.rows(slice(None)).clone(), weights.W_dec.rows(slice(None)).clone()
    W_enc[3] = turned(dictionary.encoder(SOURCE), reads)
    W_dec[3] = 0.0
    W_dec[3, 0] = turned(dictionary.decoder(SOURCE).sum(0), writes)
    made = replace(weights, W_enc=Matrix(W_enc, "made"), W_dec=Matrix(W_dec, "made"))
    bent = replace(dictionary, layers=(*dictionary.layers[:2], made, *dictionary.layers[3:]))
    assert antipodal(bent, SOURCE, TARGET) is expected
    assert flagged(bent, EDGE) == ((ConnectionFlag.ANTIPODAL,) if expected else ())


def test_a_record_from_before_there_were_flags_still_loads() -> None:
    connection = Connection(
        target=TARGET,
        virtual_weight=1.0,
        era=1.0,
        twera=1.0,
        n_coactive=20,
        target_frequency=0.1,
        target_label="",
        target_unembeds=(),
        flags=(ConnectionFlag.DENSE,),
    )
    assert load(Connection, dump(connection)) == connection
    assert load(Connection, dump(connection).replace('"flags":["dense"],', "")) == replace(connection, flags=())
