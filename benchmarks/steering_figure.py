"""The picture and the words of what ``steering.py`` measured."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

Measured = dict[str, Any]
NAMES = {
    "6l": "6 layers",
    "1b-4l": "4 layers of Llama-3.2-1B",
    "llama-3.2-1b": "Llama-3.2-1B",
    "gemma-2-2b": "Gemma-2-2b",
}
ARMS = {
    "ours": ("this engine", "o", "#c46216"),
    "batched": ("transformers, one batch", "s", "#999999"),
    "steering_vectors": ("steering-vectors", "^", "#999999"),
    "nnsight": ("nnsight", "x", "#999999"),
}
POSITIONS = {"all": "all positions", "generated": "generated positions alone"}


def reached(cell: Measured, arm: str = "ours") -> float:
    """Times the loop's speed of an arm: of wall and processor the lower, on an accelerator of the wall."""
    ratios = cell["times_loop"][arm]
    return float(ratios["wall"] if cell["device"] != "cpu" else min(ratios["wall"], ratios["cpu"]))


def below(found: Measured) -> list[Measured]:
    """Cells that miss their target, and those without one that are slower than the loop."""
    return [cell for cell in found["cells"].values() if reached(cell) < (cell["target"] or 1.0)]


# --- picture ----------------------------------------------------------------------------------------------------------------------------


