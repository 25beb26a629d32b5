"""Data sets: what a format file may say, files of one's own, the Hub, data in memory."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError
from omegaconf import OmegaConf

from steer import prepare_generation_datasets, prepare_train_dataset
from steer.datasets import DatasetLoader, named_rows
from steer.datasets.conditions import meets
from steer.datasets.formats import Format, grouped
from steer.datasets.reading import read_rows

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = str(ROOT / "hparams/Steer/dataset_format.yaml")
PAIR = {"question": "q", "matching": "m", "not_matching": "n"}


def rows(raws: list[dict[str, Any]], **form: Any) -> list[Any]:
    return Format(**form).rows(raws, "file", "advice")


# ---- files with separators ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text, sign",
    [
        ("a.csv", "frage;positiv;negativ\nWie war es?;Gut, danke.;Schlecht.\n", "';'"),
        ("a.csv", 'frage;positiv;negativ\n"Er sagte ""Hallo""";b;c\n', "';'"),
        ("a.csv", '\n"frage";"positiv"\r\n"a, b";"c"\r\n', "';'"),
        ("a.csv", "question\tmatching\na, b\tc\n", r"'\\t'"),
        ("a.tsv", "question|matching\na\tb|c\n", r"'\|'"),
    ],
)
def test_columns_separated_by_something_else_are_told(
    tmp_path: Path, name: str, text: str, sign: str
):
    (tmp_path / name).write_text(text, encoding="utf-8-sig", newline="")
    message = f"{name} has one field, .*: its columns seem to be separated by {sign}; separate them"
    for columns in ([], ["question", "matching"]):
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / name, columns)


@pytest.mark.parametrize(
    "text, columns, read",
    [
        ("a;b,c\n1,2\n", [], [{"a;b": "1", "c": "2"}]),
        ('"a; b"\n1\n2\n', [], [{"a; b": "1"}, {"a; b": "2"}]),
        ("Good; or not\nBad\n", ["text"], [{"text": "Good; or not"}, {"text": "Bad"}]),
        ("text\nGood; or not\n", [], [{"text": "Good; or not"}]),
    ],
)
def test_other_signs_within_a_column_are_text(
    tmp_path: Path, text: str, columns: list[str], read: list[Any]
):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8-sig")
    assert read_rows(path, columns) == read


