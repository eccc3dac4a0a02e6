"""records → SQLite, append-only, and back. Reading a finished audit needs no model and no torch."""

from audit.ledger.chain import LedgerEvent, Resumption
from audit.ledger.identity import digest, dump, load
from audit.ledger.provenance import Provenance, collect
from audit.ledger.store import Ledger
from audit.ledger.verify import Verification, verify

__all__ = ["Ledger", "LedgerEvent", "Provenance", "Resumption", "Verification", "collect", "digest", "dump", "load", "verify"]
