"""``ulterior connections``: the downstream features that a feature feeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.cells import cell_len

from audit.cli import output
from audit.cli.options import config_of, connection_options, model_options, output_options
from audit.cli.progress import watching
from audit.errors import ExitCode, UsageError
from audit.events import Observer
from audit.plain import plain
from audit.records.audits import AuditConfig
from audit.records.connections import Connection, ConnectionFlag, DownstreamConnections, FeatureConnections, TargetDescriptors
from audit.records.names import FeatureId

if TYPE_CHECKING:
    from audit.bench import Bench
    from audit.opened import Observed

EPILOG = """\b
Examples:
  ulterior connections plt/0/34 plt/0/107
  ulterior connections plt/0/34 --scenario blackmail --through-attention
  ulterior connections blackmail --top 3
  ulterior connections clt/12/4081 --atlas atlas

With --atlas no model is opened: the answer was computed by `ulterior atlas build`.
"""
WIDTH = 100
"""Columns of text that a table takes."""
MARKS = {
    ConnectionFlag.DENSE: "D",
    ConnectionFlag.ANTIPODAL: "A",
    ConnectionFlag.SMALL_V_LARGE_TWERA: "v",
    ConnectionFlag.UNSUPPORTED: "u",
    ConnectionFlag.NEVER_COACTIVE: "n",
}
LEGEND = {
    ConnectionFlag.DENSE: "D fires on more than 10 % of tokens",
    ConnectionFlag.ANTIPODAL: "A reads and writes the opposite of the source",
    ConnectionFlag.SMALL_V_LARGE_TWERA: "v |V| is small, the weight comes from activations",
    ConnectionFlag.UNSUPPORTED: "u fires with the source on too few tokens",
    ConnectionFlag.NEVER_COACTIVE: "n |V| is large, but both never fire together",
}
WITH_ATLAS = {"named", "atlas", "top", "wants_json", "quiet"}
"""Parameters that have an effect on what an atlas says."""
Roles = dict[FeatureId, float | None]


@click.command(epilog=EPILOG)
@click.argument("named", nargs=-1, required=True, metavar="FEATURE...|SCENARIO")
@model_options
@click.option("--scenario", metavar="NAME", default="", help="Show roles, and weights on this scenario's own tokens, beside FEATUREs.")
@click.option("--concept", metavar="WORDS", help="What to look for with SCENARIO. [default: the scenario's concept]")
@connection_options
@click.option("--atlas", metavar="FOLDER", type=click.Path(path_type=Path), help="Answer from here; no model is opened.")
@click.option("--top", metavar="N", type=click.IntRange(min=1), default=10, show_default=True, help="Targets printed of each list.")
@click.option("--describe", "describes", is_flag=True, help="Show every listed target's examples, unembeds and motor share too.")
@output_options
@click.pass_context
def connections(ctx: click.Context, /, named: tuple[str, ...], top: int, atlas: Path | None, **options: Any) -> ExitCode:
    """Weigh what FEATUREs, or the candidates of a SCENARIO, feed downstream; records nothing."""
    features = _features(named, ctx)
    if atlas is not None:
        _refuse_idle(ctx)
        from audit.cli.atlas import show_neighbours

        return show_neighbours(atlas, features, top=top, wants_json=options["wants_json"])
    with watching(quiet=options["quiet"]) as observer:
        from audit import pipeline

        config = config_of(ctx)
        kept_top = max(top, pipeline.TOP)
        kept = None if config.scenario else pipeline.kept_connections(config, features, observer, kept_top)
        found, roles = (kept, None) if kept else _weighed(config, features, observer, kept_top)
    if options["wants_json"]:
        named_roles = None if roles is None else {str(feature): role for feature, role in sorted(roles.items())}
        output.as_json({**output.as_plain(found), "roles": named_roles})
        return ExitCode.DONE
    listed = show(found, roles, top)
    if options["describes"]:
        describe([each for each in found.targets if each.feature in listed])
    return ExitCode.DONE


def _refuse_idle(ctx: click.Context) -> None:
    """Refuse what was passed and would have no effect.

    Raises:
        UsageError: some option was.
    """
    passed = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and name not in WITH_ATLAS]
    if passed:
        idle = ", ".join("--" + name.replace("_", "-") for name in sorted(passed)).replace("--describes", "--describe")
        why = f"An atlas answers as it was built: {idle} would change nothing."
        raise UsageError("Options without effect", why, "Leave them out, or leave --atlas out to weigh anew.")


def _weighed(
    config: AuditConfig, features: tuple[FeatureId, ...], observer: Observer, top: int
) -> tuple[DownstreamConnections, Roles | None]:
    """On activations; of the scenario's candidates, where no features were named."""
    from audit import pipeline

    bench = pipeline.prepare(config, observer, features) if config.scenario else pipeline.look(config, observer, features)
    if isinstance(bench, pipeline.Bench) and not features:
        features = tuple(each.feature for each in pipeline.find_candidates(bench).candidates)
    found = pipeline.connections_of(bench, features, config, observer, top)
    return found, _roles(bench, found)