def test_blank_columns_are_no_fields(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("a,,b,,\n1,,2,,\n3,,,,\n", encoding="utf-8")
    assert read_rows(path) == [{"a": "1", "b": "2"}, {"a": "3", "b": ""}]
    path.write_text(",a,\n0,1,\n", encoding="utf-8")
    assert read_rows(path) == [{"": "0", "a": "1"}]
    path.write_text("a,,\n1,2,3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the header has '' twice"):
        read_rows(path)


# ---- formats -----------------------------------------------------------------------------------


def test_nested_fields_alternatives_and_lists_are_found():
    raw = {"prompt": {"text": "p", "by": {"name": "n"}}, "a.b": 1, "x": 2, "y": 3}
    names = {
        "input": "prompt.text",
        "by": "prompt.by.name",
        "flat": "a.b",
        "either": "gone|x",
        "choices": ["x", "y"],
    }
    (row,) = rows([raw], field_names=names)
    assert row == {"input": "p", "by": "n", "flat": 1, "either": 2, "choices": [2, 3]}


def test_plain_text_stands_for_the_object_that_other_files_have():
    assert rows([{"prompt": "p"}], field_names={"input": "prompt.text"}) == [{"input": "p"}]


@pytest.mark.parametrize(
    "raw, ours",
    [("Toxic", 1), (" toxic ", 1), ("Not Toxic", 0), (True, 1), ("false", 0), (7, 1), ("7.0", 1)],
)
def test_values_are_mapped_however_the_file_spells_them(raw: Any, ours: int):
    table = {"Toxic": 1, "Not Toxic": 0, True: 1, False: 0, 7: 1}
    assert rows([{"label": raw}], values={"label": table}) == [{"label": ours}]


def test_one_is_not_true():
    with pytest.raises(ValueError, match="row 1: 'label' is 1, which values does not name"):
        rows([{"label": 1}], values={"label": {True: 1}})


@pytest.mark.parametrize("raw, ours", [(0.49, 0), (0.5, 1), ("0.51", 1), (1, 1)])
def test_a_threshold_makes_labels_of_numbers(raw: Any, ours: int):
    assert rows([{"label": raw}], values={"label": ">= 0.5"}) == [{"label": ours}]


def test_rows_are_kept_and_dropped_by_value_and_by_comparison():
    raws = [{"n": n, "of": {"score": s}} for n, s in enumerate([0.1, None, 0.5, 0.9, 0.2])]
    kept = rows(raws, where={"of.score": "< 0.5"}, where_not={"n": [4, 9]})
    assert [row["n"] for row in kept] == [0]
    assert [r["n"] for r in rows(raws, where_not={"of.score": None})] == [0, 2, 3, 4]
    assert not meets(None, "> 0")
    assert meets("-3", "<= -2.5")


def test_constants_and_replaced_texts():
    made = rows([{"a": "x\\ny"}], replace={"a": {"\\n": "\n"}}, constants={"label": 1})
    assert made == [{"a": "x\ny", "label": 1}]


def test_concepts_are_sorted_and_ids_below_zero_are_none():
    raws = [{"concept_id": n, "kind": k} for n, k in [(10, "t"), (-1, "t"), (2, "m"), (10, "t")]]
    as_text = [{**raw, "concept_id": str(raw["concept_id"])} for raw in raws]
    assert list(grouped(as_text, Format(multi_concept=True), "ax")) == ["ax/2", "ax/10"]
    plain = grouped(raws, Format(multi_concept=True), "ax")
    assert {name: len(own) for name, own in plain.items()} == {"ax/2": 1, "ax/10": 2}
    assert list(plain) == ["ax/2", "ax/10"]
    shared = grouped(raws, Format(multi_concept=True, shared="kind"), "ax")
    assert [row["concept_id"] for row in shared["ax/10"]] == [10, 10, -1]
    assert [row["concept_id"] for row in shared["ax/2"]] == [2]


def test_one_concept_or_all_of_a_domain_can_be_named():
    loader = DatasetLoader(SHIPPED, source="sample")
    assert list(loader.load_groups("axbench", "train")) == ["axbench/0", "axbench/3", "axbench/12"]
    assert {row["concept_id"] for row in loader.load_file("axbench/3", "train")} == {3}
    domain = loader.load_groups("SteerEval/personality", "train")
    assert list(domain) == ["SteerEval/personality/L1_1", "SteerEval/personality/L2_1"]


def test_a_folder_and_a_pattern_are_read_file_by_file(tmp_path: Path):
    for name in ("b_test.csv", "a_test.csv", "notes.txt"):
        (tmp_path / name).write_text(f"question,answer\n{name},1\n" if "csv" in name else "no")
    for path in (tmp_path, tmp_path / "*_test.csv"):
        loader = DatasetLoader(SHIPPED)
        loader.formats["generation"]["mine"] = {
            "file_path": str(path),
            "field_names": {"input": "question"},
        }
        read = loader.load_file("mine", "generation")
        assert [row["input"] for row in read] == ["a_test.csv", "b_test.csv"]


@pytest.mark.parametrize("header", ["", "q\ta\n"], ids=["no header", "a header all the same"])
def test_columns_name_what_a_file_does_not(tmp_path: Path, header: str):
    (tmp_path / "a.tsv").write_text(header + "one\t1\ntwo\t0\n")
    loader = DatasetLoader(SHIPPED)
    loader.formats["train"]["mine"] = {"file_path": str(tmp_path / "a.tsv"), "columns": ["q", "a"]}
    assert loader.load_file("mine", "train") == [{"q": "one", "a": "1"}, {"q": "two", "a": "0"}]


@pytest.mark.parametrize("key", ["icl_exmaple", "icl_example"])
def test_both_spellings_of_the_text_before_a_question_are_taken(key: str):
    loader = DatasetLoader(SHIPPED, source="sample")
    loader.formats["generation"]["mmlu"][key] = "Like so: A."
    assert "\n\nLike so: A.\n\n" in loader.load_file("mmlu", "generation")[0]["input"]


# ---- files of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw, found",
    [
        ({"prompt": "q", "chosen": "m", "rejected": "n", "id": 4}, PAIR),
        ({"instruction": "q", "winning_output": "m", "losing_output": "n"}, PAIR),
        (
            {"question": "q", "answer_matching_behavior": "m", "answer_not_matching_behavior": "n"},
            PAIR,
        ),
        (
            {"question": "q", "prompt": "?", "pos_answer": "m", "neg_answer": "n"},
            PAIR | {"prompt": "?"},
        ),
        ({"positive": "m", "negative": "n"}, {"matching": "m", "not_matching": "n"}),
        ({"sentence": "t", "label": 1}, {"text": "t", "label": 1}),
        # The prompt of a row's own, for vector_prompt; not where it stands for the question.
        ({"output": "o", "prompt": "p"}, {"output": "o", "prompt": "p"}),
        (
            {"output": "o", "instruction": "i", "prompt": "p"},
            {"output": "o", "input": "i", "prompt": "p"},
        ),
        (PAIR | {"output": "o"}, PAIR),
    ],
)
def test_fields_are_found_by_their_names(
    tmp_path: Path, raw: dict, found: dict, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps(raw))
    with caplog.at_level(logging.INFO):
        assert prepare_train_dataset({"train_data": str(path)}) == {"my": [found]}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{path}: 1 rows, ")
    assert all(f"{ours} from " in line for ours in found)


