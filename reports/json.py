"""Document → canonical JSON, and the JSON Schema that describes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from audit.ledger.identity import canonical
from reports.document import SCHEMA, Document


def to_json(document: Document) -> str:
    """The report as canonical JSON: keys sorted, no spaces, UTF-8, one line. Equal documents give equal bytes.

    Raises:
        LedgerError: a figure is not finite.
    """
    return canonical(asdict(document)) + "\n"


def shipped_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the report, as it is shipped."""
    found: dict[str, Any] = json.loads(files("reports").joinpath("schema", "report.schema.json").read_text(encoding="utf-8"))
    return found


def make_schema() -> dict[str, Any]:
    """The schema as the document's fields imply it; a test holds the shipped file to it."""
    from pydantic import TypeAdapter

    made = TypeAdapter(Document).json_schema(mode="serialization")
    for part in (made, *made["$defs"].values()):
        part["additionalProperties"] = False
        # Every field is always written, null where there is nothing, so that a reader never has to guess.
        part["required"] = sorted(part["properties"])
        for field in part["properties"].values():
            field.pop("default", None)
    made["properties"]["schema"] = {"const": SCHEMA}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Ulterior audit report", **made}