def _features(named: Sequence[str], ctx: click.Context) -> tuple[FeatureId, ...]:
    """The features that were named; none where a scenario was, which then is the command's.

    Raises:
        UsageError: neither, or both.
    """
    if any("/" in name and not name.endswith((".yaml", ".yml")) for name in named):
        return tuple(dict.fromkeys(FeatureId.parse(name) for name in named))
    advice = "Name features, such as clt/2/81, or one scenario. `ulterior scenarios` lists them."
    if len(named) > 1 or ctx.params["scenario"]:
        raise UsageError("More than one scenario", f"'{' '.join(named)}' names no features.", advice)
    if ctx.params["atlas"] is not None:
        raise UsageError("No features", f"An atlas knows no candidates of the scenario '{named[0]}'.", "Name features, such as clt/2/81.")
    ctx.params["scenario"] = named[0]
    return ()


def _roles(bench: Bench | Observed, found: DownstreamConnections) -> Roles | None:
    """Of every listed target; None without a scenario."""
    from audit.pipeline import Bench
    from audit.ranking.roles import target_roles

    if not isinstance(bench, Bench):
        return None
    targets = {connection.target for each in found.features for connection in _all(each)}
    return {feature: known.role for feature, known in target_roles(sorted(targets), bench.acting, bench.discussing).items()}


def _all(each: FeatureConnections) -> tuple[Connection, ...]:
    return (*each.targets, *each.by_attention, *each.by_scenario, *each.unsupported, *each.never_coactive)