def test_told_fields_are_taken(tmp_path: Path):
    path = tmp_path / "my.csv"
    path.write_text("q,good,bad\n1,2,3\n")
    fields = {"question": "q", "matching": "good", "not_matching": "bad"}
    made = prepare_train_dataset({"steer_train_dataset": [str(path)], "train_fields": fields})
    assert made == {"my": [{"question": "1", "matching": "2", "not_matching": "3"}]}


def test_lists_of_fields_are_taken_of_a_scripts_config(tmp_path: Path):
    path = tmp_path / "quiz.csv"
    path.write_text("q,a,b\nWhich?,one,two\n")
    fields = {"input": "q", "choices": ["a", "b"]}
    cfg = OmegaConf.create({"generation_data": str(path), "generation_fields": fields})
    (row,) = prepare_generation_datasets(cfg)["quiz"]
    assert row == {"input": "Which?", "choices": ["one", "two"]}


def test_inputs_of_ones_own_keep_what_metrics_read(tmp_path: Path):
    path = tmp_path / "my.json"
    about = {"question": "q", "answer": "a", "options": ["x", "y"], "concept": "tea"}
    path.write_text(json.dumps([{**about, "id": 3}]))
    made = prepare_generation_datasets({"generation_data": str(path)})
    kept = {"input": "q", "reference_response": "a", "choices": ["x", "y"], "concept": "tea"}
    assert made == {"my": [kept]}


def test_rows_may_have_one_side_each(tmp_path: Path):
    path = tmp_path / "my.jsonl"
    path.write_text('{"chosen": "m"}\n{"rejected": "n"}\n')
    made = prepare_train_dataset({"train_data": str(path)})
    assert made == {"my": [{"matching": "m"}, {"not_matching": "n"}]}


# ---- data in memory ----------------------------------------------------------------------------


def test_tuples_and_texts_stand_for_rows():
    assert named_rows([("m", "n"), ("q", "m", "n"), PAIR]) == {
        "data": [{"matching": "m", "not_matching": "n"}, PAIR, PAIR]
    }
    assert prepare_train_dataset([("q", "m", "n")]) == {"data": [PAIR]}
    assert named_rows({"mine": ["a", "b"]}) == {"mine": [{"input": "a"}, {"input": "b"}]}


# ---- the Hub -----------------------------------------------------------------------------------


class Hub:
    """Stands in for `datasets.load_dataset`: notes what it is asked, gives `rows` or raises."""

    def __init__(self, patch: pytest.MonkeyPatch, answer: Any):
        self.answer, self.asked = answer, []
        patch.setattr(datasets, "load_dataset", self)

    def __call__(self, path: str, config: str | None = None, **more: Any) -> Any:
        self.asked.append((path, config, more))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "name, split, asked, raw, row",
    [
        (
            "gsm",
            "generation",
            ("openai/gsm8k", "main", {"split": "test"}),
            {"question": "2 + 2?", "answer": "#### 4"},
            {"reference_response": "#### 4"},
        ),
        (
            "mmlu",
            "generation",
            ("cais/mmlu", "all", {"split": "test"}),
            {"question": "q", "subject": "s", "choices": list("wxyz"), "answer": 2},
            {"choices": list("wxyz"), "reference_response": "C"},
        ),
        (
            "sst2",
            "train",
            ("stanfordnlp/sst2", None, {"split": "train"}),
            {"idx": 0, "sentence": "fine ", "label": 1},
            {"text": "fine ", "label": 1},
        ),
        (
            "toxicity",
            "train",
            ("google/civil_comments", None, {"split": "train[:20000]"}),
            {"text": "t", "toxicity": 0.7},
            {"text": "t", "label": 1},
        ),
        (
            "realtoxicityprompts",
            "generation",
            ("allenai/real-toxicity-prompts", None, {"split": "train"}),
            {"prompt": {"text": "p", "toxicity": None}},
            {"input": "p"},
        ),
        (
            "toxigen",
            "generation",
            ("toxigen/toxigen-data", "annotated", {"split": "test"}),
            {"text": "t", "target_group": "g", "toxicity_human": 1.0},
            {"input": "t", "reference_response": 1.0},
        ),
        (
            "safeedit",
            "train",
            (
                "json",
                None,
                {
                    "data_files": {"train": "hf://datasets/zjunlp/SafeEdit/SafeEdit_train.json"},
                    "split": "train",
                },
            ),
            {"adversarial prompt": "q", "safe generation": "m", "unsafe generation": "n"},
            PAIR,
        ),
    ],
)
def test_the_hub_is_asked_for_its_own_split_and_shape(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str, asked: tuple, raw: dict, row: dict
):
    hub = Hub(monkeypatch, [raw])
    (made,) = DatasetLoader(SHIPPED, source="hub").load_file(name, split)
    assert hub.asked == [asked]
    assert {key: made[key] for key in row} == row


