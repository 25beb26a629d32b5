"""Effect against strength, and against perplexity: what steering gains, and its price."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steer.evaluate.reading import UNSTEERED
from steer.evaluate.tables import Evaluations, is_number
from steer.files import writing

log = logging.getLogger(__name__)

PRICE = "perplexity"
STRENGTH = "strength"
LABELS = {PRICE: "perplexity (lower is more fluent)", STRENGTH: "strength"}
SPREAD = " std"  # in the names of figures that say how far values lie apart
COLUMNS, MOST = 3, 12
COLOURS = 10  # of matplotlib's cycle
PANEL = (4.0, 3.4)  # inches


@dataclass(frozen=True)
class Point:
    """A figure of one file, and what that file's answers cost, where that was measured."""

    strength: float | None
    price: float | None
    figure: float


Series = dict[str, list[Point]]


def effects(evaluations: Evaluations, against: str = PRICE) -> dict[str, Series]:
    """Figure -> series -> its steered points, in the order of strength.

    A series is one data set steered by one method at several strengths, with one model, in the
    same layers; a file whose strength is not one number is a series of its own. Figures are those
    that two files or more have; against perplexity, beside one.
    """
    found: dict[str, Series] = {}
    names = _series_names(evaluations)
    for name, one in evaluations.items():
        _, strength = _steered_by(one)
        price = float(one[PRICE]) if is_number(one.get(PRICE)) else None
        for figure, value in one.items():
            if (
                is_number(value)
                and SPREAD not in figure
                and (price is not None or against != PRICE)
            ):
                point = Point(strength, price, float(value))
                found.setdefault(figure, {}).setdefault(names[name], []).append(point)
    several = {f: lines for f, lines in found.items() if sum(map(len, lines.values())) > 1}
    return {f: {name: _ordered(p) for name, p in lines.items()} for f, lines in several.items()}


def _series_names(evaluations: Evaluations) -> dict[str, str]:
    """File -> its series: data set and method, and what tells it from others of these."""
    told = {name: _told(name, one) for name, one in evaluations.items()}
    names = {}
    for name, (head, details) in told.items():
        alike = [theirs for other, theirs in told.values() if other == head]
        apart = [n for n, one in enumerate(details) if len({theirs[n] for theirs in alike}) > 1]
        names[name] = ", ".join([head, *(details[n] for n in apart)])
    return names


def _told(name: str, one: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Data set and method of a file; then, in words, model, layers and kind of strength."""
    method, strength = _steered_by(one)
    run = one.get("run") or {}
    half = run.get("methods", {}).get(method, {})
    layers = f"layers {', '.join(map(str, half.get('layers') or ['unknown']))}"
    kind = half.get("strength") or "unknown strength"
    head = name if strength is None else f"{run.get('data') or Path(name).name}, {method}"
    return head, (run.get("model") or "unknown model", layers, kind)


def _steered_by(one: Mapping[str, Any]) -> tuple[str, float | None]:
    """A file's method and its strength; None where these are not one method and one number."""
    strengths = one.get("strengths", {})
    if len(strengths) == 1:
        ((method, strength),) = strengths.items()
        if is_number(strength):
            return method, float(strength)
    return "", None


def _ordered(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.strength or 0.0)


def write_plot(evaluations: Evaluations, path: Path, against: str = PRICE) -> bool:
    """Draw every figure into a PNG; whether there was anything to draw.

    Args:
        evaluations: By name.
        path: The file.
        against: `perplexity`, or `strength`, which all files must have.
    """
    every = _panels(evaluations, against)
    if not every:
        return False
    if find_spec("matplotlib") is None:
        log.info("no plots: matplotlib is not installed (the extra 'plots' brings it)")
        return False
    panels = dict(list(every.items())[:MOST])
    if left_out := [figure for figure in every if figure not in panels]:
        log.info("%s has %d figures, and not %s", path.name, MOST, ", ".join(left_out))
    sheet = _sheet(panels, [found[UNSTEERED] for found in evaluations.values()], against)
    with writing(path, "wb") as file:
        sheet.savefig(file, format="png", dpi=150)
    return True


def _panels(evaluations: Evaluations, against: str) -> dict[str, Series]:
    found = effects(evaluations, against)
    if against == PRICE:
        return {figure: series for figure, series in found.items() if PRICE not in figure}
    points = [p for series in found.values() for line in series.values() for p in line]
    return found if all(p.strength is not None for p in points) else {}


def _sheet(
    panels: Mapping[str, Series], unsteered: Sequence[Mapping[str, Any]], against: str
) -> Any:
    """All panels in one of matplotlib's figures, with one legend: a series has one colour."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Figure((PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
    axes = list(sheet.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[len(panels) :]:
        unused.remove()
    names = dict.fromkeys(name for series in panels.values() for name in series)
    colours = {name: f"C{n % COLOURS}" for n, name in enumerate(names)}
    legend: dict[str, Any] = {}
    for panel, (figure, series) in zip(axes, panels.items(), strict=False):
        _draw(panel, figure, series, against, colours)
        if against == PRICE:
            _draw_plain(panel, figure, unsteered)
        handles, labels = panel.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    sheet.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2, fontsize=8)
    return sheet


def _draw(
    panel: Any, figure: str, series: Series, against: str, colours: Mapping[str, str]
) -> None:
    """One panel, on matplotlib's axes: a line for each series, its points named by strength."""
    for name, points in series.items():
        places = [p.price if against == PRICE else p.strength for p in points]
        panel.plot(places, [p.figure for p in points], "o-", label=name, color=colours[name])
        for point in points:
            if point.strength is not None and against == PRICE:
                place = (point.price, point.figure)
                said = f"{point.strength:+g}"
                panel.annotate(said, place, (4, 4), textcoords="offset points", fontsize=8)
    prices = [p.price for points in series.values() for p in points if p.price is not None]
    if against == PRICE and min(prices) > 0 and max(prices) > 10 * min(prices):
        panel.set_xscale("log")
    panel.set(xlabel=LABELS[against], ylabel=figure)
    panel.margins(0.15)


def _draw_plain(panel: Any, figure: str, unsteered: Sequence[Mapping[str, Any]]) -> None:
    plain = {(u[PRICE], u[figure]) for u in unsteered if is_number(u.get(PRICE)) and figure in u}
    if plain:
        panel.plot(*zip(*plain, strict=True), "s", color="0.5", label=UNSTEERED, zorder=0)
