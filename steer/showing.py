"""Results on a terminal: answers side by side, the report, and where everything was written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steer.applier import BaseVectorApplier
from steer.models.interventions import opposite
from steer.report import render

SHOWN = 4


def show(
    applier: BaseVectorApplier,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    written: Sequence[Path] = (),
    *,
    both_ways: bool = False,
) -> None:
    """Print each data set's first answers and report, and where all is.

    Args:
        applier: What answered.
        results: By data set name.
        written: Folders of vectors, named too.
        both_ways: Answer the shown inputs steered the other way as well.
    """
    console = Console()
    for name, records in results.items():
        console.print(side_by_side(applier, name, records[:SHOWN], both_ways))
        if name in applier.reports:
            console.print(render(applier.reports[name]))
    for path in [*written, *(applier.results_path(name) for name in results)]:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)


def side_by_side(
    applier: BaseVectorApplier, name: str, records: Sequence[Mapping[str, Any]], both_ways: bool
) -> Table:
    """A row an input; the answers steered the other way are made here."""
    other = opposite(applier.model.interventions()) if both_ways else []
    reverse = (
        [a.text for a in applier.answers([r["input"] for r in records], other)] if other else []
    )
    headers = ["input", "unsteered", "steered"] + (["steered the other way"] if other else [])
    table = Table(*headers, title=f"Answers: {name}", show_lines=True)
    for number, record in enumerate(records):
        plain = record["orig_pred"][0] if record["orig_pred"] else "(not generated)"
        cells = [record["input"], plain, record["pred"][0], *reverse[number : number + 1]]
        table.add_row(*(" ".join(cell.split()) for cell in cells))
    return table
