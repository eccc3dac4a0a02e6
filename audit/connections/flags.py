"""What to keep in mind about a connection. A flag never removes it: the reader decides."""

from __future__ import annotations

from torch.nn.functional import cosine_similarity

from audit.candidates.describe import ANTIPODAL, DENSE_FREQUENCY
from audit.connections.gathering import Strongest
from audit.connections.twera import Edge
from audit.records import FeatureId
from audit.records.connections import ConnectionFlag
from audit.subject.dictionary import Dictionary

SMALL = 0.1
"""|V| below this share of its root mean square over the layer is small; a normal distribution has 8 % below it."""


def flags(dictionary: Dictionary, found: Strongest, edge: Edge, support: int) -> tuple[ConnectionFlag, ...]:
    """Flags of one connection.

    Args:
        dictionary: of both its ends.
        found: its source.
        edge: the connection.
        support: the cut-off.
    """
    target, never = edge.target, edge.target in found.never_coactive
    holds = {
        ConnectionFlag.DENSE: edge.target_frequency > DENSE_FREQUENCY,
        ConnectionFlag.ANTIPODAL: antipodal(dictionary, found.source, target),
        ConnectionFlag.SMALL_V_LARGE_TWERA: edge.twera != 0 and abs(edge.virtual_weight) < SMALL * found.typical[target.layer],
        ConnectionFlag.UNSUPPORTED: edge.n_coactive < support and not never,
        ConnectionFlag.NEVER_COACTIVE: never,
    }
    return tuple(flag for flag, held in holds.items() if held)


def antipodal(dictionary: Dictionary, source: FeatureId, target: FeatureId) -> bool:
    """Whether two features read opposite directions and write opposite ones, all that each writes summed over layers.

    Antipodality within a layer compares decoders layer by layer; source and target are of different layers, and of most dictionaries
    they write to different ones, so that what they have in common is the stream.
    """
    read = cosine_similarity(dictionary.encoder(source), dictionary.encoder(target), dim=0)
    if read >= -ANTIPODAL:  # its product with another cosine cannot be above the limit: no decoder is read
        return False
    own, other = (dictionary.decoder(feature).sum(0) for feature in (source, target))
    written = cosine_similarity(own, other, dim=0)
    return bool(written < 0) and bool(read * written > ANTIPODAL)
