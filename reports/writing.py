"""Document → three files in a folder, each whole or not there."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from audit.errors import UsageError
from reports.document import Document
from reports.html import to_html
from reports.json import to_json
from reports.markdown import to_markdown


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Where a report lies."""

    html: Path
    markdown: Path
    json: Path


def write(document: Document, folder: Path) -> ReportFiles:
    """Write ``<audit>.html``, ``.md`` and ``.json``; the folder is made when it is not there.

    Raises:
        UsageError: the folder cannot be made or written to.
    """
    name = re.sub(r"[^\w.-]+", "-", document.audit).lstrip(".") or "report"
    files = ReportFiles(html=folder / f"{name}.html", markdown=folder / f"{name}.md", json=folder / f"{name}.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(files.html, to_html(document))
        _replace(files.markdown, to_markdown(document))
        _replace(files.json, to_json(document))
    except OSError as error:
        raise UsageError(
            "Report not written",
            f"{folder}: {error.strerror or error}.",
            f"Name a folder that you may write to, and make the report again from the ledger: ulterior report {document.audit} --out DIR.",
        ) from error
    return files


def _replace(path: Path, text: str) -> None:
    """Write beside, then rename: a reader never sees half a file."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
