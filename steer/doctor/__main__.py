"""Why does nothing happen? Check a steering set-up, and say how to mend it.

python -m steer.doctor
python -m steer.doctor --config hparams/Steer/vector_apply.yaml "layers=[12]" "multipliers=[-2]"
python -m steer.doctor --vectors my/vectors other/control_vector.gguf
"""

import argparse
import json
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from transformers.utils.logging import disable_progress_bar

from steer.build import read_config
from steer.doctor import SETTINGS, Result, diagnose, examine
from steer.doctor.folders import run_of
from steer.secrets import redacted
from steer.terminal import Parser, command

CONFIG = "hparams/Steer/vector_apply.yaml"
WIDTH = 80
# As grep has it: 1 for what was looked for, 2 where it could not look.
HEALTHY, SICK, FAILED = 0, 1, 2
STYLES = {"ok": "green", "warning": "bold yellow", "failure": "bold red", "unchecked": "dim"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 1 where a check failed, 2 where none could be made."""
    # What the library would warn of is what the checks are for.
    return command(_run, arguments, FAILED, said=-2)


def _run(arguments: list[str]) -> int:
    options, overrides = _parser().parse_with_settings(arguments)
    disable_progress_bar()
    start = time.monotonic()
    results = _examined(options, overrides)
    seconds = time.monotonic() - start
    (_print_json if options.json else _print)(results, seconds)
    if [one.check for one in results] == [SETTINGS]:
        return FAILED
    return SICK if any(one.level == "failure" for one in results) else HEALTHY


def _parser() -> Parser:
    parser = Parser(
        prog="python -m steer.doctor",
        description="Check a steering set-up: what is wrong, and how to mend it.",
    )
    parser.add_argument("--config", metavar="FILE", default=CONFIG, help=f"default: {CONFIG}")
    parser.add_argument(
        "--vectors",
        nargs="+",
        metavar="PATH",
        help="check these folders, .pt, .gguf or .safetensors files instead of the config's",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _examined(options: argparse.Namespace, overrides: Sequence[str]) -> list[Result]:
    cfg = read_config(options.config, overrides)
    if not options.vectors:
        return diagnose(cfg)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        return examine(run_of(cfg, options.vectors, scratch))


def _print_json(results: Sequence[Result], seconds: float) -> None:
    found = {**_counts(results), "seconds": round(seconds, 1)}
    every = {"checks": [asdict(one) for one in results]}
    sys.stdout.write(redacted(json.dumps({**found, **every}, ensure_ascii=False)) + "\n")


def _counts(results: Sequence[Result]) -> dict[str, int]:
    counted = Counter[str](one.level for one in results)
    return {level: counted[level] for level in STYLES}


def _print(results: Sequence[Result], seconds: float) -> None:
    # Slow to import, and not needed with --json.
    from rich.console import Console

    console = Console(width=WIDTH, highlight=False, markup=False)
    for one in results:
        console.print(f"{one.level:<10}{one.check}", style=STYLES[one.level])
        console.print(_indented(redacted(one.what), "  "), soft_wrap=True)
        if one.do:
            console.print(_indented(redacted(one.do), "  -> "), soft_wrap=True)
    counts = _counts(results)
    said = ", ".join(f"{number} {level}" for level, number in counts.items() if number)
    well = not counts["failure"] + counts["warning"]
    console.print(f"{'healthy' if well else 'not healthy'}: {said} ({seconds:.0f} s)")


def _indented(text: str, lead: str) -> str:
    behind = " " * len(lead)
    return textwrap.fill(
        text, WIDTH, initial_indent=lead, subsequent_indent=behind, break_long_words=False
    )


if __name__ == "__main__":
    sys.exit(main())