def test_axbench_from_the_hub_is_texts_with_the_negatives_of_their_genre(
    monkeypatch: pytest.MonkeyPatch,
):
    kinds = [(0, "text", "positive"), (-1, "text", "negative"), (-1, "code", "negative")]
    raws = [
        {
            **{"input": "q", "output": f"o{n}", "output_concept": "c"},
            **{"concept_id": i, "concept_genre": genre, "category": category},
        }
        for n, (i, genre, category) in enumerate(kinds)
    ]
    Hub(monkeypatch, raws)
    groups = DatasetLoader(SHIPPED, source="hub").load_groups("axbench", "train")
    assert {name: [(r["text"], r["label"]) for r in own] for name, own in groups.items()} == {
        "axbench/0": [("o0", 1), ("o1", 0)]
    }


def test_a_file_that_is_there_is_read_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    hub = Hub(monkeypatch, [])
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "data/gsm/test.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"question": "q", "answer": "a"}))
    assert len(DatasetLoader(SHIPPED).load_file("gsm", "generation")) == 1
    assert hub.asked == []


def test_a_gated_set_says_where_to_accept_its_terms_and_where_to_put_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    Hub(monkeypatch, DatasetNotFoundError("Dataset 'zjunlp/SafeEdit' is gated."))
    with pytest.raises(FileNotFoundError) as caught:
        DatasetLoader(SHIPPED).load_file("safe_edit", "train")
    assert str(caught.value) == (
        "no data for 'safe_edit' (train): cannot read zjunlp/SafeEdit from the Hugging Face Hub: "
        "Dataset 'zjunlp/SafeEdit' is gated.; it is gated: accept its terms (CC BY-NC-SA 4.0) at "
        "https://huggingface.co/datasets/zjunlp/SafeEdit and log in (hf auth login, or HF_TOKEN), "
        "or put a file with question, matching, not_matching at data/safe_edit/train.csv, or try "
        "data_source=sample, a few rows written for this project"
    )


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach the Hub"),
        ValueError("Unknown split"),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
)
def test_whatever_keeps_the_hub_from_answering_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
):
    monkeypatch.chdir(tmp_path)
    Hub(monkeypatch, error)
    with pytest.raises(FileNotFoundError, match=f"openai/gsm8k from the Hugging Face Hub: {error}"):
        DatasetLoader(SHIPPED).load_file("gsm", "generation")


def test_a_set_that_is_on_no_hub_says_where_its_file_is_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    message = (
        r"^no data for 'xstest' \(generation\) at data/xstest/xstest_prompts.csv \(looked at .*\); "
        r"get it from https://github.com/paul-rottger/exaggerated-safety, or put a file with "
        r"prompt, label, type at data/xstest/xstest_prompts.csv, or try data_source=sample"
    )
    with pytest.raises(FileNotFoundError, match=message):
        DatasetLoader(SHIPPED).load_file("xstest", "generation")


def test_only_what_is_on_this_machine_counts_as_held_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    hub = Hub(monkeypatch, [])
    assert DatasetLoader(SHIPPED).has("sentiment", "valid")
    assert not DatasetLoader(SHIPPED).has("steer_eval/personality", "valid")
    assert DatasetLoader(SHIPPED, source="sample").has("steer_eval/personality/L1_1", "valid")
    assert not DatasetLoader(SHIPPED).has("my", "valid")
    assert not DatasetLoader(SHIPPED).has("sentiment/no_concept", "valid")
    # A file, in a folder that has the name of a data set.
    assert not DatasetLoader(SHIPPED).has("sentiment/my.jsonl", "valid")
    assert hub.asked == []
