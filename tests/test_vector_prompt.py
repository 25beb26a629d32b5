"""vector_prompt: what a prompt does to an answer's activations, as a vector."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import ChatServer, chat_server
from test_parity import FOLDER, Case, assert_near, written
from tiny import steered, tiny_config
from torch import Tensor

import steer.methods.vector_prompt
from steer import BaseVectorGenerator
from steer.activations import Contrast, contrast
from steer.methods.vector_prompt import TrainVectorPrompt
from steer.models import SteeredModel
from steer.passages import Passage

ROWS: list[dict[str, Any]] = [
    {"input": " Where is it? ", "output": " On the hill.\n"},
    {"input": None, "output": "Nobody knows.", "prompt": "Be brief."},
    {"output": "So it goes.", "prompt": "  Sing! "},
    {"input": "Who?", "output": "Me.", "prompt": None},
]
PROMPT = " Speak of the sea. "
# With the prompt, and without, by hand.
PLAIN = [
    ("Speak of the sea. Where is it?", "Where is it?"),
    ("Be brief.", ""),
    ("Sing!", ""),
    ("Speak of the sea. Who?", "Who?"),
]
OUTPUTS = [" On the hill.", " Nobody knows.", " So it goes.", " Me."]


@pytest.fixture
def tiny() -> SteeredModel:
    return steered(tiny_config("llama"))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["", "You are old."])
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("batch_size", ["auto", "1"])
def test_the_vector_is_the_mean_difference_over_the_outputs(
    tiny: SteeredModel, template: bool, system: str, batch_size: str
):
    def asked(text: str) -> str:
        if not template:
            return f"{system} {text}" if system else text
        return (f"<system>{system}\n" if system else "") + f"<user>{text}\n<assistant>"

    half = TrainVectorPrompt(
        prompt=PROMPT,
        layers=[0, 2],
        use_chat_template=template,
        system_prompt=system,
        batch_size=batch_size,
    )
    vectors = half.train(tiny, ROWS).vectors
    for layer in (0, 2):
        differences = []
        for texts, output in zip(PLAIN, OUTPUTS, strict=True):
            sides = []
            for text in texts:
                question = asked(text)
                ids = tiny.tokenizer(question + output)["input_ids"]
                sides.append(mean_of(tiny, ids, len(question.encode()), layer))
            differences.append(sides[0] - sides[1])
        expected = torch.stack(differences).mean(dim=0).float()
        torch.testing.assert_close(vectors[f"layer_{layer}"], expected, rtol=1e-4, atol=1e-5)


def mean_of(model: SteeredModel, ids: Any, start: int, layer: int) -> Tensor:
    """Mean of a block's outputs from token `start` on, one row at a time, by a plain torch hook."""
    kept: list[Tensor] = []
    handle = model.blocks[layer].register_forward_hook(
        lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model.model(torch.tensor([ids]))
    handle.remove()
    return kept[0].reshape(-1, model.d_model)[start:].double().mean(dim=0)


def test_every_layer_is_read_where_none_is_named(tiny: SteeredModel):
    assert sorted(TrainVectorPrompt(prompt="Hi").train(tiny, ROWS).vectors) == [
        *("layer_0", "layer_1", "layer_2")
    ]


def test_contrastive_rows_are_read_as_question_and_matching_answer(tiny: SteeredModel):
    contrastive = [
        {"question": f"Q{n}?", "matching": f"Yes {n}.", "not_matching": f"No {n}."}
        for n in range(6)
    ]
    same = [{"input": r["question"], "output": r["matching"]} for r in contrastive]
    half = TrainVectorPrompt(prompt="Agree.")
    one, other = half.train(tiny, contrastive), half.train(tiny, same)
    assert all(torch.equal(one.vectors[n], other.vectors[n]) for n in one.vectors)
    # Only pairs can be judged by: five folds of them, as for the other contrastive methods.
    assert [numbers for _, numbers in one.folds] == [[0, 5], [1], [2], [3], [4]]
    assert other.folds == []


@pytest.mark.parametrize(
    "row, said",
    [
        ({"input": "Hello"}, "row 2 has no 'output': it has 'input'"),
        ({"input": "Hello", "output": " "}, "row 2: 'output' is empty"),
        ({"input": 3, "output": "Yes."}, "row 2: 'input' must be text"),
        ({"text": "Hello"}, "row 2 has no 'output': it has 'text'"),
        ({"output": "Yes.", "prompt": 7}, "row 2: 'prompt' must be text"),
        (["Hello"], "row 2 must be a mapping"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tiny: SteeredModel, row: Any, said: str):
    with pytest.raises(ValueError, match=said):
        TrainVectorPrompt(prompt="Hi").train(tiny, [{"output": "Good."}, row])


def test_rows_are_needed(tiny: SteeredModel):
    with pytest.raises(ValueError, match="no rows: give some with an output"):
        TrainVectorPrompt(prompt="Hi").train(tiny, [])


def test_a_prompt_is_needed_from_somewhere(tiny: SteeredModel):
    half = TrainVectorPrompt()
    with pytest.raises(ValueError, match="row 1 has no prompt of its own: give one for all"):
        half.train(tiny, [{"output": "Good."}])
    assert half.train(tiny, [{"output": "Good.", "prompt": "Be kind."}]).vectors
    with pytest.raises(ValueError, match="prompt must not be empty"):
        TrainVectorPrompt(prompt=" ")


# ---- prompts that are written -------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("API_KEY", "OPENAI_API_KEY", "BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as running:
        yield running


def test_each_concept_is_written_once_and_used_as_the_prompt(
    tiny: SteeredModel, server: ChatServer, tmp_path: Path
):
    server.says("Talk of waves.", "Talk of joy.")
    rows = [
        {"output": "One."},
        {"output": "Two.", "prompt": "joy"},
        {"input": "And?", "output": "Three."},
    ]
    file = tmp_path / "prompts.json"
    half = TrainVectorPrompt(
        prompt="the sea", writer_model="big", base_url=server.url, prompts_file=str(file)
    )
    trained = half.train(tiny, rows)
    assert len(server.requests) == 2
    assert trained.report == {
        "generated_prompts": {"the sea": "Talk of waves.", "joy": "Talk of joy."}
    }
    by_hand = TrainVectorPrompt(prompt="Talk of waves.").train(
        tiny, [rows[0], {**rows[1], "prompt": "Talk of joy."}, rows[2]]
    )
    assert all(torch.equal(v, by_hand.vectors[n]) for n, v in trained.vectors.items())
    assert "prompt" not in rows[0]
    half.train(tiny, rows)
    assert len(server.requests) == 2


def test_the_prompts_that_were_written_are_kept_with_the_vectors(
    tiny: SteeredModel, server: ChatServer, tmp_path: Path
):
    server.says("Talk of waves.")
    values = {
        "prompt": "the sea",
        "writer_model": "big",
        "base_url": server.url,
        "prompts_file": str(tmp_path / "prompts.json"),
    }
    config = {
        "steer_train_hparam_paths": [written(tmp_path, "vector_prompt", values)],
        "steer_vector_output_dirs": [str(tmp_path / "out")],
    }
    generator = BaseVectorGenerator(config, tiny)
    generator.generate_vectors({"mine": ROWS})
    (folder,) = generator.folders("mine")
    assert folder == tmp_path / "out" / "mine" / "vector_prompt_vector"
    report = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert report["generated_prompts"]["the sea"] == "Talk of waves."


# ---- the reference's numbers --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no parity numbers at {FOLDER}")
@pytest.mark.parametrize("batch_size", ["auto", "1"])
@pytest.mark.parametrize("name", ["04_vector_prompt_chat", "04b_vector_prompt_plain_system"])
def test_vectors_are_the_references(
    name: str, batch_size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: dict[str, list[Passage]] = {}

    def reading(model: Any, wanted: Any, shunned: Any, *others: Any, **options: Any) -> Contrast:
        read.update(pos=wanted, neg=shunned)
        return contrast(model, wanted, shunned, *others, **options)

    monkeypatch.setattr(steer.methods.vector_prompt, "contrast", reading)
    case = Case(name)
    config = {
        **case.described["top_config"],
        "batch_size": batch_size,
        "steer_train_hparam_paths": [
            written(tmp_path, "vector_prompt", case.described["method_file"])
        ],
        "steer_vector_output_dirs": [str(tmp_path / "out")],
    }
    generator = BaseVectorGenerator(config)
    vectors = generator.generate_vectors({"data": case.described["items"]})["data"]["vector_prompt"]
    tokens = case.golden["tokens"]
    for side, passages in read.items():
        assert [p.ids for p in passages] == [t[f"{side}_ids"] for t in tokens]
        assert [p.start for p in passages] == [t[f"{side}_question_len"] for t in tokens]
        assert all(p.stop == len(p.ids) for p in passages)
    assert sorted(vectors) == sorted(case.tensors)
    for layer, golden in case.tensors.items():
        assert_near(vectors[layer], golden)
        saved = tmp_path / "out" / "data" / "vector_prompt_vector" / f"{layer}.pt"
        assert torch.equal(torch.load(saved, weights_only=True), vectors[layer])
