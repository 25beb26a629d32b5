"""Several methods at once: in what order, on which data sets, and what a run of them says."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import slow_but
from desk import Desk
from test_methods import METHODS, ROWS, applier_of, logits, made, method_file, same
from tiny import full_logits, steered, tiny_config
from torch import Tensor

from steer import BaseVectorApplier, BaseVectorGenerator
from steer.models import (
    Add,
    EditHeadInput,
    EditLayer,
    EditLogits,
    EditPrompt,
    EditTensor,
    ProjectOut,
    SteeredModel,
)
from steer.models.positions import EVERYWHERE

pytestmark = pytest.mark.slow

IDS = [72, 101, 108, 108, 111]
U, V = (torch.randn(16, generator=torch.Generator().manual_seed(n)) for n in (1, 2))


@pytest.fixture
def llama() -> SteeredModel:
    return steered(tiny_config("llama"))


# ---- order --------------------------------------------------------------------------------------


def add(h: Tensor) -> Tensor:
    return h + 3 * V


def project_out(h: Tensor) -> Tensor:
    return h - (h @ U)[:, None] * U / (U @ U)


STEPS: dict[str, tuple[EditLayer, Callable[[Tensor], Tensor]]] = {
    "add": (EditLayer(1, Add(V, 3.0)), add),
    "project out": (EditLayer(1, ProjectOut(U)), project_out),
}


def now(model: SteeredModel) -> Tensor:
    """Logits under what is in force."""
    with torch.inference_mode(), model.steering():
        return model.model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("order", [["add", "project out"], ["project out", "add"]])
def test_edits_of_one_layer_are_made_in_the_order_of_methods(llama: SteeredModel, order: list[str]):
    for name in order:
        llama.steer(name, [STEPS[name][0]])

    def by_hand(hidden: Tensor) -> Tensor:
        for name in order:
            hidden = STEPS[name][1](hidden)
        return hidden

    torch.testing.assert_close(now(llama), full_logits(llama, IDS, {1: by_hand}))
    # The other order is another sum.
    turned = full_logits(llama, IDS, {1: lambda h: STEPS[order[0]][1](STEPS[order[1]][1](h))})
    assert not torch.allclose(now(llama), turned, atol=1e-3)


def test_layers_come_before_the_heads_input_and_that_before_the_logits(llama: SteeredModel):
    shift = torch.randn(258, generator=torch.Generator().manual_seed(3))
    # Listed the wrong way round: where an edit is made does not depend on that.
    llama.steer("logits", [EditLogits(Add(shift))])
    llama.steer("head", [EditHeadInput(Add(U, 0.5))])
    llama.steer("layer", [EditLayer(0, Add(V, 2.0))])
    plain: Any = llama.model
    with torch.inference_mode():
        hook = plain.model.layers[0].register_forward_hook(lambda _m, _a, h: h + 2.0 * V)
        hidden = plain.model(torch.tensor([IDS])).last_hidden_state[0]
        hook.remove()
        wanted = (hidden + 0.5 * U) @ plain.lm_head.weight.T + shift
    torch.testing.assert_close(now(llama), wanted)


def test_prompts_stand_in_the_order_of_methods(llama: SteeredModel):
    llama.steer("prompt", [EditPrompt("First.")])
    llama.steer("caa", [EditLayer(1, Add(V))])
    llama.steer("prompt_2", [EditPrompt("Second.")])
    assert llama.prompted("Text") == "First. Second. Text"
    llama.reset("prompt")
    assert llama.prompted("Text") == "Second. Text"


def test_the_order_is_that_of_the_list_whatever_was_reset_before(
    llama: SteeredModel, tmp_path: Path
):
    applier = applier_of(["caa", "prompt", "merge_vector"], llama, tmp_path)
    vectors = {"caa": {"layer_0": V, "layer_2": V}, "merge_vector": {"layer_0": U, "layer_2": U}}
    applier.model.steer("mine", [])
    applier.apply_vectors(vectors)
    assert list(applier.model.in_force) == ["mine", "caa", "prompt", "merge_vector"]
    applier.model.reset("caa")
    applier.apply_vectors(vectors)
    assert list(applier.model.in_force) == ["mine", "caa", "prompt", "merge_vector"]


# ---- any two methods ----------------------------------------------------------------------------


def pairs() -> Iterator[tuple[str, str]]:
    """Every method with the next one of the registry, and with itself."""
    for one, other in zip(METHODS, [*METHODS[1:], METHODS[0]], strict=True):
        yield one, other
        yield one, one


QUICK = (("caa", "caa"), ("caa", METHODS[1]))


def by_hand(model: SteeredModel, steps: list[Any], text: str) -> Tensor:
    """Logits with each edit made in turn, by plain hooks at the places that steps name."""
    prompts = [step.text for step in steps if isinstance(step, EditPrompt)]
    ids = model.tokenizer(" ".join([*prompts, text]))["input_ids"]
    plain: Any = model.model
    handles = []
    for step in (s for s in steps if isinstance(s, EditTensor)):
        assert step.where == EVERYWHERE
        edit = step.edit
        if isinstance(step, EditHeadInput):
            hook = plain.lm_head.register_forward_pre_hook(lambda _m, a, e=edit: (e(a[0]),))
        else:
            module = (
                plain.lm_head if isinstance(step, EditLogits) else plain.model.layers[step.layer]
            )
            hook = module.register_forward_hook(lambda _m, _a, h, e=edit: e(h))
        handles.append(hook)
    with torch.inference_mode():
        found = plain(torch.tensor([ids])).logits[0]
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("names", slow_but(QUICK, pairs()), ids="+".join)
def test_any_two_methods_steer_together(
    llama: SteeredModel, names: tuple[str, str], tmp_path: Path
):
    keys = [names[0], f"{names[1]}_2" if names[0] == names[1] else names[1]]
    vectors = {}
    for key, name in zip(keys, names, strict=True):
        place = tmp_path / key
        place.mkdir()
        vectors[key], _ = made(name, llama, place)
    applier = applier_of(list(names), llama, tmp_path)
    applier.apply_vectors(vectors)
    assert list(applier.model.in_force) == keys
    steps = applier.model.interventions()
    found = logits(applier, "Hello there")
    torch.testing.assert_close(found, by_hand(llama, steps, "Hello there"), rtol=1e-5, atol=1e-5)
    # Each of the two has a share in it.
    for key in keys:
        applier.model.reset(key)
        assert not same(logits(applier, "Hello there"), found)
        applier.apply_vectors(vectors)


# ---- several data sets --------------------------------------------------------------------------

RUDE = [{**row, "matching": "Grr!"} for row in ROWS]


def combined(folder: Path, datasets: list[str], *files: str, **top: Any) -> dict[str, Any]:
    return {
        "combine": True,
        "steer_train_dataset": datasets,
        "steer_train_hparam_paths": [method_file(folder, name, "generate") for name in files],
        "steer_vector_output_dirs": str(folder / "out"),
        "apply_steer_hparam_paths": [method_file(folder, name, "apply") for name in files],
        **top,
    }


def test_vectors_of_several_data_sets_steer_one_run(llama: SteeredModel, tmp_path: Path):
    config = combined(tmp_path, ["kind", "rude"], "caa", "caa")
    generator = BaseVectorGenerator(config, llama)
    vectors = generator.generate_vectors({"kind": ROWS, "rude": RUDE})
    assert {name: list(by_key) for name, by_key in vectors.items()} == {
        "kind": ["caa"],
        "rude": ["caa_2"],
    }
    assert generator.steered_together() == [["kind", "rude"]]
    places = [tmp_path / "out" / name / "caa_vector" for name in ("kind", "rude")]
    assert generator.folders("kind", "rude") == places
    assert all((place / "layer_0.pt").is_file() for place in places)

    applier = BaseVectorApplier(config, llama)
    applier.hparams_dict["caa_2"].multipliers = [1.0, 0.5]
    applier.apply_vectors(generator.vectors("kind", "rude"), generator.folds("kind", "rude"))
    # Each is what a run of its own makes.
    alone = BaseVectorGenerator(
        {
            **config,
            "combine": False,
            "steer_train_hparam_paths": config["steer_train_hparam_paths"][:1],
        },
        llama,
    )
    own = alone.generate_vectors({"kind": ROWS, "rude": RUDE})
    one, other = own["kind"]["caa"], own["rude"]["caa"]
    ids = llama.tokenizer("Hello there")["input_ids"]
    wanted = full_logits(
        llama,
        ids,
        {
            0: lambda h: h + 3.0 * one["layer_0"] + 1.0 * other["layer_0"],
            2: lambda h: h - 2.0 * one["layer_2"] + 0.5 * other["layer_2"],
        },
    )
    torch.testing.assert_close(logits(applier, "Hello there"), wanted, rtol=1e-4, atol=1e-4)
    assert alone.steered_together() == [["kind"], ["rude"]]


def test_a_line_of_its_own_names_the_folder_of_what_is_merged(llama: SteeredModel, tmp_path: Path):
    config = combined(tmp_path, ["kind", "rude", "both"], "caa", "caa", "merge_vector")
    merging = method_file(tmp_path, "merge_vector", "generate", vector_paths=["caa", "caa_2"])
    assert merging in config["steer_train_hparam_paths"]
    generator = BaseVectorGenerator(config, llama)
    vectors = generator.generate_vectors({"kind": ROWS, "rude": RUDE, "both": []})
    assert list(vectors["both"]) == ["merge_vector"]
    known = vectors["both"]["merge_vector"].about["layer_0_merged_vector"]
    assert known["inputs"] == ["caa/layer_0", "caa_2/layer_0"]
    assert (tmp_path / "out/both/merge_vector/layer_0_merged_vector.pt").is_file()


def test_only_data_that_is_learnt_from_is_read(
    llama: SteeredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = []

    def reading(cfg: dict[str, Any]) -> dict[str, Any]:
        read.extend(cfg["steer_train_dataset"])
        return dict.fromkeys(cfg["steer_train_dataset"], ROWS)

    monkeypatch.setattr("steer.generator.prepare_train_dataset", reading)
    config = combined(tmp_path, ["kind", "merged"], "caa", "merge_vector")
    assert list(BaseVectorGenerator(config, llama).training_data()) == ["kind", "merged"]
    assert read == ["kind"]


@pytest.mark.parametrize(
    "datasets, message",
    [
        (["kind", "rude", "sad"], r"got 3 data sets \['kind', 'rude', 'sad'\] for 2 method files"),
        ([], r"got 0 data sets \[\] for 2 method files; name one for each"),
        (["kind"], "caa and caa_2 would both write .*kind/caa_vector"),
        (["kind", "kind"], "caa and caa_2 would both write .*kind/caa_vector"),
    ],
)
def test_data_sets_and_method_files_that_do_not_pair_are_refused(
    llama: SteeredModel, tmp_path: Path, datasets: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        BaseVectorGenerator(combined(tmp_path, datasets, "caa", "caa"), llama)


def test_data_that_no_method_file_is_paired_with_is_refused(llama: SteeredModel, tmp_path: Path):
    generator = BaseVectorGenerator(combined(tmp_path, ["kind", "rude"], "caa", "caa"), llama)
    with pytest.raises(ValueError, match=r"no data for \['caa_2'\]: got the data sets \['kind'\]"):
        generator.generate_vectors({"kind": ROWS})


# ---- the scripts --------------------------------------------------------------------------------


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """With a second data set."""
    desk.rows("other.jsonl", [{"matching": "Yes.", "not_matching": "No."}] * 2)
    formats = (desk.folder / "hparams/Steer/dataset_format.yaml").read_text()
    formats = formats.replace("train: {", "train: {other: {file_path: other.jsonl}, ")
    desk.write("hparams/Steer/dataset_format.yaml", formats)
    return desk


def test_steering_puts_the_vectors_of_all_data_sets_in_force(desk: Desk):
    caa, text = (
        "hparams/Steer/caa_hparams/caa.yaml",
        "hparams/Steer/prompt_hparams/apply_prompt.yaml",
    )
    desk.run(
        "steering.py",
        "combine=true",
        steer_train_hparam_paths=f"[{caa},{caa}]",
        steer_train_dataset="[mine,other]",
        apply_steer_hparam_paths=f"[{caa},{caa},{text}]",
    )
    assert desk.status == 0, desk.said
    run = json.loads((desk.out / "answers/mine_run.json").read_text())["run"]
    kinds = [step["kind"] for step in run["steering"]]
    assert kinds == ["EditLayer", "EditLayer", "EditPrompt"]
    vectors = [step["edit"]["vector"]["sha256"] for step in run["steering"][:2]]
    assert len(set(vectors)) == 2
    for name in ("mine", "other"):
        assert f"written: out/vectors/{name}/caa_vector" in desk.printed


def test_each_run_of_several_data_sets_is_judged_by_its_own(desk: Desk):
    printed = desk.run("steering.py", steer_train_dataset="[mine,other]")
    assert desk.status == 0, desk.said
    assert printed.count("held-out file of mine") == 1
    assert printed.count("2 folds of the training pairs") == 1
