"""Ledger → document → HTML, Markdown and JSON with the same content. Needs no model: a finished audit is read without torch."""

from reports.build import build
from reports.claims import Claim, Fact, recompute
from reports.document import Document
from reports.material import AuditMaterial
from reports.reading import material_from_ledger
from reports.writing import ReportFiles, write

__all__ = ["AuditMaterial", "Claim", "Document", "Fact", "ReportFiles", "build", "material_from_ledger", "recompute", "write"]
