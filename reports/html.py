"""Document → one HTML file that needs nothing else: no script, no address, every text escaped."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from reports import wording
from reports.document import Document
from reports.figures import figures

if TYPE_CHECKING:
    from jinja2 import Environment


def to_html(document: Document) -> str:
    """The report as one self-contained page."""
    drawn = {name: Markup(image) for name, image in figures(document).items()}
    return _environment().get_template("report.html.j2").render(doc=document, drawn=drawn)


@cache
def _environment() -> Environment:
    """Autoescape for every template: nothing but our own SVG and CSS is let through as it is."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reports", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shared = ("percent", "points", "decimal", "figure", "dose", "nats", "count", "probability")
    environment.filters |= {name: getattr(wording, name) for name in shared}
    environment.filters |= {name: getattr(wording, name) for name in ("interval_percent", "interval_points", "interval_decimal")}
    environment.filters |= {"prose": prose, "layer_range": wording.layer_range}
    return environment


def prose(text: str) -> Markup:
    """Escape a sentence, and keep a number and its unit on one line."""
    kept = re.sub(r"(?<=\d) (?=%|points\b|tokens\b)|(?<=≤) ", "\u00a0", text)
    return escape(kept)
