"""Score result files: steered beside unsteered answers, with 95 % intervals.

python steer/evaluate/evaluate.py --generation_dataset_path answers --eval_methods ppl distinctness
python steer/evaluate/evaluate.py --generation_dataset_path gsm_results.json --eval_methods gsm

Each file's figures go to <results_dir>/<data set>_evaluation.json, and tables of all files to
evaluation.md and evaluation.csv beside it.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Run as a file, Python looks for modules in this folder, and not in the project.
if __name__ == "__main__":
    elsewhere = [place for place in sys.path if Path(place).resolve() != FOLDER]
    sys.path[:] = [str(FOLDER.parents[1]), *elsewhere]

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args

from steer.build import unknown
from steer.evaluate import METRICS_CLASS_DICT, Evaluator
from steer.evaluate.options import Options
from steer.evaluate.tables import show
from steer.terminal import Parser, command


def main(arguments: Sequence[str] | None = None) -> int:
    """Score as the arguments say; its exit status: 1 after a mistake of the user's."""
    return command(_run, arguments, kept="files that were finished are kept")


def _run(arguments: list[str]) -> None:
    evaluator = Evaluator(**_given(arguments))
    show(evaluator.evaluate_all())
    for error in evaluator.broken:
        raise error


def _given(arguments: list[str]) -> dict[str, Any]:
    """Flag -> what stands behind it, as text: it is checked where it is used."""
    values, unknown_ones = parser().parse_known_args(arguments)
    if unknown_ones:
        name = unknown_ones[0].partition("=")[0]
        raise ValueError(unknown("flag", name, [f"--{key}" for key in _flags()]))
    return vars(values)


def parser() -> argparse.ArgumentParser:
    """The options of an evaluation, and the fields of every metric."""
    made = Parser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, (field, users) in _flags().items():
        several = any(str(part).startswith("list") for part in (field.type, *get_args(field.type)))
        default = "" if field.default is None else f" (default: {field.default})"
        of = f" [{', '.join(users)}]" if users else ""
        made.add_argument(
            f"--{name}",
            nargs="+" if several else None,
            metavar="VALUE",
            help=f"{field.metadata['help']}{default}{of}".replace("%", "%%"),
        )
    made.epilog = f"metrics: {', '.join(METRICS_CLASS_DICT)}"
    return made


def _flags() -> dict[str, tuple[Any, list[str]]]:
    """Flag -> its field, and the metrics that read it."""
    found: dict[str, tuple[Any, list[str]]] = {f.name: (f, []) for f in fields(Options)}
    for metric, cls in METRICS_CLASS_DICT.items():
        every: Any = fields(cls)  # type: ignore[arg-type]
        for field in every:
            found.setdefault(field.name, (field, []))[1].append(metric)
    return found


if __name__ == "__main__":
    sys.exit(main())
