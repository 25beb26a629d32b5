"""The report on a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from steer.build import read_yaml
from steer.search import wording
from steer.search.page import CONFIG

# Shifts weaker than this, of 1, have no colour: a terminal has no shades.
BRIGHT = 0.25
STYLES = {"up": "green", "down": "dark_orange"}


def parts(finding: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What is printed of a finding, part by part."""
    verdict = finding["verdict"]
    words = [wording.headline(finding), *verdict["reasons"]]
    style = "green" if verdict["works"] else "red"
    yield Panel(Text("\n".join(words)), title=wording.title(finding), border_style=style)
    if rows := wording.facts(finding):
        table = Table("figure", "value", "what it says")
        for row in rows:
            table.add_row(*map(Text, row))
        yield table
    yield _heat_map(finding)
    yield _finalists(finding)
    for example in finding["examples"]:
        yield _example(example)
    for what, command in wording.commands(finding, read_yaml(CONFIG, "config")):
        yield f"{what} {command}"


def _heat_map(finding: Mapping[str, Any]) -> Table:
    """Effect by layer and dose of each method."""
    table = Table("method", "layer", title="Effect (nats a pair); x: over the limit on KL")
    doses = sorted({one["dose"] for one in finding["tried"]})
    for dose in doses:
        table.add_column(f"dose {dose:g}", justify="right")
    rows: dict[tuple[str, str, str], dict[float, str]] = {}
    for one in finding["tried"]:
        over = " x" if one["kl"] > finding["limits"]["max_kl"] else ""
        key = one["method"], "" if one["layer"] is None else f"{one['layer']:>2}", one["positions"]
        rows.setdefault(key, {})[one["dose"]] = f"{one['effect']:+.2f}{over}"
    for (method, layer, where), cells in sorted(rows.items()):
        name = method if where == "all" else f"{method}, {where}"
        table.add_row(name, layer, *(cells.get(dose, "") for dose in doses))
    return table


def _finalists(finding: Mapping[str, Any]) -> Table:
    heads = ("setting", "effect", "KL", "perplexity", "repetition", "refusal", "good")
    table = Table(*heads, title="The settings that came through", caption=wording.limits(finding))
    for row in wording.finalists(finding):
        cells = [
            row[k] for k in ("name", "effect", "kl", "perplexity", "repetition", "refusal", "good")
        ]
        table.add_row(*cells, style="bold" if row["pick"] else None)
    return table


def _example(example: Mapping[str, Any]) -> Table:
    """Answers one below the other; tokens coloured by their shift."""
    table = Table(show_header=False, title=Text(example["input"]))
    steered = Text()
    for token in wording.tokens(example):
        style = STYLES.get(token["kind"], "") if token["strength"] > BRIGHT else ""
        steered.append(token["text"], f"{style} reverse".strip() if token["first"] else style)
    table.add_row("unsteered", Text(example["unsteered"]))
    table.add_row("steered", steered)
    if example["reversed"] is not None:
        table.add_row("the other way", Text(example["reversed"]))
    return table
