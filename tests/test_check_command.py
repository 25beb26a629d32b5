"""python -m steer.datasets check: what it prints, what it writes, and its exit status."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steer.datasets.__main__ import main
from steer.datasets.reading import read_rows

ROOT = Path(__file__).resolve().parent.parent
BROKEN = [
    {"question": "How?", "matching": "Very [b]good[/b].", "not_matching": "Very bad."},
    {"question": "How was it?", "matching": "Good.", "not_matching": None},
    {"question": "How?", "matching": "very  [b]good[/b].", "not_matching": "Very bad."},
    {"question": "And now?", "matching": "Same.", "not_matching": "Same."},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "broken.jsonl", BROKEN)
    write(tmp_path / "clean.jsonl", BROKEN[:1])
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_errors_are_printed_with_their_rows_and_end_it_with_1(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["check", "broken.jsonl"]) == 1
    assert capsys.readouterr().out == (
        "broken.jsonl: 4 rows, pairs (matching, not_matching, question)\n"
        "error: missing\n"
        "  'not_matching' is null or NaN in 1 of 4 rows (row 2)\n"
        "  -> fill it, or drop the rows\n"
        "error: identical pairs\n"
        "  matching and not_matching are the same text in 1 row (row 4)\n"
        "  -> write the other answer, or drop the rows: they teach nothing\n"
        "warning: duplicates\n"
        "  repeats of an earlier row (case and spaces aside): 1 row (row 3)\n"
        "  -> drop them, unless they are to count twice\n"
        "errors: 2, warnings: 1\n"
    )


def test_a_clean_file_says_so_and_warnings_alone_end_it_with_0(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["check", "clean.jsonl"]) == 0
    assert capsys.readouterr().out == (
        "clean.jsonl: 1 row, pairs (matching, not_matching, question)\nclean: nothing found\n"
    )
    write(here / "spaced.jsonl", [{**BROKEN[0], "matching": " [/red] good"}])
    assert main(["check", "spaced.jsonl"]) == 0
    assert "errors: 0, warnings: 1" in capsys.readouterr().out


def test_no_line_is_wider_than_80_columns(here: Path, capsys: pytest.CaptureFixture[str]):
    write(here / "wide.jsonl", [{f"field_{n}": n for n in range(40)}])
    assert main(["check", "wide.jsonl"]) == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_what_is_held_out_is_compared(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "clean.jsonl", "--held-out", "broken.jsonl"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "held out too: 1 row, 1 of them word for word (row 1)" in printed
    assert "(held-out rows 1, 3)" in printed


def test_json_has_all_of_it(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "broken.jsonl", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["kind"], report["errors"], report["warnings"]) == (
        *(4, "pairs", 2, 1),
    )
    assert report["fields"]["matching"] == "matching"
    assert report["left"] is None
    assert report["findings"][0] == {
        "check": "missing",
        "level": "error",
        "what": "'not_matching' is null or NaN in 1 of 4 rows",
        "do": "fill it, or drop the rows",
        "rows": [2],
        "drop": True,
    }


def test_rows_are_dropped_where_asked_for_and_the_file_stays(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    before = (here / "broken.jsonl").read_bytes()
    assert main(["check", "broken.jsonl", "--drop", "good.jsonl"]) == 1
    assert capsys.readouterr().out.endswith("written: good.jsonl, 1 of 4 rows\n")
    assert read_rows(here / "good.jsonl") == BROKEN[:1]
    assert (here / "broken.jsonl").read_bytes() == before
    assert main(["check", "good.jsonl"]) == 0


def test_columns_are_named_and_fields_told(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "bare.tsv").write_text("a very fine film indeed\t1\nso bad\t0\n", encoding="utf-8")
    assert main(["check", "bare.tsv"]) == 1
    assert "--columns text,label" in capsys.readouterr().out
    assert main(["check", "bare.tsv", "--columns", "words,mark"]) == 1
    fields = ["--fields", "text=words", "label=mark", "--drop", "kept.jsonl"]
    assert main(["check", "bare.tsv", "--columns", "words,mark", *fields]) == 0
    assert "2 rows, labelled texts (text from words, label from mark)" in capsys.readouterr().out
    assert read_rows(here / "kept.jsonl")[0] == {"words": "a very fine film indeed", "mark": "1"}


@pytest.mark.parametrize("lines", ["yes,yes\n", "input,label\nyes,1\n"])
def test_named_columns_go_with_one_line_equal_cells_and_their_own_header(
    here: Path, capsys: pytest.CaptureFixture[str], lines: str
):
    (here / "bare.csv").write_text(lines, encoding="utf-8")
    # This one names its own fields.
    write(here / "held.jsonl", [{"input": "Yes"}])
    arguments = ["bare.csv", "--columns", "input,label", "--held-out", "held.jsonl"]
    assert main(["check", *arguments]) == 1
    printed = capsys.readouterr().out
    assert "bare.csv: 1 row, inputs (input, label)" in printed
    assert "held out too: 1 row" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.jsonl"], r"error: no data at nowhere\.jsonl"),
        (["broken.txt"], r"error: .*cannot read '\.txt' files"),
        (["clean.jsonl", "--fields", "matching"], "--fields takes OURS=THEIRS.*: got 'matching'"),
        (["clean.jsonl", "--fields", "mtching=a"], "unknown field 'mtching'.*'matching'"),
        (["clean.jsonl", "--columns", "a,b"], r"--columns is for \.csv and \.tsv .*by --fields"),
        (["bare.csv", "--columns", "a,b"], r"bare\.csv row 1 has 3 fields, .* has 2: a, b"),
        (["clean.jsonl", "--drop", "out.csv"], r"--drop writes \.jsonl files: got out\.csv"),
        (["clean.jsonl", "--drop", "./clean.jsonl"], "would write over clean.jsonl: give another"),
        (["same.jsonl", "--drop", "out.jsonl"], "would leave no row of same.jsonl"),
        (["clean.jsonl", "--model", "./nowhere"], r"no model folder at \./nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_it_cannot_do_is_one_line_and_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    (here / "broken.txt").write_text("x", encoding="utf-8")
    (here / "bare.csv").write_text("x,y,z\n", encoding="utf-8")
    write(here / "same.jsonl", BROKEN[3:])
    assert main(["check", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (here / "out.jsonl").exists()


def test_a_model_is_named_for_its_tokens(
    here: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
):
    write(here / "ends.jsonl", [{"matching": "Good.<eos>", "not_matching": "Good."}])
    assert main(["check", "ends.jsonl"]) == 0
    assert main(["check", "ends.jsonl", "--model", str(tiny_folder)]) == 1
    assert "error: template only" in capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_as_a_command_and_loads_nothing_heavy():
    code = (
        "import sys; from steer.datasets.__main__ import main; "
        "main(['check', 'data/sentiment/train.jsonl']); "
        "sys.exit(len({'torch', 'transformers', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