def show(found: DownstreamConnections, roles: Roles | None, top: int) -> set[FeatureId]:
    """Print every source's lists; returns the targets in them."""
    used: set[ConnectionFlag] = set()
    listed: set[FeatureId] = set()
    half = max(1, top // 2)
    for number, each in enumerate(found.features):
        output.say("\n" * (number > 0) + f"{each.source}  {_counted(each)}")
        lists = (
            ("strongest by TWERA", "support", each.targets),
            ("strongest through attention (TWERA+OV); support: tokens reached", "reached", each.by_attention),
            ("strongest on the scenario's tokens; support: on these", "scenario", each.by_scenario),
            ("not ranked: too few tokens, or none", "support", (*each.unsupported[:half], *each.never_coactive[:half])),
        )
        for title, support, connections in lists:
            if connections:
                _show_list((title, support), connections[:top], found, roles, each.support_cutoff)
                used |= {flag for connection in connections[:top] for flag in connection.flags}
                listed |= {connection.target for connection in connections[:top]}
        for title, tokens in (("V, largest on the output tokens", each.promoted), ("V, most negative on", each.suppressed)):
            if tokens:
                output.say(_fitting(title, [f"{one.text.strip() or repr(one.text)} {one.virtual_weight:+.3g}" for one in tokens]))
    output.say("\n" + _ground(found))
    if used:
        output.say("\n".join(LEGEND[flag] for flag in LEGEND if flag in used))
    return listed


def _fitting(beginning: str, parts: Sequence[str]) -> str:
    """As many parts as fit on a line."""
    line = beginning
    for part in parts:
        if cell_len(longer := f"{line}  {plain(part)}") > WIDTH:
            break
        line = longer
    return line


def describe(targets: Sequence[TargetDescriptors]) -> None:
    """Print what one sees of each target."""
    for each in targets:
        motor = "" if each.motor_share is None else f", motor share {each.motor_share:.2g} nats on {each.motor_tokens} tokens"
        output.say(
            f"\n{each.feature}  {plain(each.label)[: WIDTH // 2]}\n  {plain(each.label_source)}; fires on {each.frequency:.2%}{motor}"
        )
        for title, tokens in (("raises", each.top_unembeds), ("lowers", each.bottom_unembeds)):
            output.say(_fitting(f"  {title}", [one.token.strip() or repr(one.token) for one in tokens]))
        for example in each.examples:
            before, peak, after = (plain("".join(example.tokens[part])) for part in _around(example.peak))
            output.say("  " + _middle(before, f"«{peak}»", after))


def _around(peak: int) -> tuple[slice, slice, slice]:
    return slice(None, peak), slice(peak, peak + 1), slice(peak + 1, None)


def _middle(before: str, peak: str, after: str) -> str:
    """A line of text around the peak, cut on both sides."""
    room = (WIDTH - 4 - len(peak)) // 2
    return before[max(0, len(before) - room) :] + peak + after[:room]


def _counted(each: FeatureConnections) -> str:
    if not each.n_targets:
        return "no later layer has features"
    loud = f"; of the largest 0.01 % by |V|, {each.n_never_coactive} never meet it" if each.n_never_coactive else ""
    return f"{each.n_targets} later features; {each.n_unsupported} meet it on fewer than {each.support_cutoff} tokens{loud}"


SUPPORTS: dict[str, Callable[[Connection], int | None]] = {
    "support": lambda one: one.n_coactive,
    "reached": lambda one: one.n_reached,
    "scenario": lambda one: one.scenario_n_coactive,
}
"""What a list goes by."""


def _show_list(
    title: tuple[str, str], connections: Sequence[Connection], found: DownstreamConnections, roles: Roles | None, cutoff: int
) -> None:
    """One table, under a title, with the support that it goes by; columns of what was not computed are left out."""
    columns: list[tuple[str, Callable[[Connection], object]]] = [
        ("target", lambda one: one.target),
        ("layer", lambda one: one.target.layer),
        ("TWERA", lambda one: _figure(one.twera)),
    ]
    if found.attention is not None:
        columns.append(("+OV", lambda one: _figure(one.through_attention)))
    if found.scenario is not None:
        columns.append(("scenario", lambda one: _scenario(one, cutoff)))
    columns += [
        ("ERA", lambda one: _figure(one.era)),
        ("V", lambda one: _figure(one.virtual_weight)),
        ("support", SUPPORTS[title[1]]),
    ]
    if roles is not None:
        columns.append(("role", lambda one: None if roles[one.target] is None else f"{roles[one.target]:+.2f}"))
    columns += [
        ("", lambda one: "".join(MARKS[flag] for flag in one.flags)),
        ("fires on", lambda one: one.target_label or " ".join(each.token for each in one.target_unembeds[:4])),
    ]
    rows = [[cell(one) for _, cell in columns] for one in connections]
    output.table([name for name, _ in columns], rows, title=title[0], width=WIDTH, cut="fires on")


def _scenario(one: Connection, cutoff: int) -> str:
    """TWERA on the scenario's tokens; in brackets on too few of them, and a dot where both never meet."""
    if not one.scenario_n_coactive:
        return "·"
    figure = _figure(one.scenario_twera) or "0"
    return figure if one.scenario_n_coactive >= cutoff else f"({figure})"


def _figure(value: float | None) -> str | None:
    """Three digits, in at most eight characters."""
    if value is None:
        return None
    if value == 0:
        return "0"
    return f"{value:+.3f}" if 1e-3 <= abs(value) < 1e3 else f"{value:+.1e}"


def _ground(found: DownstreamConnections) -> str:
    """What the figures were computed on."""
    said = [f"Corpus: {found.n_tokens} tokens. V, ERA and TWERA miss inhibition, attention and several hops."]
    if found.attention is not None:
        cost = f"{found.attention.operations:.1e} operations beside the forward passes"
        said.append(f"Through attention: {found.attention.n_tokens} of them in {found.attention.n_documents} documents, {cost}.")
    if found.scenario is not None:
        its = found.scenario
        said.append(f"Scenario {its.scenario}: {its.n_tokens} tokens of {its.n_rollouts} unsteered rollouts.")
        said.append("(…) on fewer of them than the cut-off, · on none")
    return "\n".join(said)
