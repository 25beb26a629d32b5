"""caa on texts that are no pairs, against one text at a time."""

import pytest
import torch
from test_activations import slow_mean
from torch import Tensor

from steer import BaseVectorGenerator
from steer.datasets import Row
from steer.methods.caa import TrainCAA
from steer.models import SteeredModel
from steer.passages import Passage

GOOD = ["What a joy.", "Very good indeed!", "I liked it.", "Fine work, all of it.", "So warm."]
BAD = ["A bore.", "Quite bad, I fear.", "No."]
ROWS: list[Row] = [
    {"text": GOOD[0], "label": 1},
    {"text": BAD[0], "label": 0},
    {"question": "How was it?", "text": GOOD[1], "label": "1"},
    {"matching": GOOD[2], "not_matching": None},
    {"not_matching": BAD[1]},
    {"text": GOOD[3], "label": 1.0},
    {"text": BAD[2], "label": -1},
    {"matching": GOOD[4], "question": "And?"},
]
MATCHING, OTHERS = [0, 2, 3, 5, 7], [1, 4, 6]


@pytest.fixture
def caa() -> TrainCAA:
    return TrainCAA(layers=[1], use_chat_template=False)


def slow_mean_of(model: SteeredModel, row: Row) -> Tensor:
    """The mean over the tokens of a row's text, behind its question."""
    text = row.get("text") or row.get("matching") or row.get("not_matching")
    question = row.get("question") or ""
    ids = model.tokenizer(f"{question} {text}")["input_ids"]
    start = len(model.tokenizer(question)["input_ids"])
    return slow_mean(model, Passage(ids, start, len(ids)), 1).double()


def expected(model: SteeredModel, left_out: list[int]) -> Tensor:
    means = [slow_mean_of(model, row) for row in ROWS]
    one, other = (
        torch.stack([means[n] for n in side if n not in left_out]).mean(dim=0)
        for side in (MATCHING, OTHERS)
    )
    return (one - other).float()


def test_the_vector_is_the_mean_of_one_side_less_that_of_the_other(
    model: SteeredModel, caa: TrainCAA
):
    torch.testing.assert_close(caa.train(model, ROWS).vectors["layer_1"], expected(model, []))


def test_a_fold_holds_rows_of_both_sides_and_its_vector_has_not_seen_them(
    model: SteeredModel, caa: TrainCAA
):
    trained = caa.train(model, ROWS)
    assert [numbers for _, numbers in trained.folds] == [[0, 1, 5], [2, 4, 7], [3, 6]]
    for vectors, numbers in trained.folds:
        torch.testing.assert_close(vectors["layer_1"], expected(model, numbers))


def test_as_many_on_both_sides_give_what_pairs_of_them_give(model: SteeredModel, caa: TrainCAA):
    pairs = [{"matching": m, "not_matching": n} for m, n in zip(GOOD, BAD, strict=False)]
    single = [{side: pair[side]} for side in ("not_matching", "matching") for pair in pairs]
    paired, unpaired = (caa.train(model, rows).vectors for rows in (pairs, single))
    torch.testing.assert_close(unpaired["layer_1"], paired["layer_1"])
    norms = [vectors.about["layer_1"]["residual_norm"] for vectors in (paired, unpaired)]
    assert norms[0] == pytest.approx(norms[1], rel=0.2)


def test_one_text_on_a_side_leaves_no_folds(model: SteeredModel, caa: TrainCAA):
    trained = caa.train(model, [ROWS[0], ROWS[1], ROWS[2]])
    assert trained.folds == []
    assert trained.vectors["layer_1"].isfinite().all()


def test_metadata_counts_the_rows_and_knows_another_label(model: SteeredModel, tmp_path):
    (tmp_path / "caa.yaml").write_text("alg_name: caa\nlayers: [1]\n")

    def about(rows: list[Row]) -> dict:
        config = {
            "steer_train_hparam_paths": [str(tmp_path / "caa.yaml")],
            "save_vectors": False,
        }
        made = BaseVectorGenerator(config, model).generate_vectors({"mine": rows})
        return made["mine"]["caa"].about["layer_1"]["data"]

    turned = [{**ROWS[0], "label": 0}, *ROWS[1:]]
    first, again, other = about(ROWS), about(ROWS), about(turned)
    assert first == again != other
    assert first["rows"] == 8
