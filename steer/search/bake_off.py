"""Every method on the same data with the same budget: effect, price, time, memory.

Each is searched in a process of its own, so that its memory is its own, and a method that cannot
be used here takes no other with it.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from steer.files import read_json, write_json, writing
from steer.search import wording
from steer.search.page import PAGE, rendered, write_text
from steer.search.plots import COLOURS, INK, LINE, as_png, as_svg, can_draw
from steer.search.searching import FINDING
from steer.search.settings import SearchSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

RESULTS = "bake_off.json"
# How the command begins its last word, and the signal by which a system short of memory ends it.
ERROR, KILLED = "error: ", 9
HEADS = (
    *("method", "verdict", "pick", "effect (nats a pair)", "wrong way", "KL", "perplexity"),
    *("seconds", "peak MiB"),
)
# Those of the table on a terminal, and what they are called there.
NUMBERS = {head: head for head in HEADS if head not in ("verdict", "pick")} | {
    "effect (nats a pair)": "nats a pair",
    "seconds": "s",
    "peak MiB": "MiB",
}


def bake_off(
    settings: SearchSettings, source: str, name: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Search for each method by itself, with an equal share of the budget.

    Args:
        settings: Of the search.
        source: What the data set is read by: a name, or a file.
        name: As it is called.
        folder: Where everything goes, in a folder for each method.

    Returns:
        Method -> what its `search.json` has, or `error` and why there is none.
    """
    found: dict[str, dict[str, Any]] = {}
    for method in settings.chosen:
        log.info("%s: %s", name, method)
        found[method] = _searched(settings, source, name, folder, method)
        write_json(folder / RESULTS, found)
    return found


def _searched(
    settings: SearchSettings, source: str, name: str, folder: Path, method: str
) -> dict[str, Any]:
    share, tokens = len(settings.chosen), settings.budget_tokens
    values = asdict(settings) | {
        "methods": [method],
        "steer_train_dataset": [source],
        "budget_minutes": settings.budget_minutes / share,
        "budget_tokens": tokens and max(tokens // share, 1),
        "output_dir": str(folder / method),
        "bake_off": False,
    }
    values |= values.pop("more")
    config = folder / f"search_{method}.yaml"
    with writing(config) as file:
        file.write(OmegaConf.to_yaml(values))
    where = ["--config-path", str(folder.absolute()), "--config-name", config.stem]
    command = [sys.executable, "-m", "steer.search", *where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = _why(done.returncode, done.stderr)
        log.warning("%s: %s", method, why)
        return {"error": why}
    return read_json(folder / method / name / FINDING)


def _why(status: int, said: str) -> str:
    """What ended a process: a signal, its own error, or else the last that it said."""
    if status < 0:
        return f"ended by signal {-status}" + (" (out of memory?)" if status == -KILLED else "")
    lines = said.strip().splitlines() or ["it ended without a word"]
    errors = [line for line in lines if line.startswith(ERROR)]
    return [*lines, *errors][-1].removeprefix(ERROR)


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the table has: a row for each method, by `HEADS`."""
    return [_row(method, result) for method, result in results.items()]


def _row(method: str, result: Mapping[str, Any]) -> dict[str, str]:
    if "error" in result:
        return dict.fromkeys(HEADS, "") | {"method": method, "verdict": result["error"]}
    verdict, pick = result["verdict"], result["pick"]
    effect, damage = verdict["effect"], verdict["damage"]
    cells = (
        method,
        "works" if verdict["works"] else "; ".join(verdict["reasons"]),
        wording.named(pick) if pick else "",
        wording.measured(effect) if effect else "",
        f"{verdict['wrong_way']:.0%}" if effect else "",
        f"{damage['kl']:.3f}" if damage else "",
        f"x {damage['perplexity_ratio']:.2f}" if damage else "",
        f"{result['budget']['seconds']:.0f}",
        f"{result['peak_mib']:.0f}" if result["peak_mib"] else "",
    )
    return dict(zip(HEADS, cells, strict=True))


def bake_off_parts(results: Mapping[str, Mapping[str, Any]]) -> Iterator[RenderableType]:
    """What is printed: verdicts as lines, as no table of 80 columns holds them."""
    table = Table(*NUMBERS.values(), title="Every method, the same data and budget", box=SIMPLE)
    for row in rows(results):
        table.add_row(*(Text(row[head]) for head in NUMBERS))
    yield table
    for row in rows(results):
        yield Text(": ".join(filter(None, (row["method"], row["verdict"], row["pick"]))))


def write_bake_off_page(results: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Write `report.html`, which leads to those of the methods."""
    from steer.search.page import write_page

    findings = {method: one for method, one in results.items() if "error" not in one}
    links = {}
    for method, one in findings.items():
        path = write_page(one, folder / method / one["dataset"])
        links[method] = path.relative_to(folder).as_posix()
    svg = ""
    if can_draw() and any(one["verdict"]["damage"] for one in findings.values()):
        svg = as_svg(lambda axes: _draw(axes, findings), "bake-off")
        with writing(folder / "bake_off.png", "wb") as file:
            file.write(as_png(lambda axes: _draw(axes, findings), "bake-off"))
    first = next(iter(findings.values()), None)
    text = rendered(
        "bake_off.html.j2",
        title=wording.title(first) if first else "Bake-off",
        subtitle="every method with the same data and an equal share of the budget",
        heads=HEADS,
        rows=rows(results),
        links=links,
        svg=svg,
        notes=wording.notes(first) if first else [],
    )
    return write_text(folder / PAGE, text)


def _draw(axes: "Axes", findings: Mapping[str, Mapping[str, Any]]) -> None:
    """Effect against KL on what nothing was chosen by; those that do not work are hollow."""
    for number, (method, one) in enumerate(findings.items()):
        verdict = one["verdict"]
        effect, damage = verdict["effect"], verdict["damage"]
        if effect is None or damage is None:
            continue
        colour = COLOURS[number % len(COLOURS)]
        spread = [[effect["mean"] - effect["low"]], [effect["high"] - effect["mean"]]]
        filled = colour if verdict["works"] else "none"
        axes.errorbar(
            [damage["kl"]],
            [effect["mean"]],
            yerr=spread,
            fmt="o",
            ms=8,
            capsize=3,
            color=colour,
            markerfacecolor=filled,
        )
        place = (damage["kl"], effect["mean"])
        axes.annotate(method, place, (7, 5), textcoords="offset points", color=INK, fontsize=9)
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.margins(x=0.2)
    axes.set(xlabel="KL to the unsteered model (nats a token)", ylabel="effect (nats a pair)")
