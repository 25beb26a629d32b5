"""Each check on a small example that has what it looks for, and on one that has not."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_methods import generator_of
from tiny import byte_tokenizer

import steer.datasets
from steer.datasets import Finding, check_rows, warnings_of
from steer.datasets.checking import as_columns
from steer.datasets.checks import CHECKS
from steer.datasets.reading import read_rows
from steer.models import SteeredModel

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["amber", "birch", "cedar", "dune", "elm", "fern", "gorse", "hazel", "iris", "jade"]


def pair(matching: Any, not_matching: Any, question: str = "What of it?") -> dict[str, Any]:
    return {"question": question, "matching": matching, "not_matching": not_matching}


def pairs(*said: Mapping[str, Any], clean: int = 4) -> list[dict[str, Any]]:
    """`said` behind some pairs in which nothing is to be found."""
    return [pair(f"I like the {w}.", f"I hate the {w}.", f"And {w}?") for w in WORDS[:clean]] + [
        dict(row) for row in said
    ]


def letters(*chosen: str) -> list[dict[str, Any]]:
    return [pair(f"({both[0]})", f"({both[1]})", f"Which of {n}?") for n, both in enumerate(chosen)]


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [
        {"text": f"It was {word}.", "label": label}
        for word, label in zip(WORDS, labels, strict=False)
    ]


def asked(text: Any, answer: Any = "Well.", **more: Any) -> dict[str, Any]:
    return {"input": text, "reference_response": answer, **more}


ERROR, WARNING = "error", "warning"
# Check -> rows in which it finds something, its level, the rows' numbers, words of the message.
FOUND: list[tuple[str, Sequence[Any], str, tuple[int, ...], str]] = [
    ("unknown fields", [{"a": 1, "b": 2}], ERROR, (), r"known: the rows have \['a', 'b'\]: say"),
    ("unknown fields", [{"it was a very good film": "so", "1": "0"}], ERROR, (), "to be data"),
    (
        "missing",
        pairs({"question": "x", "matching": "y"}),
        ERROR,
        (5,),
        "'not_matching' is missing",
    ),
    ("missing", pairs(pair("y", None)), ERROR, (5,), "'not_matching' is null or NaN in 1 of 5"),
    ("missing", pairs(pair(math.nan, "y")), ERROR, (5,), "'matching' is null or NaN"),
    ("missing", pairs(pair(" \n", "y")), ERROR, (5,), "'matching' is empty"),
    ("missing", pairs(pair("x", "y", " ")), WARNING, (5,), "'question' is empty"),
    ("missing", [{"matching": "x"}], ERROR, (1,), "'not_matching' is missing in 1 of 1 row"),
    ("missing", [{"output": "x"}, {"output": " "}], ERROR, (2,), "'output' is empty in 1 of 2"),
    ("missing as word", pairs(pair("NaN", "y")), WARNING, (5,), "is the word nan or null"),
    ("not text", pairs(pair("x", 5)), ERROR, (5,), "'not_matching' is not text in 1 row"),
    ("not text", pairs(pair("x", "\ud83d")), ERROR, (5,), "'not_matching' is not proper Unicode"),
    ("nested", [asked({"text": "Why"})] * 2, ERROR, (1, 2), r"--fields input=input\.text"),
    ("nested", pairs(pair(["x"], "y")), ERROR, (5,), "'matching' .* is a list where text"),
    ("null scores", [asked("a", s=0.5), asked("b", s=None)], WARNING, (2,), "score 's' is null"),
    (
        *(
            "null scores",
            [asked("a", p={"x": 0.5, "y": 0.1}), asked("b", p={"x": None, "y": None})],
        ),
        *(WARNING, (2,), r"score 'p\.x' \(and 1 more scores\) is null in 1 row"),
    ),
    ("identical pairs", pairs(pair("Same.", "Same. ")), ERROR, (5,), "the same text in 1 row"),
    ("identical pairs", pairs(pair("SAME.", "Same.")), WARNING, (5,), "differ in case alone"),
    ("template only", pairs(pair("a b", "a  b")), ERROR, (5,), "white space alone in 1 row"),
    (
        *("template only", pairs(pair("<|im_start|>assistant\nHi <b>", "[INST] Hi <b>"))),
        *(ERROR, (5,), "template markers"),
    ),
    (
        *("duplicates", pairs(pair("x 1", "y", "Q?"), pair(" X  1", "y", "q?"))),
        *(WARNING, (6,), "repeats of an earlier row .*: 1 row"),
    ),
    (
        *(
            "contradictions",
            pairs(pair("I like it so much.", "a"), pair("b", "i like it so  much.")),
        ),
        *(ERROR, (5, 6), "matching in one row and not_matching in another: 2 rows"),
    ),
    (
        *("contradictions", pairs(pair("Yes", "No", "Is it?"), pair("No", "Yes", "Is it?"))),
        *(ERROR, (5, 6), "matching in one row"),
    ),
    (
        *("contradictions", [{"matching": "Of course."}, {"not_matching": "of COURSE."}]),
        *(ERROR, (1, 2), "matching in one row and not_matching in another: 2 rows"),
    ),
    (
        *("contradictions", [*labelled(0, 1), {"text": "It was  Amber.", "label": 1}]),
        *(ERROR, (1, 3), "the same text has different labels"),
    ),
    (
        *("length", [pair(w * 4, w * (2 + n % 2)) for n, w in enumerate(WORDS)]),
        # Ratios of 2 and 4/3 in turn: the median of logarithms is that of 8/3 halved, 1.63; their
        # mean over their deviation is log(8/3) / log(3/2) = 2.42.
        *(WARNING, (), r"matching is 1\.63 times as long .* of 10 pairs; .* effect 2\.42"),
    ),
    ("length", [pair(w, w * 2) for w in WORDS], WARNING, (), "^not_matching is 2.00 times"),
    ("answer letters", letters(*["AB"] * 8), WARNING, (), "8 A where matching and 8 B where not:"),
    (
        *("answer letters", letters(*["AB", "BA"] * 5, "CA")),
        *(WARNING, (11,), "on one side only: C, in 1 row"),
    ),
    (
        *("answer letters", [pair("Yes.", " no", f"Is {w} nice?") for w in WORDS]),
        *(WARNING, (), "10 YES where matching and 10 NO where not"),
    ),
    ("leading spaces", [pair(" a", " b")], WARNING, (), "1 of 1 of 'matching', 1 of 1 of 'not_m"),
    ("leading spaces", pairs(pair(" a", "b")), WARNING, (5,), "steer the difference"),
    ("class imbalance", labelled(*[0] * 2, *[1] * 8), WARNING, (), "unbalanced: 1 8, 0 2"),
    ("class imbalance", labelled(*["b"] * 8), ERROR, (), "all rows have the same label: b 8"),
    ("word labels", labelled("Toxic", "Not Toxic"), WARNING, (), "words: Not Toxic, Toxic"),
    (
        *("index answers", [asked("Which?", "2", choice0="x", choice1="y")]),
        *(WARNING, (), r"numbers of choices \(2\), not letters"),
    ),
    ("literal newlines", [asked("- one\\n- two")], WARNING, (1,), "backslash-n and no line break"),
    ("line breaks", [{"text": "a\nb", "label": 1}], WARNING, (1,), "holds line breaks in 1 row"),
    ("PTB tokens", [asked("do n't go , please")], WARNING, (1,), "Penn Treebank .* 1 of 1 row"),
    ("calculator marks", [asked("16-3?", "<<16-3=13>>13")], WARNING, (1,), "calculator marks"),
    ("concept negatives", [asked("a", concept_id=-1)], WARNING, (1,), "of no concept .*: 1 row"),
    ("concept negatives", [asked("a", output_concept="EEEEE")], WARNING, (1,), "of no concept"),
]
# Check -> rows that are near to what it looks for, and are not.
NOT_FOUND: list[tuple[str, Sequence[Any]]] = [
    ("unknown fields", [{"prompt": "x", "1": "0"}]),
    ("missing", [{"matching": "x", "not_matching": "y"}] * 2),
    ("missing", [pair("x", "y", "")] * 2),
    ("missing", [{"matching": "x"}, {"not_matching": "y"}]),
    ("missing", [{"matching": "x", "not_matching": None}, {"matching": None, "not_matching": "y"}]),
    ("missing as word", pairs(pair("None", "Nantes"))),
    ("not text", [asked("x", 5), asked("é\U0001f600", True)]),
    ("nested", [asked("x", ["a", "b"][0])]),
    ("null scores", [asked("a", note=None, s=0.5), asked("b", note="x", s=0.0)]),
    ("identical pairs", pairs(pair("Same.", "Sane."))),
    ("template only", pairs(pair("Answer: yes", "Answer: no"), pair("now here", "now there"))),
    ("duplicates", pairs(pair("x", "y", "Q?"), pair("x", "y", "R?"))),
    ("duplicates", [asked("Which?", "A", choices=["x"]), asked("Which?", "A", choices=["y"])]),
    ("duplicates", [{"prompt": {"text": "x"}}, {"prompt": {"text": "y"}}]),
    ("contradictions", pairs(pair("Yes", "No", "Is it?"), pair("No", "Yes", "Is it not?"))),
    (
        "contradictions",
        [
            {**pair(*said), "concept_id": n}
            for n, said in enumerate([("x y z w", ""), ("", "x y z w")])
        ],
    ),
    ("contradictions", pairs(pair("It is the same.", "It is the same."))),
    ("contradictions", pairs(pair("I cannot.", "Sure.", "Rob?"), pair("Yes", "I cannot.", "Eat?"))),
    ("contradictions", labelled(0, 1, 1)),
    ("duplicates", [asked("Tea?", None, concept=one) for one in ("tea", "the sea")]),
    ("length", [pair(w * 2, w) for w in WORDS[:4]] + [pair(w, w * 2) for w in WORDS[4:8]]),
    ("length", [pair(w * 2, w) for w in WORDS[:7]]),
    ("length", [pair(w + "..", w + ".") for w in WORDS]),
    ("answer letters", letters(*["AB", "BA"] * 5)),
    ("answer letters", letters(*["AB", "BA"] * 13, "AB", "AB")),
    ("answer letters", letters(*["AB"] * 7)),
    ("answer letters", [pair("I do", "I do not", w) for w in WORDS]),
    ("leading spaces", [pair("a ", "b ")]),
    ("class imbalance", labelled(*[0] * 3, *[1] * 7)),
    ("class imbalance", labelled(0, 1, 1, 1, 1)),
    ("word labels", labelled(0, 1.5, "-1", True)),
    ("index answers", [asked("Which?", "B", choice0="x")]),
    ("index answers", [asked("1 + 1?", "2")]),
    ("literal newlines", [asked("print('a\\n')\nprint('b')"), asked(r"\nabla f \neq \nu")]),
    ("line breaks", [{"text": "a b\n", "label": 1}]),
    ("PTB tokens", [asked("Don't go, please."), *[asked(f"See {w}.py.") for w in WORDS]]),
    ("calculator marks", [asked("a << b == c", "<<quote>>")]),
    ("concept negatives", [asked("a", concept_id=0, output_concept="dogs")]),
]


def found_by(check: str, rows: Sequence[Any], **more: Any) -> list[Finding]:
    return [finding for finding in check_rows(rows, **more) if finding.check == check]


@pytest.mark.parametrize("check, rows, level, numbers, words", FOUND, ids=lambda v: str(v)[:40])
def test_what_is_looked_for_is_found(
    check: str, rows: Sequence[Any], level: str, numbers: tuple[int, ...], words: str
):
    (finding,) = found_by(check, rows)
    assert (finding.level, finding.rows) == (level, numbers)
    with pytest.raises(ValueError, match=words):
        raise ValueError(finding)


@pytest.mark.parametrize("check, rows", NOT_FOUND, ids=lambda v: str(v)[:40])
def test_what_is_only_near_to_it_is_not(check: str, rows: Sequence[Any]):
    assert found_by(check, rows) == []


def test_every_check_has_an_example_of_both_kinds():
    assert {row[0] for row in FOUND} | {"leakage"} == set(CHECKS)
    assert {row[0] for row in NOT_FOUND} | {"leakage"} == set(CHECKS)


def test_errors_come_first_and_clean_rows_have_no_findings():
    rows = pairs(pair(" a", "b"), pair("x", None))
    assert [f.check for f in check_rows(rows)] == ["missing", "leading spaces"]
    rows = pairs(pair(" a", "b"), pair("I hate the elm.", "c"), pair("d", "I hate the elm."))
    assert [f.check for f in check_rows(rows)] == ["contradictions", "leading spaces"]
    assert check_rows(pairs(clean=10)) == []


# ---- what is held out ----

HELD_OUT = [
    pair("I do like it a lot.", "I do hate it a lot.", "And the sea?"),
    pair("A", "B", "Q?"),
]


def test_rows_that_are_held_out_are_found_exactly_and_but_for_case_and_spaces():
    rows = pairs(
        HELD_OUT[0], pair("No", "i do LIKE it a  lot.", "and the SEA?"), pair("a", "c", "q?")
    )
    (finding,) = found_by("leakage", rows, held_out=HELD_OUT)
    assert (finding.level, finding.rows, finding.drop) == ("error", (5, 6, 7), True)
    assert finding.what == "held out too: 3 rows, 1 of them word for word"
    assert "(held-out rows 1, 2)" in finding.do


def test_a_question_with_other_answers_is_a_warning_also_where_inputs_are_held_out():
    rows = pairs(pair("B", "A", "Of what?"), pair("x", "y", "And the sea?"))
    for held_out in (HELD_OUT, [{"input": "and the  sea?"}]):
        (finding,) = found_by("leakage", rows, held_out=held_out)
        assert (finding.level, finding.rows) == ("warning", (6,))
        assert "the questions of 1 row" in finding.what


def test_the_same_answers_to_other_questions_are_no_leak():
    rows = pairs(pair("A", "B", "R?"), pair("I do like it a lot.", "No.", "And the ski?"))
    assert found_by("leakage", rows, held_out=HELD_OUT) == []


def test_labelled_texts_and_inputs_leak_by_their_text():
    (finding,) = found_by(
        "leakage", labelled(0, 1), held_out=[{"text": "It was birch.", "label": 1}]
    )
    assert finding.rows == (2,)
    (finding,) = found_by("leakage", [asked("a"), asked("b")], held_out=[asked("b", "other")])
    assert finding.rows == (2,)


@pytest.mark.parametrize("more", [{"concept_id": 3}, {"choices": ["x", "y"]}])
def test_a_field_of_one_side_alone_hides_no_leak(more: dict[str, Any]):
    rows = [{**row, **more} for row in HELD_OUT]
    for here, there in ((rows, HELD_OUT), (HELD_OUT, rows)):
        (finding,) = found_by("leakage", here, held_out=there)
        assert (finding.level, finding.rows) == ("error", (1, 2))
    other = [{**row, "concept_id": 4} for row in HELD_OUT]
    same = [{**row, "concept_id": 4, **more} for row in HELD_OUT]
    assert bool(found_by("leakage", same, held_out=other)) == ("choices" in more)


def test_single_answers_and_outputs_leak_by_what_they_answer():
    rows = [{"matching": "Well, yes."}, {"not_matching": "No."}]
    (finding,) = found_by("leakage", rows, held_out=[{"matching": "x"}, {"not_matching": "no."}])
    assert (finding.level, finding.rows) == ("error", (2,))
    rows = [{"output": "Yes.", "prompt": word} for word in WORDS[:2]] + [{"output": "Yes."}]
    (finding,) = found_by("leakage", rows, held_out=[*rows[1:2], {"output": "No."}])
    assert (finding.level, finding.rows) == ("error", (2,))


def test_held_out_rows_of_unknown_fields_are_an_error_and_not_no_leak():
    (finding,) = check_rows(pairs(), held_out=[{"a": "I like the amber."}])
    assert finding.what == "held out: no field has a name that is known: the rows have ['a']"


# ---- fields ----


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer_matching_behavior": "x", "answer_not_matching_behavior": "x"},
        {"prompt": "q", "chosen": "x", "rejected": "x"},
        {"input": "q", "winning_output": "x", "losing_output": "x"},
    ],
)
def test_fields_are_found_by_the_names_that_others_give_them(row: dict[str, str]):
    (finding,) = check_rows([row])
    assert finding.check == "identical pairs"


@pytest.mark.parametrize(
    "rows, kind, fields",
    [
        ([{"chosen": "x"}, {"rejected": "y"}], "single answers", ["matching", "not_matching"]),
        ([{"matching": "x"}], "pairs", ["matching"]),
        ([pair("x", None), pair(None, "y"), pair("x", "y")], "pairs", list(pair("x", "y"))),
        ([{"output": "x"}], "outputs", ["output"]),
        ([{"output": "x", "prompt": "p"}, {"output": "y"}], "outputs", ["output", "prompt"]),
        ([{"output": "x", "instruction": "p"}], "inputs", ["input", "reference_response"]),
        ([{"output": "x", "text": "y"}], "texts", ["text"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_kinds_are_told_apart_by_what_rows_have(
    rows: list[dict[str, Any]], kind: str, fields: list[str]
):
    found = as_columns(rows)
    assert (found.kind, sorted(found.fields)) == (kind, sorted(fields))


def test_fields_can_be_told_and_may_be_nested():
    rows = [{"a": {"good": "x"}, "b": "x"}]
    fields = {"matching": "a.good", "not_matching": "b"}
    assert [f.check for f in check_rows(rows, fields=fields)] == ["identical pairs"]
    with pytest.raises(ValueError, match=r"unknown field 'matchin'.*did you mean 'matching'"):
        check_rows(rows, fields={"matchin": "a"})


# ---- tokens ----


def test_with_a_tokenizer_pairs_are_compared_by_tokens_and_lengths_are_theirs():
    tokenizer = byte_tokenizer()
    rows = pairs(pair("Good<eos>", "Good"), pair("Guten\tTag", "Guten Tag"), pair("Grün", "Grùn"))
    (finding,) = found_by("template only", rows, tokenizer=tokenizer)
    assert finding.rows == (5, 6)
    # An é has one character, and two tokens of a byte each.
    rows = [pair("é" * n, "e" * n) for n in range(3, 12)]
    assert found_by("length", rows) == []
    (finding,) = found_by("length", rows, tokenizer=tokenizer)
    assert "matching is 2.00 times as long" in finding.what


# ---- warnings where vectors are made ----


def test_the_shipped_data_are_clean():
    for path in sorted((ROOT / "data").glob("*/*.jsonl")):
        # A sample has the shape of its original, oddities and all.
        if path.stem.startswith("sample"):
            continue
        assert check_rows(read_rows(path)) == [], path
    folders = [path.parent for path in (ROOT / "data").glob("*/train.jsonl")]
    held_out = [folder for folder in folders if (folder / "valid.jsonl").is_file()]
    assert len(held_out) >= 11
    for folder in held_out:
        train, valid = (read_rows(folder / f"{part}.jsonl") for part in ("train", "valid"))
        assert check_rows(train, valid) == [], folder


def test_a_generator_warns_once_for_each_data_set(
    model: SteeredModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    generator = generator_of("caa", model, tmp_path)
    with caplog.at_level(logging.WARNING):
        generator.generate_vectors({"spaced": pairs(pair(" a", "b")), "clean": pairs()})
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("data set")]
    assert line.startswith("data set 'spaced': texts begin with a space: 1 of 5 of 'matching'")


def test_what_methods_refuse_is_left_to_them():
    for rows in ([], [5, None], [{}], labelled("a", "b"), [pair(None, "x")], [pair(3, {"a": 1})]):
        assert warnings_of(rows) == []
    assert len(warnings_of(pairs(pair("x", None), pair("same", "same")))) == 1


def test_ten_thousand_pairs_take_under_a_second():
    rows = [
        pair(
            f"I like the {w} of number {n}. " * 5,
            f"I hate the {w} of number {n}. " * 5,
            f"{w} {n}?",
        )
        for n in range(1000)
        for w in WORDS[:10]
    ]
    start = time.process_time()
    assert warnings_of(rows) == []
    assert time.process_time() - start < 1.0


def test_the_checker_is_public():
    assert {"Finding", "check_rows", "warnings_of"} <= set(steer.datasets.__all__)
