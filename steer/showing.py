"""Results on a terminal: what training found, answers side by side, the report, and the paths."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from steer.applier import BaseVectorApplier
from steer.evaluate import Evaluator
from steer.evaluate.perplexity import MODEL_OPTIONS, OF_ONE_MODEL
from steer.evaluate.tables import show as show_figures
from steer.generator import BaseVectorGenerator
from steer.models.interventions import opposite
from steer.report import render
from steer.settings import Settings

SHOWN = 4
# Of a list of findings; the rest is in training.json.
LISTED = 10
# A list of more numbers is drawn as a curve.
SPELT_OUT = 6
WIDTH = 24
LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.-=+*#@"


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
    show_written([*written, *map(applier.results_path, results)])


def show_written(paths: Iterable[Path]) -> None:
    """Print where files are now."""
    for path in paths:
        Console().print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def evaluator_of(settings: Settings) -> Evaluator | None:
    """What scores the answers of a run; None where nothing is asked.

    Raises:
        ValueError: An unknown metric or option.
    """
    if not settings.eval_methods:
        return None
    # The model of the run, as it is loaded: no second one is read.
    source = {name: getattr(settings, name) for name in MODEL_OPTIONS}
    scorer = settings.eval_options.get("model_name_or_path", settings.model_name_or_path)
    if scorer != settings.model_name_or_path:
        source = {name: value for name, value in source.items() if name not in OF_ONE_MODEL}
    of_run = {"eval_methods": settings.eval_methods, "results_dir": settings.generation_output_dir}
    return Evaluator(**of_run | source | settings.eval_options)


def show_evaluation(applier: BaseVectorApplier, names: Iterable[str]) -> None:
    """Score the answers to the data sets `names`; figures are written beside them, and printed."""
    evaluator = evaluator_of(applier.settings)
    if evaluator is not None:
        paths = {name: applier.results_path(name) for name in names}
        # By name: data sets of several concepts have files of the same stem.
        show_figures({n: evaluator.evaluate_from_file(p, name=n) for n, p in paths.items()})


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
        # As it is: brackets in an answer are no markup.
        table.add_row(*(Text(" ".join(cell.split())) for cell in cells))
    return table


def show_training(generator: BaseVectorGenerator) -> None:
    """Print what each method found while it made its vectors."""
    console = Console()
    levels = ASCII_LEVELS if console.options.ascii_only else LEVELS
    for dataset, made in generator.trained.items():
        for key, trained in made.items():
            for part in findings(f"{key} on {dataset}", trained.report, levels):
                console.print(part)


def findings(
    title: str, report: Mapping[str, Any], levels: str = LEVELS
) -> Iterator[RenderableType]:
    """A method's report, JSON-like, as titles and tables.

    Args:
        title: What it is about.
        report: Single values and lists of numbers become rows; matrices and lists of mappings
            tables; a mapping is a report of its own.
        levels: The steps of a curve, from low to high.
    """
    large = {name: value for name, value in report.items() if _is_large(value)}
    small = {name: value for name, value in report.items() if name not in large}
    if small:
        yield Text(title, style="bold")
        yield _table(["what", "value"], [[_words(n), _cell(v, levels)] for n, v in small.items()])
    for name, value in large.items():
        heading = f"{title}: {_words(name)}"
        if isinstance(value, Mapping):
            yield from findings(heading, value, levels)
        else:
            yield Text(heading, style="bold")
            yield _listing(value, levels) if isinstance(value[0], Mapping) else _matrix(value)


def curve(values: Sequence[float], levels: str = LEVELS) -> str:
    """First and last of many numbers, and between them their course, drawn with `levels`."""
    count = min(len(values), WIDTH)
    edges = [len(values) * n // count for n in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(levels) - 1) / (high - low) if high > low else 0
    drawn = "".join(levels[round((mean - low) * scale)] for mean in means)
    return f"{values[0]:.4g} -> {values[-1]:.4g}  {drawn}  ({len(values)} values)"


def _is_large(value: object) -> bool:
    """Whether it needs a table: a mapping, or a list of mappings or of rows of numbers."""
    if isinstance(value, list) and value:
        return all(isinstance(one, Mapping | list) for one in value)
    return isinstance(value, Mapping) and bool(value)


def _cell(value: Any, levels: str) -> str:
    if isinstance(value, bool) or value is None or value in ([], {}):
        return "yes" if value is True else "no" if value is False else "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        numbers = all(isinstance(one, int | float) for one in value)
        if numbers and len(value) > SPELT_OUT:
            return curve(value, levels)
        return ", ".join(_cell(one, levels) for one in value)
    return str(value)


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _matrix(rows: Sequence[Sequence[float]]) -> Table:
    numbered = [[str(n), *(f"{v:.2f}" for v in row)] for n, row in enumerate(rows, start=1)]
    return _table(["", *map(str, range(1, len(rows[0]) + 1))], numbered)


def _listing(items: Sequence[Mapping[str, Any]], levels: str) -> Table:
    columns = list(dict.fromkeys(name for item in items for name in item))
    rows = [
        [str(number), *(_cell(item[c], levels) if c in item else "" for c in columns)]
        for number, item in enumerate(items[:LISTED], start=1)
    ]
    table = _table(["", *map(_words, columns)], rows)
    if len(items) > LISTED:
        table.caption = f"and {len(items) - LISTED} more"
    return table


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*headers)
    for row in rows:
        # As it is: what stands in brackets is text here, not markup.
        table.add_row(*map(Text, row))
    return table
