"""The report's figures as inline SVG that takes its colours from the page: readable in light, in dark and in print.

matplotlib draws with stand-in colours, which are then named after the page's CSS variables; text stays text.
The same document always gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from audit.records import Finding, Operation
from reports.document import Document, DoseSection, DoseSeries, Drawing, PredictionRow, PredictionSection, TargetPanel, TargetsSection
from reports.wording import one_line, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#010101", "#020202", "#030303"
ACTING, DISCUSSING, NEITHER = "#040404", "#050505", "#060606"
BAND, PAPER = "#070707", "#080808"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    ACTING: "--acting",
    DISCUSSING: "--discussing",
    NEITHER: "--neither",
    BAND: "--band",
    PAPER: "--paper",
}
"""Stand-in colour → the page's variable."""

_ROLE_COLOURS = {"▲": ACTING, "○": DISCUSSING, "·": NEITHER}
_FINDING_MARKS = {
    Finding.CAUSAL.value: (ACTING, "^"),
    Finding.NOT_DETECTED.value: (DISCUSSING, "o"),
    Finding.INSUFFICIENT.value: (NEITHER, "D"),
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ulterior",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_DOSES_A_ROW = 4
_BESIDE = (NEITHER, "s")
"""Colour and mark of what no finding rests on."""
_FEW = 6
"""Strengths that are all named on the axis."""
_WIDTH = 11.0
"""Inches of a figure that takes the page's whole width."""


def figures(document: Document) -> dict[str, str]:
    """SVG of every figure that has something to show, by the drawing's id."""
    with _drawing_style():
        drawn = {
            document.targets.drawing.id: _targets(document.targets),
            document.prediction.drawing.id: _prediction(document.prediction),
            document.dose.drawing.id: _dose(document.dose),
        }
        drawings = {each.id: each for each in (document.targets.drawing, document.prediction.drawing, document.dose.drawing)}
        return {name: svg(figure, drawings[name]) for name, figure in drawn.items() if figure is not None}


@contextmanager
def _drawing_style() -> Iterator[None]:
    """Our style and no one else's, with glyphs that the measuring font lacks not complained of: the page's font draws them."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot, so that nothing global is touched; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# --- targets --------------------------------------------------------------------------------------


def _targets(section: TargetsSection) -> Figure | None:
    """Signed bars of TWERA, one panel a candidate, on one scale."""
    panels = [panel for panel in section.panels if panel.rows]
    if not panels:
        return None
    most = max(len(panel.rows) for panel in panels)
    drawn = _figure(_WIDTH, 1.3 + 0.3 * most)
    weights = [row.twera for panel in panels for row in panel.rows]
    reach = max(abs(weight) for weight in weights) or 1.0
    limits = (1.08 * min(0.0, *weights) - 0.02 * reach, max(0.0, *weights) + 0.72 * reach)
    for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _bars(axes, panel, reach)
        axes.set_xlim(*limits)
        axes.set_ylim(most - 0.4, -0.6)
    return drawn


def _bars(axes: Axes, panel: TargetPanel, reach: float) -> None:
    places = range(len(panel.rows))
    colours = [_ROLE_COLOURS[row.role_symbol] for row in panel.rows]
    axes.barh(places, [row.twera for row in panel.rows], color=colours, height=0.68)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for place, row in enumerate(panel.rows):
        role = f"{row.role_symbol} {row.role_words}" + (f" {signed(f'{row.role:+.2f}')}" if row.role is not None else "")
        beyond = max(row.twera, 0.0) + 0.03 * reach
        axes.text(beyond, place, role, va="center", ha="left", fontsize=9, color=_ROLE_COLOURS[row.role_symbol])
    axes.set_yticks(list(places), [_short(row.label, row.target) for row in panel.rows], fontsize=9, color=INK)
    axes.set_xlabel("TWERA")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", zorder=0)
    axes.set_axisbelow(True)
    axes.set_title(f"{panel.part}: {panel.finding.feature}, place {panel.finding.rank}\nsteered: {panel.finding.statement}")


def _short(label: str, target: str) -> str:
    """A label of what fits, and the whole name."""
    return f"{label if len(label) <= 22 else label[:21] + '…'} · {target}"


# --- prediction -----------------------------------------------------------------------------------


def _prediction(section: PredictionSection) -> Figure | None:
    """Score against effect, intervals both ways."""
    rows = [row for row in section.rows if row.score is not None and row.finding.effect is not None]
    if not rows:
        return None
    drawn = _figure(8.2, 4.6)
    axes = drawn.subplots()
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for row in rows:
        _point(axes, row)
    axes.set_xlabel("acting score, locked before steering (−1 discussing … +1 acting)")
    axes.set_ylabel("effect on the acting rate, points")
    axes.margins(0.09)
    axes.grid()
    axes.set_axisbelow(True)
    return drawn


def _point(axes: Axes, row: PredictionRow) -> None:
    score, effect = row.score or 0.0, 100 * (row.finding.effect or 0.0)
    predicted = row.finding.predicted_acting
    colour = ACTING if predicted else DISCUSSING
    across, along = row.interval, row.finding.interval
    if across is not None:
        axes.plot([across.low, across.high], [effect, effect], color=colour, linewidth=1, alpha=0.55)
    if along is not None:
        axes.plot([score, score], [100 * along.low, 100 * along.high], color=colour, linewidth=1, alpha=0.55)
    axes.plot(score, effect, "^" if predicted else "o", color=colour, markersize=8, markerfacecolor=colour if predicted else PAPER)
    axes.annotate(str(row.finding.rank), (score, effect), xytext=(7, 6), textcoords="offset points", fontsize=10, fontweight="bold")


# --- dose and response ----------------------------------------------------------------------------


def _dose(section: DoseSection) -> Figure | None:
    """Small multiples: for every candidate the acting rate, and the coherent share under it."""
    series = [each for each in section.series if any(point.rate is not None for point in each.points)]
    if not series:
        return None
    columns = min(range(1, _DOSES_A_ROW + 1), key=lambda each: (-(-len(series) // each), -len(series) % each))
    lines = -(-len(series) // columns)
    drawn = _figure(_WIDTH if columns > 2 else 3.7 * columns, 3.2 * lines)
    grid = drawn.subplots(2 * lines, columns, squeeze=False, sharey=False, gridspec_kw={"height_ratios": [3, 1] * lines})
    for place, each in enumerate(series):
        line, column = divmod(place, columns)
        _response(grid[2 * line][column], each, section, first=column == 0)
        _coherence(grid[2 * line + 1][column], each, section, first=column == 0)
    for place in range(len(series), lines * columns):
        line, column = divmod(place, columns)
        grid[2 * line][column].set_axis_off()
        grid[2 * line + 1][column].set_axis_off()
    return drawn


def _response(axes: Axes, series: DoseSeries, section: DoseSection, *, first: bool) -> None:
    if series.tested and section.control_low is not None and section.control_high is not None:
        axes.axhspan(100 * section.control_low, 100 * section.control_high, facecolor=BAND, edgecolor="none", zorder=0)
    if section.unsteered_rate is not None:
        axes.axhline(100 * section.unsteered_rate, color=MUTED, linewidth=1, dashes=(4, 3))
    points = [point for point in series.points if point.rate is not None]
    colour, marker = _FINDING_MARKS[series.finding.verdict] if series.tested else _BESIDE
    strengths = [point.strength or 0.0 for point in points]
    axes.plot(strengths, [100 * (point.rate or 0.0) for point in points], color=colour, linewidth=1.2)
    for strength, point in zip(strengths, points, strict=True):
        if point.interval is not None:
            axes.plot([strength, strength], [100 * point.interval.low, 100 * point.interval.high], color=colour, linewidth=1)
        face = colour if point.coherent else PAPER
        axes.plot(strength, 100 * (point.rate or 0.0), marker, color=colour, markerfacecolor=face, markersize=6.5)
    _frame(axes, series, "acted, %" if first else "", top=True)
    under = f"{series.finding.symbol} {series.finding.statement}" if series.tested else one_line(series.kind, 32)
    axes.set_title(f"{series.finding.rank}: {series.finding.feature}\n{under}", fontsize=9.5)


def _coherence(axes: Axes, series: DoseSeries, section: DoseSection, *, first: bool) -> None:
    axes.axhline(100 * section.coherence_floor, color=MUTED, linewidth=0.8, dashes=(1, 2))
    strengths = [point.strength or 0.0 for point in series.points]
    axes.plot(strengths, [100 * point.coherent_share for point in series.points], color=INK, linewidth=1.1)
    for strength, point in zip(strengths, series.points, strict=True):
        axes.plot(strength, 100 * point.coherent_share, "s", color=INK, markerfacecolor=INK if point.coherent else PAPER, markersize=4)
    _frame(axes, series, "coherent, %" if first else "", top=False)


def _frame(axes: Axes, series: DoseSeries, words: str, *, top: bool) -> None:
    """0 to 100 % on every panel: panels are compared, so none may stretch."""
    axes.set_xlim(*_reach(series))
    ticks = _ticks(series)
    if len(ticks) <= _FEW + 1:
        axes.set_xticks(ticks, [signed(f"{each:g}") for each in ticks])
    axes.set_ylim(-4, 104)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel(words)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(labelbottom=not top)
    if not top:
        axes.set_xlabel(series.axis, fontsize=8.5)


def _ticks(series: DoseSeries) -> list[float]:
    """Its strengths, and the one that changes nothing: a factor of 1, or a strength of 0; a clamp has none."""
    nothing = {Operation.ADDITIVE.value: {0.0}, Operation.MULTIPLICATIVE.value: {0.0, 1.0}, Operation.CLAMP.value: {0.0}}
    return sorted({point.strength or 0.0 for point in series.points} | nothing.get(series.operation, set()))


def _reach(series: DoseSeries) -> tuple[float, float]:
    """Ends of the axis: 0 is always on it, and no mark stands on its edge unless it is at 0."""
    if series.operation == Operation.ABLATE.value:
        return -1.0, 1.0
    low, high = min(0.0, *_ticks(series)), max(0.0, *_ticks(series))
    pad = 0.12 * (max(-low, high) or 1.0)
    beside = 0.0 if series.tested else pad
    return (low - pad if low < 0 else -beside), (high + pad if high > 0 else max(beside, pad))


# --- SVG that belongs to the page -----------------------------------------------------------------


def svg(figure: Figure, drawing: Drawing) -> str:
    """Draw, then fit the drawing into a page: colours by variable, ids of its own, no address in it, described for who does not see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", body[: body.index(">")]) + body[body.index(">") :]
    body = re.sub(r"\b(id=\"|url\(#|xlink:href=\"#)", rf"\g<1>{drawing.id}-", body).replace("xlink:href", "href")
    body = re.sub(r"font:([^;\"]*?)(\d[\d.]*px)[^;\"]*", r"font:\g<1>\2 var(--sans)", body)
    for stand_in, variable in VARIABLES.items():
        body = body.replace(stand_in, f"var({variable})")
    # A narrow figure is not blown up: its text keeps the size of the others' text.
    widest = f"max-width: {100 * figure.get_figwidth():.0f}px"
    opening = f'<svg role="img" aria-label="{escape(drawing.alternative, quote=True)}" style="{widest}" '
    return opening + body.removeprefix("<svg").strip() + "\n"
