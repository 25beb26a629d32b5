"""Detectors for conditional steering: make one of prompts, or calibrate vectors that are there.

python -m steer.gates make my/detector --on reviews.jsonl --off others.jsonl --layers 8 12 15
python -m steer.gates calibrate vectors/SmolLM2-135M-Instruct/sentiment/caa_vector --pairs sentiment
python vectors_apply.py gate=my/detector
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.build import read_config
from steer.datasets import DatasetLoader, Row
from steer.files import find
from steer.gates.calibrating import calibrate_folder
from steer.gates.making import KINDS, make_detector
from steer.gates.scores import prompts_of
from steer.methods.caa import TrainCAA
from steer.models.gates import ROW, TOKEN
from steer.settings import LISTS, Run
from steer.terminal import Parser, command

CONFIG = "hparams/Steer/vector_apply.yaml"
Found = Mapping[str, Mapping[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or calibrate as the arguments say; its exit status: 1 after a mistake of the user's."""
    return command(_run, arguments)


def _run(arguments: list[str]) -> None:
    given, overrides = _parser().parse_with_settings(arguments)
    # Its model and how text is put count; what it would steer by does not.
    cfg = read_config(given.config, overrides)
    run = Run.of({k: v for k, v in cfg.items() if k not in LISTS}, "apply")
    _show(given.run(given, run), given.folder)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m steer.gates",
        description="Detectors for conditional steering.",
        epilog="KEY=VALUE anywhere stands over the config's.",
    )
    tasks = parser.add_subparsers(required=True, metavar="{make,calibrate}")
    make = tasks.add_parser("make", help="directions that tell two kinds of inputs apart")
    make.add_argument("--layers", nargs="+", type=int, required=True, metavar="N")
    make.add_argument("--kind", choices=list(KINDS), default="probe", help="default: probe")
    make.set_defaults(run=_make)
    there = tasks.add_parser("calibrate", help="how well a folder's vectors detect")
    there.add_argument("--pairs", metavar="DATA", help="held-out pairs: tell their answers apart")
    there.set_defaults(run=_calibrate)
    for task, needed in ((make, True), (there, False)):
        task.add_argument("folder", metavar="FOLDER", help="of the vectors")
        data = "a file of inputs, or a data set's name"
        task.add_argument("--on", metavar="DATA", required=needed, help=f"to be detected: {data}")
        task.add_argument("--off", metavar="DATA", required=needed, help=f"not to be: {data}")
        rate = "false-positive rate that is wanted (default: 0.05)"
        task.add_argument("--fpr", type=float, default=0.05, metavar="RATE", help=rate)
        task.add_argument("--config", metavar="FILE", default=CONFIG, help=f"default: {CONFIG}")
    return parser


def _make(given: argparse.Namespace, run: Run) -> Found:
    on, off = (_rows(run, name, "generation") for name in (given.on, given.off))
    model, folder = run.settings.source.load(), Path(given.folder).expanduser()
    options = {"layers": given.layers, "kind": given.kind, "rate": given.fpr}
    return make_detector(model, run.settings.chat, on, off, folder, **options)


def _calibrate(given: argparse.Namespace, run: Run) -> Found:
    folder, chat = find(given.folder, "vector folder"), run.settings.chat
    if [bool(given.pairs), bool(given.on), bool(given.off)] not in ([1, 0, 0], [0, 1, 1]):
        raise ValueError("give either --pairs, or both --on and --off")
    model = run.settings.source.load()
    if given.pairs:
        reader = TrainCAA(**vars(chat))
        wanted, shunned = reader.sides(model, _rows(run, given.pairs, "valid"))
        return calibrate_folder(model, folder, wanted, shunned, given.fpr, read="answers")
    sides = [prompts_of(model, chat, _rows(run, n, "generation")) for n in (given.on, given.off)]
    return calibrate_folder(model, folder, sides[0], sides[1], given.fpr)


def _rows(run: Run, name: str, split: str) -> list[Row]:
    return DatasetLoader(source=run.settings.data_source).load_file(name, split)


def _show(found: Found, folder: str) -> None:
    # Slow to import, and not needed where it ends with an error.
    from rich.console import Console
    from rich.table import Table

    table = Table("vector", "by", "AUROC", "threshold", "detected", "false alarms", "of")
    for name, detector in found.items():
        for by in (ROW, TOKEN):
            one = detector[by]
            rates = (f"{one[f'{kind}_positive_rate']:.1%}" for kind in ("true", "false"))
            of = f"{one['on']} and {one['off']} {by}s"
            table.add_row(name, by, f"{one['auroc']:.3f}", f"{one['threshold']:+.4f}", *rates, of)
    console = Console()
    console.print(table)
    console.print(f"written: {folder}; gate={folder} steers what it detects", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
