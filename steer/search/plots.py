"""What a search found, drawn: effect against price, layer by dose, the verdict beside its controls.

Drawn with ink of one colour, which a page can replace to suit its background.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE = "#112233", "#445566"
# Told apart on white and on black, and by most who see colours otherwise.
COLOURS = ("#3b8ad9", "#e08a1e", "#2fa37a", "#c4588b", "#8a6fd1", "#b59f00", "#7a8793")
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}
Finding = Mapping[str, Any]


def can_draw() -> bool:
    """Whether matplotlib is there (the extra `plots` brings it)."""
    return find_spec("matplotlib") is not None


def drawings(finding: Finding) -> dict[str, Callable[["Axes"], None]]:
    """Name -> what draws it on axes; those that the finding has something for."""
    found: dict[str, Callable[[Axes], None]] = {}
    if len(finding["tried"]) > 1:
        found["pareto"] = lambda axes: _pareto(axes, finding)
    if _grid(finding) is not None:
        found["heat map"] = lambda axes: _heat_map(axes, finding)
    if finding["verdict"]["controls"]:
        found["controls"] = lambda axes: _controls(axes, finding["verdict"])
    return found


def as_svg(draw: Callable[["Axes"], None], name: str) -> str:
    """An `<svg>` element whose ink is the page's: the variables --ink and --line."""
    with _drawn(draw, name) as sheet:
        buffer = io.StringIO()
        sheet.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(LINE, "var(--line)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{name}"', text, count=1
    )


def as_png(draw: Callable[["Axes"], None], name: str) -> bytes:
    """A PNG on white."""
    with _drawn(draw, name) as sheet:
        buffer = io.BytesIO()
        sheet.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


@contextmanager
def _drawn(draw: Callable[["Axes"], None], name: str) -> "Iterator[Figure]":
    import matplotlib
    from matplotlib.figure import Figure

    # Ids of a page's drawings must differ.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        sheet = Figure((6.4, 4.0), layout="constrained")
        draw(sheet.subplots())
        yield sheet


def _pareto(axes: "Axes", finding: Finding) -> None:
    """Effect against KL: all that was tried, the finalists with intervals, the limit."""
    limit = finding["limits"]["max_kl"]
    methods = list(dict.fromkeys(one["method"] for one in finding["tried"]))
    finalists = {one["name"]: one for one in finding["finalists"]}
    for method, colour in zip(methods, COLOURS * len(methods), strict=False):
        points = [one for one in finding["tried"] if one["method"] == method]
        kls, effects = [one["kl"] for one in points], [one["effect"] for one in points]
        axes.scatter(kls, effects, s=12, color=colour, alpha=0.6, label=method)
        some = [one for one in finalists.values() if one["method"] == method]
        if some:
            spread = [
                [f["effect"] - f["low"] for f in some],
                [f["high"] - f["effect"] for f in some],
            ]
            places = [f["kl"] for f in some], [f["effect"] for f in some]
            axes.errorbar(*places, yerr=spread, fmt="o", ms=5, color=colour, capsize=2)
    if finding["pick"] is not None:
        pick = next(one for one in finalists.values() if _same(one, finding["pick"]))
        axes.scatter(
            pick["kl"], pick["effect"], s=160, marker="*", color=INK, label="pick", zorder=3
        )
    axes.axvline(limit, color=LINE, linestyle=":", label="limit")
    axes.axhline(0, color=LINE, linewidth=0.8)
    if max(one["kl"] for one in finding["tried"]) > 5 * limit:
        axes.set_xscale("symlog", linthresh=limit)
        axes.set_xlim(left=0)
    axes.set(xlabel="KL to the unsteered model (nats a token)", ylabel="effect (nats a pair)")
    axes.legend(fontsize=8)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("method", "layer", "dose", "positions"))


def _grid(finding: Finding) -> tuple[str, list[Mapping[str, Any]]] | None:
    """The pick's method and what was tried of it; that of most settings where there is no pick."""
    with_layers = [one for one in finding["tried"] if one["layer"] is not None]
    if finding["pick"] is not None:
        method, where = finding["pick"]["method"], finding["pick"]["positions"]
    elif with_layers:
        method, where = with_layers[0]["method"], with_layers[0]["positions"]
    else:
        return None
    own = [o for o in with_layers if o["method"] == method and o["positions"] == where]
    return (method, own) if len(own) > 1 else None


def _heat_map(axes: "Axes", finding: Finding) -> None:
    """Effect by layer and dose; what is over the limit on KL is crossed out."""
    found = _grid(finding)
    assert found is not None
    method, cells = found
    layers = sorted({one["layer"] for one in cells})
    doses = sorted({one["dose"] for one in cells})
    largest = max(abs(one["effect"]) for one in cells) or 1.0
    table = [[math.nan] * len(doses) for _ in layers]
    for one in cells:
        table[layers.index(one["layer"])][doses.index(one["dose"])] = one["effect"]
    mesh = axes.pcolormesh(table, cmap="PuOr_r", vmin=-largest, vmax=largest, edgecolors="none")
    for one in cells:
        place = doses.index(one["dose"]) + 0.5, layers.index(one["layer"]) + 0.5
        over = one["kl"] > finding["limits"]["max_kl"]
        colour = "white" if abs(one["effect"]) > 0.6 * largest else "black"
        said = f"{one['effect']:+.1f}" + (" x" if over else "")
        axes.text(*place, said, ha="center", va="center", fontsize=8, color=colour)
        if finding["pick"] is not None and _same(one, finding["pick"]):
            axes.scatter(*place, s=900, facecolors="none", edgecolors=INK, linewidths=1.5)
    axes.set_xticks([n + 0.5 for n in range(len(doses))], [f"{dose:g}" for dose in doses])
    axes.set_yticks([n + 0.5 for n in range(len(layers))], list(map(str, layers)))
    axes.set(xlabel="dose", ylabel="layer", title=f"{method}: effect (nats a pair)")
    bar = axes.figure.colorbar(mesh, ax=axes)
    bar.outline.set_visible(False)


def _controls(axes: "Axes", verdict: Mapping[str, Any]) -> None:
    """The setting, its reverse, and the controls, on one scale."""
    rows: list[tuple[str, Sequence[float]]] = list(verdict["controls"].items())
    for place, (kind, values) in enumerate(rows):
        axes.scatter(values, [place] * len(values), s=24, alpha=0.6, color=COLOURS[place])
        axes.annotate(
            f"{len(values)} {kind}",
            (0.01, place + 0.2),
            xycoords=("axes fraction", "data"),
            fontsize=9,
        )
    for name, one in (
        ("steered the other way", verdict["reversed"]),
        ("the pick", verdict["effect"]),
    ):
        if one is not None:
            place = len(rows)
            spread = [[one["mean"] - one["low"]], [one["high"] - one["mean"]]]
            axes.errorbar([one["mean"]], [place], xerr=spread, fmt="D", color=INK, capsize=3)
            axes.annotate(name, (0.01, place + 0.2), xycoords=("axes fraction", "data"), fontsize=9)
            rows.append((name, [one["mean"]]))
    axes.axvline(0, color=LINE, linewidth=0.8)
    axes.set_ylim(-0.5, len(rows))
    axes.set_yticks([])
    axes.set(xlabel="change of log P(matching) - log P(not matching), nats a pair")
