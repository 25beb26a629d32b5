"""The promises of every row of METRICS_CLASS_DICT, and numbers worked out by hand."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import slow_but

from steer.evaluate import ALIASES, METRICS_CLASS_DICT
from steer.evaluate.base import Item
from steer.evaluate.distinctness import Distinctness
from steer.evaluate.final_answer import inside, last_box
from steer.evaluate.fluency import Fluency, ngram_entropy, sentences, word_tokenizer
from steer.evaluate.gsm import GSM, RULES, final_number
from steer.evaluate.mmlu import MMLU, chosen_letter
from steer.evaluate.refusal import Refusal

ROOT = Path(__file__).resolve().parent.parent
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl"
NAMES = sorted(METRICS_CLASS_DICT)
# Those that need neither a model nor a service, and the options for a small run.
OFFLINE: dict[str, dict[str, Any]] = {
    "distinctness": {},
    "fluency": {},
    "gsm": {},
    "mmlu": {},
    "refusal": {},
}
ITEMS = [
    Item("How many?", ("There are 18.", "B"), "#### 18"),
    Item("Which one?", ("", " "), "B"),
]

# nltk alone takes two seconds to import.
RUN = slow_but(OFFLINE.keys() - {"fluency"}, OFFLINE)

HEAVY = "{'torch', 'transformers', 'nltk', 'numpy', 'pandas', 'sklearn', 'openai', 'matplotlib'}"


def answered(*texts: str, reference: Any = None, **row: Any) -> list[Item]:
    return [Item("", (text,), reference, row) for text in texts]


# ---- every row ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_a_dataclass_that_can_be_made_without_arguments(name: str):
    metric = METRICS_CLASS_DICT[name]()
    for field in dataclasses.fields(metric):  # type: ignore[arg-type]
        assert field.metadata["help"], f"{name}.{field.name} is not made by option()"


def test_options_of_one_name_are_one_option():
    known: dict[str, tuple[Any, Any]] = {}
    for cls in METRICS_CLASS_DICT.values():
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            kind = (field.type, field.default)
            assert known.setdefault(field.name, kind) == kind, field.name


def test_an_alias_is_no_name_of_the_table():
    assert not ALIASES.keys() & METRICS_CLASS_DICT.keys()


def test_importing_the_metrics_and_scoring_distinctness_loads_nothing_heavy():
    code = (
        "import sys; from steer.evaluate import METRICS_CLASS_DICT, Item; "
        "METRICS_CLASS_DICT['distinctness']().score([Item('', ('a b',))]); "
        f"sys.exit(', '.join({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.stderr.decode().strip() == ""


@pytest.mark.parametrize("name", RUN)
def test_every_item_has_a_value_and_every_mean_is_that_of_its_values(name: str):
    scores = METRICS_CLASS_DICT[name](**OFFLINE[name]).score(ITEMS)
    assert scores.values
    for figure, values in scores.values.items():
        assert len(values) == len(ITEMS)
        there = [value for value in values if value is not None]
        assert scores.figures[figure] == pytest.approx(math.fsum(there) / len(there))


@pytest.mark.parametrize("name", RUN)
def test_what_is_missing_is_named_by_numbers_from_1(name: str):
    scores = METRICS_CLASS_DICT[name](**OFFLINE[name]).score(ITEMS)
    for one in scores.missing:
        assert 1 <= one.item <= len(ITEMS)
        assert one.response is None or 1 <= one.response <= 2
        assert one.reason


@pytest.mark.parametrize("name", RUN)
def test_the_figures_of_a_side_do_not_depend_on_the_order_of_items(name: str):
    metric = METRICS_CLASS_DICT[name](**OFFLINE[name])
    values, turned = metric.score(ITEMS).values, metric.score(ITEMS[::-1]).values
    assert {figure: rows[::-1] for figure, rows in turned.items()} == values


# ---- distinctness ------------------------------------------------------------------------------


def test_distinctness_counts_the_ngrams_of_all_answers_of_an_input_together():
    scores = Distinctness().score([Item("", ("a b c", "a b")), Item("", ("",))])
    # Words a b c of 5; a b, b c of 5; a b c of 5; an answer without words is 0.
    assert scores.values == {"dist-1": [3 / 5, 0], "dist-2": [2 / 5, 0], "dist-3": [1 / 5, 0]}
    assert scores.figures == pytest.approx({"dist-1": 0.3, "dist-2": 0.2, "dist-3": 0.1})
    assert scores.protocol["without a word"] == 1


def test_distinctness_over_ngrams_reaches_1_and_has_no_value_without_them():
    scores = Distinctness(distinctness_denominator="ngrams").score(answered("a b c", "a b"))
    assert scores.values["dist-2"] == [1, 1]
    assert scores.values["dist-3"] == [1, None]
    assert [(one.item, one.reason) for one in scores.missing] == [(2, "no answer has 3 words")]


# ---- fluency -----------------------------------------------------------------------------------


def test_entropy_is_that_of_bigrams_and_trigrams_weighted():
    # Bigrams ab twice, bc, ca, bd; trigrams abc, bca, cab, abd.
    bigrams = -(2 / 5 * math.log2(2 / 5) + 3 * 1 / 5 * math.log2(1 / 5))
    assert ngram_entropy([*"abcabd"]) == pytest.approx((2 / 3 * bigrams + 4 / 3 * 2) / 2)
    assert ngram_entropy(["a"]) == ngram_entropy([]) == 0


@pytest.mark.slow
def test_an_answer_that_repeats_itself_is_less_fluent():
    figures = [
        Fluency().score(answered(text)).figures["fluency"] for text in ("no no no no", "so it is")
    ]
    assert figures[0] == 0 < figures[1]


@pytest.mark.slow
def test_words_without_nltks_data_are_those_that_it_documents(monkeypatch: pytest.MonkeyPatch):
    def missing(text: str) -> list[str]:
        raise LookupError("punkt_tab")

    monkeypatch.setattr("nltk.word_tokenize", missing)
    tokenize, name = word_tokenizer()
    assert "by rule" in name
    text = "Good muffins cost $3.88\nin New York.  Please buy me\ntwo of them.\n\nThanks."
    words = "Good muffins cost $ 3.88 in New York . Please buy me two of them . Thanks ."
    assert tokenize(text) == words.split()


@pytest.mark.slow
def test_nltks_own_tokenizer_is_used_where_its_data_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nltk.word_tokenize", str.split)
    scores = Fluency().score(answered("hello world again"))
    assert scores.protocol["tokenizer"] == "nltk word_tokenize (punkt_tab)"
    assert scores.figures["fluency"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("It works. Now what?", ["It works.", "Now what?"]),
        ('He said "stop!" and left.', ['He said "stop!"', "and left."]),
        ("Dr. Smith met J. Doe vs. Co. Ltd. there.", ["Dr. Smith met J. Doe vs. Co. Ltd. there."]),
        ("It cost 3.5. The end", ["It cost 3.5.", "The end"]),
        ("We solve for x. Then we stop", ["We solve for x.", "Then we stop"]),
        ("Well ... maybe. Well ... Yes", ["Well ... maybe.", "Well ...", "Yes"]),
        ("  \n ", []),
    ],
)
def test_sentences_end_with_a_stop_but_not_with_an_abbreviation(text: str, parts: list[str]):
    assert sentences(text) == parts


# ---- gsm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, number",
    [
        ("So she makes $18.", 18),
        ("It is 1,234.50 in all", 1234.5),
        ("That is 15%.", 15),
        ("x = -5", -5),
        ("minus \u2212$7", -7),
        ("20-12", 12),
        ("$\\boxed{3}$ no, $\\boxed{1{,}800\\text{ m}^2}$ of 7", 1800),
        ("\\boxed{\\frac{1}{2}}", 0.5),
        ("\\boxed{x = 5}", 5),
        ("\\boxed{\\text{18}} 3", 18),
        ("#### 18 eggs in 2 days", 18),
        ("none", None),
        ("\\boxed{} 18", None),
    ],
)
def test_the_final_number_is_the_boxed_one_else_the_marked_one_else_the_last(
    text: str, number: float | None
):
    assert final_number(text) == number


def test_a_number_may_have_more_digits_than_python_turns_into_text():
    assert final_number("9" * 5000) == 10**5000 - 1


def test_a_part_of_the_reference_is_not_the_reference():
    scores = GSM().score(answered("1", "8", "\\boxed{}", "18.0", reference="9 * 2 = 18\n#### 18"))
    assert scores.values["gsm_correct"] == [0, 0, 0, 1]
    assert scores.figures["gsm_accuracy"] == "25.00%"
    assert scores.figures["gsm_no_match_ratio"] == "25.00%"
    assert scores.figures["gsm_no_match_indices"] == ["2-\\boxed{}"]


@pytest.mark.parametrize(
    "rule, right",
    [("number", [1, 1, 1]), ("strict", [1, 0, 0]), ("flexible", [1, 0, 1]), ("openai", [1, 0, 0])],
)
def test_a_rule_decides_what_counts(rule: str, right: list[int]):
    answers = answered("#### 1,800", "It is 1800.0", "It is $1,800.", reference="#### 1,800")
    assert GSM(gsm_rule=rule).score(answers).values["gsm_correct"] == right


def test_the_rules_of_others_judge_the_references_of_gsm8k_themselves():
    reference = "He sells 9 * 2 = <<9*2=18>>18.\n#### 18"
    for rule in ("number", "strict", "flexible", "openai"):
        assert (
            GSM(gsm_rule=rule)
            .score(answered(reference, reference=reference))
            .figures["gsm_correct"]
        )
    assert RULES["cot"]("The answer is 18.", reference)


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_file(), reason=f"no data at {GSM8K}")
@pytest.mark.parametrize("rule", ["number", "strict", "flexible", "openai"])
def test_every_reference_of_gsm8k_holds_a_number_and_agrees_with_itself(rule: str):
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text().splitlines()]
    scores = GSM(gsm_rule=rule).score([Item("", (text,), text) for text in answers])
    assert len(scores.values["gsm_correct"]) == 1319
    assert scores.figures["gsm_correct"] == 1
    # Without the mark, the last number of a worked solution is nearly always its result.
    bare = [Item("", (text.rpartition("####")[0],), text) for text in answers]
    assert GSM().score(bare).figures["gsm_correct"] > 0.97


def test_gsm_without_a_reference_says_so_and_one_item_without_is_missing():
    with pytest.raises(ValueError, match="gsm needs a reference response that holds a number"):
        GSM().score(answered("18"))
    scores = GSM().score([*answered("18", reference=18), *answered("18")])
    assert scores.values["gsm_correct"] == [1, None]
    assert scores.missing[0].item == 2


def test_the_last_box_ends_with_its_own_brace():
    assert last_box("\\boxed{a_{1}}{b}") == "\\boxed{a_{1}}"
    assert last_box("\\fbox{3} and \\boxed{x") is None
    assert inside(last_box("$\\boxed 5$", unbraced=True) or "") == "5"


# ---- multiple choice ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        ("(b)", "B"),
        ("The answer is B because it is", "B"),
        ("Option A is wrong. The answer is (C).", "C"),
        ("**D** it is", "D"),
        (" C. Rome", "C"),
        ("\\boxed{B}", "B"),
        ("I would go for option D here", "D"),
        ("I think B", "B"),
        ("A man walks", None),
        ("Either (A) or (D)", None),
        ("Surely it is london", "B"),
        ("Paris, or Rome", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_letter_of_an_answer(text: str, letter: str | None):
    assert chosen_letter(text, "ABCD", ["Paris", "London", "Rome", "Berlin"]) == letter


@pytest.mark.parametrize("reference", ["B", "(B)", " B", 1, "1", "London"])
def test_a_reference_is_a_letter_its_number_or_the_text_of_a_choice(reference: Any):
    found = MMLU().score(answered("B", reference=reference, choices=["Paris", "London"]))
    assert found.figures == {"mmlu_accuracy": 1, "mmlu_no_match": 0}


def test_letters_beyond_d_are_those_that_an_item_offers():
    assert MMLU().score(answered("F", reference="(F)")).figures["mmlu_accuracy"] == 1
    assert chosen_letter("F") is None


def test_by_log_probability_the_likeliest_letter_is_the_answer():
    log_probs = {"A": math.log(0.2), "B": math.log(0.6), "C": -math.inf}
    (item,) = answered("A", reference="A", choice_log_probs=log_probs)
    scores = MMLU(mmlu_by="logprob").score([item])
    assert scores.figures["mmlu_accuracy"] == 0
    assert scores.figures["mmlu_reference_probability"] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="mmlu by logprob needs 'choice_log_probs'"):
        MMLU(mmlu_by="logprob").score(answered("A", reference="A"))


# ---- refusal -----------------------------------------------------------------------------------


def test_a_refusal_is_known_by_its_beginning_and_a_blank_answer_is_neither():
    scores = Refusal().score(
        [Item("", (" I'm sorry, but no.", "Sure! Sorry.")), Item("", ("",)), Item("", ("No.",))]
    )
    assert scores.values == {"refusal_rate": [0.5, None, 1]}
    assert scores.figures["refusal_rate"] == 0.75
    assert [(one.item, one.response) for one in scores.missing] == [(2, 1)]


# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls, option, nearest",
    [
        (Distinctness, {"distinctness_denominator": "word"}, "words"),
        (GSM, {"gsm_rule": "flexibel"}, "flexible"),
        (MMLU, {"mmlu_by": "logprobs"}, "logprob"),
    ],
)
def test_a_wrong_value_names_the_nearest(cls: Any, option: dict[str, str], nearest: str):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        cls(**option)
