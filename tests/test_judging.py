"""By what a run is judged: pairs that its vectors have not learnt from, under all in force."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from desk import Desk
from tiny import full_logits, steered, tiny_config

from steer import BaseVectorApplier, BaseVectorGenerator
from steer.datasets import Row
from steer.methods.caa import TrainCAA
from steer.models import SteeredModel

ROWS: list[Row] = [
    {"question": f"Is {n} fine?", "matching": f"Yes, {n}!", "not_matching": f"No {n}."}
    for n in range(4)
]
PARTS = (ROWS[:2], ROWS[2:])
WHOLE, *WITHOUT = 4 * torch.randn(3, 16, generator=torch.Generator().manual_seed(4))
FOLDS = [({"layer_1": own}, rows) for own, rows in zip(WITHOUT, PARTS, strict=True)]


@pytest.fixture(scope="module")
def tiny() -> SteeredModel:
    return steered(tiny_config("llama"))


def judged(
    model: SteeredModel, folder: Path, folds: Mapping[str, Any], **more: Any
) -> BaseVectorApplier:
    """A run of a prompt and of WHOLE at block 1, fully reported."""
    texts = {
        "prompt": "alg_name: prompt\nprompt: Be kind.\n",
        "caa": "alg_name: caa\nlayers: [1]\nmultipliers: [1.0]\n",
    }
    files = [folder / f"apply_{name}.yaml" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text, encoding="utf-8")
    config = {
        "apply_steer_hparam_paths": list(map(str, files)),
        "generation_params": {"max_new_tokens": 2, "do_sample": False},
        "report": "full",
        **more,
    }
    applier = BaseVectorApplier(config, model)
    applier.apply_vectors({"caa": {"layer_1": WHOLE}}, folds)
    applier.generate({"kind": [{"input": "Hello"}]}, save_results="generation_output_dir" in more)
    return applier


def slow_margin(model: SteeredModel, row: Row, start: str, vector: torch.Tensor) -> float:
    """log P(matching) - log P(not_matching) behind `start`, with `vector` added to block 1."""
    question, sums = f"{start}{row['question']}", []
    for side in ("matching", "not_matching"):
        ids = model.tokenizer(f"{question} {row[side]}")["input_ids"]
        logs = full_logits(model, ids, {1: lambda hidden: hidden + vector}).log_softmax(-1)
        begins = len(model.tokenizer(question)["input_ids"])
        sums.append(sum(float(logs[n - 1, ids[n]]) for n in range(begins, len(ids))))
    return sums[0] - sums[1]


def test_each_fold_is_judged_under_all_that_is_in_force(tiny: SteeredModel, tmp_path: Path):
    effect = judged(tiny, tmp_path, {"caa": FOLDS}).reports["kind"].effect
    changes = [
        slow_margin(tiny, row, "Be kind. ", own) - slow_margin(tiny, row, "", torch.zeros(16))
        for own, rows in zip(WITHOUT, PARTS, strict=True)
        for row in rows
    ]
    assert effect is not None
    assert effect.source == "2 folds of the training pairs"
    assert effect.mean == pytest.approx(sum(changes) / len(changes), abs=1e-3)


def test_of_a_large_fold_rows_from_everywhere_are_judged(
    tiny: SteeredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("steer.judging.FOLD_PAIRS", 2)
    folds = [({"layer_1": WITHOUT[0]}, ROWS), ({"layer_1": WITHOUT[1]}, ROWS[3:])]
    effect = judged(tiny, tmp_path, {"caa": folds}).reports["kind"].effect
    changes = [
        slow_margin(tiny, ROWS[row], "Be kind. ", own)
        - slow_margin(tiny, ROWS[row], "", torch.zeros(16))
        for own, row in ((WITHOUT[0], 0), (WITHOUT[0], 2), (WITHOUT[1], 3))
    ]
    assert effect is not None
    assert (effect.pairs, effect.source) == (3, "2 folds of the training pairs, 2 of each")
    assert effect.mean == pytest.approx(sum(changes) / 3, abs=1e-3)


def test_rows_in_memory_are_not_judged_by_the_file_of_a_data_set_of_their_name(
    tiny: SteeredModel, desk: Desk
):
    def source() -> str:
        applier = judged(tiny, desk.folder, {"caa": FOLDS}, steer_train_dataset=["mine"])
        effect = applier.reports["kind"].effect
        assert effect is not None
        return effect.source

    assert source() == "2 folds of the training pairs"
    desk.rows("train.jsonl", ROWS[:1])
    assert source() == "held-out file of mine"
    # On the Hub only, it cannot be told.
    (desk.folder / "train.jsonl").unlink()
    assert source() == "held-out file of mine"


@pytest.mark.parametrize(
    "name, own, judges",
    [("mine", False, False), ("mine", True, True), ("ours", False, False)],
)
def test_one_pair_in_memory_is_judged_by_the_file_of_the_data_set_that_it_is_of(
    tiny: SteeredModel, desk: Desk, name: str, own: bool, judges: bool
):
    # One pair has no folds, by whose rows the data set could be told.
    row = json.loads((desk.folder / "train.jsonl").read_text().splitlines()[0]) if own else ROWS[0]
    generator = made(tiny, desk.folder)
    vectors = generator.generate_vectors({name: [row]})[name]
    apply = desk.write("apply.yaml", "alg_name: caa\nlayers: [1]\nmultipliers: [1.0]\n")
    config = {
        "apply_steer_hparam_paths": [str(apply)],
        "steer_vector_load_dir": [str(generator.folders(name)[0])],
        "generation_params": {"max_new_tokens": 2, "do_sample": False},
        "report": "full",
    }

    def source(given: Any, named: list[str]) -> str:
        applier = BaseVectorApplier(config | {"steer_train_dataset": named}, tiny)
        applier.apply_vectors(given, given and generator.folds(name))
        applier.generate({"kind": [{"input": "Hello"}]}, save_results=False)
        report = applier.reports["kind"]
        return report.effect.source if report.effect else report.why_not["effect"]

    expected = "held-out file of mine" if judges else "no held-out pairs"
    assert (source(vectors, ["mine"]), source(vectors, [])) == (expected, expected)
    assert source(None, []) == expected
    # Saved vectors are judged by what a config asks for, unless it is known to be of other rows.
    asked = "no held-out pairs" if name == "mine" and not own else "held-out file of mine"
    assert source(None, ["mine"]) == asked


@pytest.mark.parametrize(
    "folds, reason",
    [
        ({}, "no held-out pairs"),
        ({"caa": []}, "no held-out pairs"),
        (
            {"caa": FOLDS, "prompt": []},
            "folds judge one method that was trained, and these are caa, prompt",
        ),
    ],
)
def test_why_folds_do_not_judge_is_said(
    tiny: SteeredModel, tmp_path: Path, folds: Mapping[str, Any], reason: str
):
    report = judged(tiny, tmp_path, folds).reports["kind"]
    assert (report.effect, report.why_not["effect"]) == (None, reason)


# ---- going on ------------------------------------------------------------------------------------


def made(model: SteeredModel, folder: Path, **more: Any) -> BaseVectorGenerator:
    """Vectors of `mine`, as a run makes them that goes on from an earlier one."""
    (folder / "generate.yaml").write_text("alg_name: caa\nlayers: [1]\n", encoding="utf-8")
    config = {
        "steer_train_hparam_paths": [str(folder / "generate.yaml")],
        "steer_vector_output_dirs": [str(folder / "vectors")],
        "steer_train_dataset": ["mine"],
        "report": "full",
        "resume": True,
        **more,
    }
    return BaseVectorGenerator(config, model)


def test_a_resumed_run_has_the_folds_that_its_report_needs(tiny: SteeredModel, tmp_path: Path):
    first, again = (made(tiny, tmp_path) for _ in range(2))
    for generator in (first, again):
        generator.generate_vectors({"mine": ROWS})
    folds = [generator.folds("mine")["caa"] for generator in (first, again)]
    assert len(folds[0]) == len(folds[1]) == len(ROWS)
    for (one, rows), (other, same_rows) in zip(*folds, strict=True):
        assert torch.equal(one["layer_1"], other["layer_1"])
        assert rows == same_rows


def test_vectors_are_not_made_again_where_no_fold_is_needed(
    tiny: SteeredModel, desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    made(tiny, desk.folder).generate_vectors()
    monkeypatch.setattr(TrainCAA, "train", None)
    made(tiny, desk.folder).generate_vectors()  # judged by its held-out file
    (desk.folder / "valid.jsonl").unlink()
    made(tiny, desk.folder, report="basic").generate_vectors()
    with pytest.raises(TypeError):
        made(tiny, desk.folder).generate_vectors()


def test_a_finished_run_is_answered_again_for_a_fuller_report_only(
    tiny: SteeredModel, tmp_path: Path
):
    def report(level: str) -> Any:
        more = {"resume": True, "report": level, "generation_output_dir": str(tmp_path / "out")}
        return judged(tiny, tmp_path, {"caa": FOLDS}, **more).reports.get("kind")

    assert report("off") is None
    basic = report("basic")
    assert (basic.kl, len(basic.layers)) == (None, 1)
    full = report("full")
    assert (full.effect.pairs, full.why_not) == (
        len(ROWS),
        {"perplexity_ratio": "set generate_orig_output: true"},
    )
    assert report("basic") == report("off") == report("full") == full
