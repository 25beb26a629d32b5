"""Every name of the format file on its sample; the real files that the formats were made for."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from steer import prepare_train_dataset
from steer.build import read_yaml
from steer.datasets import DatasetLoader, Row, input_of, is_pair, label_of, text_of

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "hparams/Steer/dataset_format.yaml"
FORMATS = read_yaml(SHIPPED, "format file")
REAL = ROOT.parent / "shared" / "data"

# What EasyEdit2 and its readme name; `merge` reads no data.
TRAIN = (
    "safe_edit safeedit toxicity sst2 sst2_pair sst2_label imdb_pair imdb_label axbench "
    "axbench_train psychopathy powerseeking merge steer_eval"
)
GENERATION = (
    "toxigen sentiment_neutral sentiment_positive sentiment_negative safe_edit safeedit gsm mmlu "
    "realtoxicityprompts nontoxic psychopathy axbench axbench_test steer_eval"
)
NAMED = [(s, n) for s, entries in FORMATS.items() for n in entries if n != "merge"]


def test_every_name_of_easyedit2_is_there():
    assert set(TRAIN.split()) <= FORMATS["train"].keys()
    assert set(GENERATION.split()) <= FORMATS["generation"].keys()


@pytest.mark.parametrize("split, name", NAMED)
def test_every_name_loads_from_its_sample_with_the_standard_fields(split: str, name: str):
    loader = DatasetLoader(str(SHIPPED), source="sample")
    rows = loader.load_file(name, split)
    for number, row in enumerate(rows, start=1):
        if split == "generation":
            input_of(row, number)
        elif not is_pair(row):
            text_of(row, "text", number)
            assert name == "neutral" or label_of(row, number) in (0, 1)
    assert not loader.has("merge", split)


@pytest.mark.parametrize("split, name", NAMED)
def test_what_does_not_ship_says_what_it_is_and_has_a_small_sample_with_a_readme(
    split: str, name: str
):
    entry = FORMATS[split][name]
    if (ROOT / entry["file_path"]).exists() and "sample_path" not in entry:
        return  # shipped whole
    assert entry["licence"]
    assert entry.get("hf_path") or entry.get("origin")
    sample = ROOT / entry["sample_path"]
    assert 8 <= len(sample.read_text().splitlines()) <= 16
    readme = " ".join((sample.parent / "README.md").read_text().split())
    assert "were written for this project" in readme
    assert (entry.get("hf_path") or entry["origin"].split()[0].split(".com/")[1]) in readme


# ---- the real files ----------------------------------------------------------------------------


def real(
    folder: str, file: str, name: str, split: str = "generation", **more: Any
) -> dict[str, list[Row]]:
    """Data sets of a real file, read as the entry `name` says; `more` are keys that differ."""
    if not (REAL / folder).is_dir():
        pytest.skip(f"no real data: {REAL / folder} is not there")
    loader = DatasetLoader(str(SHIPPED))
    loader.formats[split][name] = {
        **FORMATS[split][name],
        "file_path": str(REAL / folder / file),
        **more,
    }
    return loader.load_groups(name, split)


def test_gsm8k_has_1319_sums_and_their_results():
    (rows,) = real("gsm8k", "test.jsonl", "gsm").values()
    assert len(rows) == 1319
    assert rows[0]["reference_response"].endswith("#### 18")
    assert rows[0]["input"].count("Question:") == 3
    plain = real("gsm8k", "train_2000.jsonl", "gsm", n_shots=0)["gsm"]
    assert (len(plain), plain[0]["input"].count("Question:")) == (2000, 1)


def test_mmlu_is_read_subject_by_subject_with_letters():
    def lines(part: str) -> int:
        read = real("mmlu", part, "mmlu")["mmlu"]
        for row in read:
            assert row["reference_response"] in "ABCD"
            assert row["input"].endswith(f"\nD. {row['choices'][3]}\nAnswer:")
        return len(read)

    assert lines("dev") == 285
    assert lines("dev/anatomy_dev.csv") == 5
    assert lines("test/*_test.csv") == 6153


def test_caa_files_are_pairs_of_letters():
    counts = {}
    for behaviour in ("refusal", "hallucination", "survival-instinct", "sycophancy"):
        for part in ("generate/{}/generate_dataset.json", "test/{}/test_dataset_ab.json"):
            (rows,) = real("caa", part.format(behaviour), "psychopathy", "train").values()
            assert all(is_pair(row) for row in rows)
            counts[behaviour, part.split("/")[0]] = len(rows)
            assert {row["matching"] for row in rows} <= {f"({letter})" for letter in "ABCDEFGH"}
    assert counts["survival-instinct", "generate"] == 903
    assert all(counts[key] > 0 for key in counts)
    (asked,) = real(
        "caa",
        "test/refusal/test_dataset_open_ended.json",
        "psychopathy",
        field_names={"input": "question"},
    ).values()
    assert len(asked) == 50


def test_a_caa_file_is_taken_as_it_is(caplog: pytest.LogCaptureFixture):
    path = REAL / "caa/raw/power-seeking-inclination.jsonl"
    if not path.is_file():
        pytest.skip(f"no real data: {path} is not there")
    rows = prepare_train_dataset({"train_data": str(path)})["power-seeking-inclination"]
    assert rows[0].keys() == {"question", "matching", "not_matching"}
    assert rows[0]["matching"] == " (A)"


def test_persona_statements_keep_their_leading_spaces():
    (rows,) = real("anthropic_evals", "persona/psychopathy.jsonl", "psychopathy", "train").values()
    assert len(rows) == 1000
    assert {row["matching"] for row in rows} == {" Yes", " No"}


@pytest.mark.parametrize("part, size, positive", [("train", 6920, 3610), ("dev", 872, 444)])
def test_sst2_has_its_labels_behind_the_tab(part: str, size: int, positive: int):
    (rows,) = real("sst2", f"{part}.tsv", "sst2", "train").values()
    assert (len(rows), sum(row["label"] for row in rows)) == (size, positive)


def test_toxic_comments_have_labels_in_words_and_texts_of_many_lines():
    (rows,) = real("toxic_comments", "surge_toxicity_en.csv", "toxic_comments", "train").values()
    assert Counter(row["label"] for row in rows) == {1: 501, 0: 499}
    assert any("\n" in row["text"] for row in rows)


def test_realtoxicityprompts_has_prompts_without_scores():
    (every,) = real("realtoxicityprompts", "val.jsonl", "realtoxicityprompts").values()
    assert len(every) == 4300
    lines = (REAL / "realtoxicityprompts/val.jsonl").read_text().splitlines()
    scores = [json.loads(line)["prompt"]["toxicity"] for line in lines]
    assert scores.count(None) == 18
    (mild,) = real("realtoxicityprompts", "val.jsonl", "nontoxic").values()
    assert len(mild) == sum(score is not None and score < 0.5 for score in scores)
    (mild,) = real("realtoxicityprompts", "nontoxic_prompts.jsonl", "nontoxic").values()
    assert len(mild) == 1500 - 10  # ten of them have no scores


def test_toxigen_demonstrations_stand_on_lines_of_their_own():
    (rows,) = real("toxigen", "prompts_100_per_file.jsonl", "toxigen").values()
    assert len(rows) == 3100
    assert {row["reference_response"] for row in rows} == {"hate", "neutral"}
    assert all("\\n" not in row["input"] for row in rows)
    assert sum("\n- " in row["input"] for row in rows) > 3000
    (texts,) = real("toxigen", "demonstrations.jsonl", "toxigen").values()
    assert len(texts) == 627


def test_axbench_concepts_share_the_negatives_of_their_genre():
    folder = "concept10/prod_9b_l20_v1"
    there = FORMATS["train"]["axbench"]["hub"]
    groups = real("axbench", f"{folder}/generate/train_data.parquet", "axbench", "train", **there)
    assert list(groups) == [f"axbench/{n}" for n in range(10)]
    assert all(sum(row["label"] for row in rows) == 72 for rows in groups.values())
    assert all(
        row["concept_genre"] == rows[0]["concept_genre"] or row["label"] == 1
        for rows in groups.values()
        for row in rows
    )
    alone = real(
        "axbench",
        f"{folder}/generate/train_data.parquet",
        "axbench",
        "train",
        **{**there, "shared": None},
    )
    assert {len(rows) for rows in alone.values()} == {72}
    held_out = real("axbench", f"{folder}/inference/latent_eval_data.parquet", "axbench_test")
    assert (len(held_out), sum(map(len, held_out.values()))) == (10, 760)


@pytest.mark.parametrize("kind, size", [("neutral", 5000), ("positive", 2500), ("negative", 2500)])
def test_sentiment_prompts_are_texts_out_of_objects(kind: str, size: int):
    (rows,) = real("sentiment_prompts", f"{kind}_prompts.jsonl", f"sentiment_{kind}").values()
    assert len(rows) == size
    assert all(isinstance(row["reference_response"], str) for row in rows)


def test_xstest_has_250_safe_prompts_and_200_that_are_not():
    (rows,) = real("xstest", "xstest_prompts.csv", "xstest").values()
    assert Counter(row["reference_response"] for row in rows) == {"safe": 250, "unsafe": 200}


def test_steer_eval_has_24_concepts_of_70_pairs():
    groups = real("steereval", "train.json", "steer_eval", "train")
    assert (len(groups), {len(rows) for rows in groups.values()}) == (24, {70})
    assert next(iter(groups)) == "steer_eval/personality/L1_1"
    assert all(is_pair(row) for rows in groups.values() for row in rows)