def draw(found: Measured, path: Path) -> None:
    """Times the loop's speed by cell, with targets; of other depths than half only the main part's cells."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ulterior"  # the same figures give the same file
    from matplotlib import pyplot

    shown = sorted((cell for cell in found["cells"].values() if cell["part"] != "shares"), key=_order)
    rows = {name: at for at, name in enumerate(dict.fromkeys(_label(cell) for cell in shown))}
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 1.2 + 0.2 * len(rows)), sharex=True, sharey=True, layout="constrained")
    for axis, (positions, title) in zip(axes, POSITIONS.items(), strict=True):
        cells = [cell for cell in shown if cell["positions"] == positions]
        _points(axis, cells, rows)
        axis.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
        axis.set(xscale="log", title=title)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes[0].set_yticks(list(rows.values()), list(rows), fontsize="small")
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.suptitle("times the speed of transformers with a hook, one call a configuration", fontsize="medium")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def _points(axis: Any, cells: list[Measured], rows: dict[str, int]) -> None:
    """One marker an arm, and a line at each target."""
    for arm, (name, marker, color) in ARMS.items():
        points = [(reached(cell, arm), rows[_label(cell)]) for cell in cells if arm in cell["times_loop"]]
        if points:
            axis.plot(*zip(*points, strict=True), marker, color=color, label=name, markersize=5, zorder=3 if arm == "ours" else 2)
    aims = sorted({(rows[_label(cell)], cell["target"]) for cell in cells if cell["target"]})
    for _, run in groupby(enumerate(aims), key=lambda each: (each[1][1], each[1][0] - each[0])):
        places = [aim for _, aim in run]  # neighbouring rows of one target share a line
        axis.plot([places[0][1]] * 2, [places[0][0] - 0.45, places[-1][0] + 0.45], "-", color="#444444", label="target", linewidth=1.4)


def _order(cell: Measured) -> tuple[Any, ...]:
    sizes = (cell["prompt_tokens"], cell["configurations"], cell["samples"])
    return list(NAMES).index(cell["shape"]) if cell["shape"] in NAMES else -1, cell["dtype"] != "float32", *sizes, cell["share"]


def _label(cell: Measured) -> str:
    sizes = f"P {cell['prompt_tokens']:,}  N {cell['samples']}  C {cell['configurations']}"
    dtype = "" if cell["dtype"] == "float32" else f", {cell['dtype']}"
    return f"{NAMES.get(cell['shape'], cell['shape'])}{dtype}  {sizes}  at {cell['share']} %"


# --- words ------------------------------------------------------------------------------------------------------------------------------


def summary(found: Measured) -> str:
    """The lines of the README: what was reached, beside what, and where it loses."""
    parts = (_main(found), _beside(found), _small(found), _flat(found), _losses(found), _made(found))
    text = " ".join(part for part in parts if part)
    return f"{text}\n\n![Times the speed of transformers with a hook, by case](benchmarks/results/steering.svg)"


def _cell(found: Measured, positions: str, sizes: str = "P1024 N4 C16", share: int = 50) -> Measured | None:
    cell: Measured | None = found["cells"].get(f"6l float32 {sizes} {share}% {positions}")
    return cell


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _main(found: Measured) -> str:
    half = {positions: cell for positions in POSITIONS if (cell := _cell(found, positions))}
    if not half:
        return ""
    some = next(iter(half.values()))
    rows = some["configurations"] * some["samples"]
    words = [
        f"{_seconds(cell, 'ours')} where {POSITIONS[positions]} are written ({_times(reached(cell))} times as fast as transformers with a "
        f"hook, one call a configuration, which takes {_seconds(cell, 'loop')}; the target is {cell['target']:.0f})"
        for positions, cell in half.items()
    ]
    same = min(cell["arms"]["ours"]["agreement"] for cell in half.values())
    others = [_cell(found, positions, share=share) for positions in POSITIONS for share in (25, 75)]
    depth = [f"{cell['share']} % {_times(reached(cell))} ({cell['positions']})" for cell in others if cell]
    return (
        f"On a Llama of 6 layers, d_model 512, random weights in float32, a prompt of {some['prompt_tokens']:,} tokens with "
        f"{some['configurations']} steering vectors at half the depth, {some['samples']} samples each and {some['new_tokens']} new tokens, "
        f"the {rows} continuations take {' and '.join(words)}; {_share(same)} of the tokens are the loop's."
        + (f" With the vectors at other depths it is as many times as fast: {', '.join(depth)}." if depth else "")
        + "".join(_larger(found, sizes, words) for sizes, words in LARGER.items())
    )


LARGER = {"P1024 N16 C16": "with 16 samples", "P3072 N4 C16": "with a prompt of 3,072 tokens"}
"""Sizes beside the main ones that the README names."""


def _larger(found: Measured, sizes: str, words: str) -> str:
    cells = {positions: cell for positions in POSITIONS if (cell := _cell(found, positions, sizes))}
    return f" At half the depth {words}: {', '.join(f'{_times(reached(cell))} ({name})' for name, cell in cells.items())}." if cells else ""


def _beside(found: Measured) -> str:
    """The other arms at the main sizes."""
    words = []
    for arm, beside in (("batched", ""), ("steering_vectors", " peers"), ("nnsight", " peers")):
        cells = [found["cells"].get(f"6l float32 P1024 N4 C16 50% {positions}{beside}", {"times_loop": {}}) for positions in POSITIONS]
        ratios = [_times(reached(cell, arm)) for cell in cells if arm in cell["times_loop"]]
        if ratios:
            words.append(f"{ARMS[arm][0]} {' and '.join(ratios)}")
    return f"Other ways, held against the same loop in turn: {', '.join(words)}." if words else ""


def _small(found: Measured) -> str:
    ratios = [reached(cell) for n in (1, 4) for positions in POSITIONS if (cell := _cell(found, positions, f"P128 N{n} C1"))]
    return f"With a prompt of 128 tokens and one configuration it is at least {_times(min(ratios))} times as fast." if ratios else ""


def _flat(found: Measured) -> str:
    flat = found.get("flat", {}).get("6l")
    if not flat:
        return ""
    speeds = flat["configurations"]
    first, last = list(speeds)[0], list(speeds)[-1]
    return (
        f"{flat['rows']} rows are decoded at {speeds[first]['wall_tokens_s']:.0f} tokens/s where they share one configuration and at "
        f"{speeds[last]['wall_tokens_s']:.0f} where they are of {last}; between {', '.join(speeds)} the fastest is "
        f"{100 * flat['spread_wall']:.0f} % above the slowest."
    )


def _losses(found: Measured) -> str:
    """Every cell below its target, and every one that is slower than the loop."""
    repeated = [key for key in found["cells"] if key.endswith(" peers") and key.removesuffix(" peers") in found["cells"]]
    cells = sorted(below({"cells": {key: cell for key, cell in found["cells"].items() if key not in repeated}}), key=_order)
    missed = [f"{_label(cell)}, {cell['positions']}: {_times(reached(cell))} of {cell['target']:g}" for cell in cells if cell["target"]]
    slower = [f"{_label(cell)}, {cell['positions']}: {_times(reached(cell))}" for cell in cells if not cell["target"]]
    n_aimed = sum(1 for cell in found["cells"].values() if cell["target"])
    words = (
        [f"Below the target: {'; '.join(missed)}."]
        if missed
        else [f"None of {n_aimed} cases with a target is below it."]
        if n_aimed
        else []
    )
    words += [f"Slower than the loop: {'; '.join(slower)}."] if slower else []
    return " ".join(words).replace("  ", " ")


def _made(found: Measured) -> str:
    machine = next(iter(found["machines"].values()))
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    scaled = any(arm["scaled"] for cell in found["cells"].values() for arm in cell["arms"].values())
    return (
        f"(Medians of interleaved runs, {threads} of an {machine['processor']}; of wall and processor seconds the ratio that is lower; "
        + ("long loops are timed on some of their calls and scaled, as the file says; " if scaled else "")
        + "`python benchmarks/steering.py`.)"
    )


def _seconds(cell: Measured, arm: str) -> str:
    return f"{cell['arms'][arm]['wall_s']:.3g} s"


def _share(value: float) -> str:
    return "all" if value == 1 else f"{100 * value:.2f} %"
