"""Check a data set: python -m steer.datasets check FILE."""

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steer.datasets.checking import Finding, as_columns, findings
from steer.datasets.checks import counted
from steer.datasets.checks.columns import Columns
from steer.datasets.reading import SEPARATORS, read_rows
from steer.files import find, writing
from steer.terminal import Parser, command

WIDTH = 80
# As grep has it: 1 for what was looked for, 2 where it could not look.
CLEAN, ERRORS, FAILED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit status: 1 where there are errors, 2 where it failed."""
    return command(lambda given: check(_parser().parse_args(given)), arguments, FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m steer.datasets", description=__doc__)
    command = parser.add_subparsers(required=True, metavar="check").add_parser(
        "check", help="say what is wrong with a data set, or may be"
    )
    command.add_argument("file", metavar="FILE", help=".jsonl, .json, .csv, .tsv or .parquet")
    command.add_argument("--held-out", metavar="FILE", help="rows that must not be in FILE")
    command.add_argument(
        "--model", metavar="NAME", help="count and compare in the tokens of this model"
    )
    command.add_argument(
        "--fields", nargs="+", default=[], metavar="OURS=THEIRS", help="input=prompt.text"
    )
    command.add_argument(
        "--columns", metavar="A,B", help="of the columns, where the first line is data already"
    )
    command.add_argument(
        "--drop", metavar="OUT", help="write a .jsonl file without rows that are wrong or repeats"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def check(options: argparse.Namespace) -> int:
    """Print what is found in `options.file`, and write what is left where asked for."""
    paths = [find(name, "data") for name in (options.file, options.held_out) if name]
    columns = _columns(options.columns, paths)
    rows, *more = (read_rows(path, columns) for path in paths)
    held_out = more[0] if more else None
    tokenizer = _tokenizer(options.model) if options.model else None
    data = as_columns(rows, held_out, fields=_mapping(options.fields), tokenizer=tokenizer)
    found = findings(data)
    if not options.json:
        _print(options.file, data, found)
    left = _write_rest(data, found, options) if options.drop else None
    if options.json:
        sys.stdout.write(json.dumps(_summary(data, found, left), ensure_ascii=False) + "\n")
    elif left is not None:
        sys.stdout.write(f"written: {options.drop}, {left} of {counted(rows)}\n")
    return ERRORS if any(finding.level == "error" for finding in found) else CLEAN


def _columns(given: str | None, paths: Sequence[Path]) -> list[str]:
    if given is None:
        return []
    if not any(path.suffix.lower() in SEPARATORS for path in paths):
        raise ValueError(
            f"--columns is for {' and '.join(SEPARATORS)} files, {paths[0]} names its fields: "
            "say which is which by --fields"
        )
    return given.split(",")


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"--fields takes OURS=THEIRS, as in input=prompt.text: got {wrong[0]!r}")
    return {ours: theirs for ours, _, theirs in (pair.partition("=") for pair in pairs)}


def _tokenizer(name: str) -> Any:
    # Slow to import, and needed with --model alone.
    from steer.models.load import ModelSource

    return ModelSource(model_name_or_path=name, device="cpu").tokenizer()


def _write_rest(data: Columns, found: Sequence[Finding], options: argparse.Namespace) -> int:
    """Write the rows that are neither wrong nor repeats; gives how many."""
    out = Path(options.drop).expanduser()
    if out.suffix != ".jsonl":
        raise ValueError(f"--drop writes .jsonl files: got {out}")
    if out.resolve() in {find(f).resolve() for f in (options.file, options.held_out) if f}:
        raise ValueError(f"--drop would write over {out}: give another name")
    dropped = {number for finding in found if finding.drop for number in finding.rows}
    rest = [row for number, row in enumerate(data.rows, start=1) if number not in dropped]
    if not rest:
        raise ValueError(f"--drop would leave no row of {options.file}: see what it has first")
    with writing(out) as file:
        for row in rest:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return len(rest)


def _summary(data: Columns, found: Sequence[Finding], left: int | None) -> Mapping[str, Any]:
    return {
        "rows": len(data.rows),
        "kind": data.kind,
        "fields": data.fields,
        "errors": sum(finding.level == "error" for finding in found),
        "warnings": sum(finding.level == "warning" for finding in found),
        "left": left,
        "findings": [asdict(finding) for finding in found],
    }


def _print(name: str, data: Columns, found: Sequence[Finding]) -> None:
    # Slow to import, and not needed with --json.
    from rich.console import Console

    console = Console(width=WIDTH, highlight=False, markup=False)
    read = ", ".join(o if o == t else f"{o} from {t}" for o, t in data.fields.items())
    kind = f", {data.kind} ({read})" if data.kind else ""
    console.print(_indented(f"{name}: {counted(data.rows)}{kind}", ""), soft_wrap=True)
    for finding in found:
        style = "bold red" if finding.level == "error" else "bold yellow"
        console.print(f"{finding.level}: {finding.check}", style=style)
        console.print(_indented(f"{finding.what}{finding.where}", "  "), soft_wrap=True)
        console.print(_indented(finding.do, "  -> "), soft_wrap=True)
    errors = sum(finding.level == "error" for finding in found)
    counts = f"errors: {errors}, warnings: {len(found) - errors}"
    console.print(counts if found else "clean: nothing found")


def _indented(text: str, lead: str) -> str:
    behind = " " * (len(lead) or 2)
    return textwrap.fill(
        text, WIDTH, initial_indent=lead, subsequent_indent=behind, break_long_words=False
    )


if __name__ == "__main__":
    sys.exit(main())
