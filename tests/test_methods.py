"""The contract of every row of the registry, and what generator and applier promise for all.

A new row is tested by being there; where it has a setting of a name that is not in `VALUES` and
that has no default, add a value that suits a model of 3 blocks.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import slow_but
from tiny import steered, tiny_config
from torch import Tensor

from steer import METHODS_CLASS_DICT, BaseVectorApplier, BaseVectorGenerator
from steer.evaluate.reading import read_sides
from steer.models import GENERATED, PROMPT, Add, EditLayer, SteeredModel
from steer.models.interventions import cancels
from steer.models.tally import Tally
from steer.report import basic_report
from steer.settings import Run
from steer.vectors import read_metadata, save_vectors

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted((ROOT / "hparams" / "Steer").glob("*_hparams/*.yaml"))

ROWS = [
    {"question": "How are you?", "matching": "Very well!", "not_matching": "Go away."},
    {"question": "Who are you?", "matching": "A good friend.", "not_matching": "Nobody, sir."},
    {"question": "Is it late?", "matching": "Not at all.", "not_matching": "Yes, and dark."},
]
INPUTS = [{"input": "Hello"}, {"input": "Où ça, là-bas ?", "reference_response": "Ici."}]
TINY_SAE = str(ROOT / "tests" / "data" / "tiny_sae")
VALUES = {
    "layers": [0, 2],
    "multipliers": [3.0, -2.0],
    "trims": [0.5, 0.5],
    "prompt": "Be kind.",
    "n_steps": 3,
    "lr": 0.1,
    "rank": 4,
    "epsilon": 0.1,
    "steer_values": [5.0, 1.0],
    "direction_layer": 0,
    "sae_path": TINY_SAE,
    "sae_paths": [TINY_SAE],
    "concept": "kindness",
    "prompts_file": None,
    "position_ids": [1, 3],
    "strengths": [40.0, -30.0],
    "vector_paths": [str(ROOT / "tests" / "data" / "bare_vectors")] * 2,
}
# What is right for one method only: an SAE is of one layer.
OF_SAE = {"layers": [0], "multipliers": [3.0]}
OF_METHOD: dict[str, dict[str, Any]] = {
    "sae_feature": OF_SAE,
    "sta": {**OF_SAE, "trims": [0.5]},
}
GREEDY = {"max_new_tokens": 6, "do_sample": False}

PHASES = {"generate": "train", "apply": "apply"}
METHODS = list(METHODS_CLASS_DICT)
QUICK = ("caa", "lm_steer", "prompt", "sae_clamp")  # of each kind of intervention one
TRAINED = [name for name, row in METHODS_CLASS_DICT.items() if "train" in row]
HALVES = [
    (name, phase)
    for name, row in METHODS_CLASS_DICT.items()
    for phase, half in PHASES.items()
    if half in row
]


def half_of(name: str, phase: str) -> type:
    row: Mapping[str, Any] = METHODS_CLASS_DICT[name]
    return row[PHASES[phase]]


def method_file(folder: Path, name: str, phase: str, **changed: Any) -> str:
    """A method's file for a model of 3 blocks."""
    known = {f.name for f in fields(half_of(name, phase))}
    values = VALUES | OF_METHOD.get(name, {})
    values = {key: value for key, value in values.items() if key in known}
    path = folder / f"{phase}_{name}.yaml"
    path.write_text(yaml.safe_dump({"alg_name": name, **values, **changed}), encoding="utf-8")
    return str(path)


def generator_of(
    name: str, model: SteeredModel, folder: Path, **changed: Any
) -> BaseVectorGenerator:
    config = {
        "steer_train_hparam_paths": [method_file(folder, name, "generate", **changed)],
        "steer_vector_output_dirs": [str(folder / "out")],
    }
    return BaseVectorGenerator(config, model)


def applier_of(
    names: list[str], model: SteeredModel, folder: Path, **top: Any
) -> BaseVectorApplier:
    config = {
        "apply_steer_hparam_paths": [method_file(folder, name, "apply") for name in names],
        "generation_output_dir": str(folder / "results"),
        "generation_params": GREEDY,
        **top,
    }
    return BaseVectorApplier(config, model)


def made(name: str, model: SteeredModel, folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Vectors of a method, trained where it can be trained, and the folder that holds them."""
    if name in TRAINED:
        generator = generator_of(name, model, folder)
        vectors = dict(generator.generate_vectors({"kind": ROWS})["kind"][name])
        (place,) = generator.folders("kind")
        return vectors, place
    half = build_half(name, folder)
    names = half.names() if hasattr(half, "names") else []
    vectors = {n: torch.randn(16, generator=torch.Generator().manual_seed(1)) for n in names}
    save_vectors(folder / "given", vectors, {})
    return vectors, folder / "given"


def build_half(name: str, folder: Path) -> Any:
    run = Run.of({"apply_steer_hparam_paths": [method_file(folder, name, "apply")]}, "apply")
    return run.methods[name].half


@torch.inference_mode()
def logits(applier: BaseVectorApplier, text: str = "Hello there") -> Tensor:
    """[seq, vocab], steered by what is in force."""
    model = applier.model
    ids = torch.tensor([model.tokenizer(model.prompted(text))["input_ids"]])
    with model.steering(prompt_lengths=torch.tensor([ids.shape[1]])):
        return model.model(ids).logits[0]


def same(one: Tensor, other: Tensor) -> bool:
    """Whether shapes and bits agree."""
    return one.shape == other.shape and torch.equal(one, other)


# ---- every row ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_complete_and_of_the_method_that_its_folder_names(path: Path):
    name = path.parent.name.removesuffix("_hparams")
    phases = [phase for phase in PHASES if path.stem == f"{phase}_{name}"]
    if path.stem == name:
        phases = [phase for each, phase in HALVES if each == name]
    assert phases
    for phase in phases:
        key = "steer_train_hparam_paths" if phase == "generate" else "apply_steer_hparam_paths"
        (method,) = Run.of({key: [str(path)]}, phase).methods.values()
        assert method.name == name
        assert type(method.half) is half_of(name, phase)


@pytest.mark.parametrize("name", slow_but(QUICK, METHODS))
def test_memory_and_disk_steer_alike_and_reset_leaves_nothing(
    model: SteeredModel, name: str, tmp_path: Path
):
    vectors, folder = made(name, model, tmp_path)
    applier = applier_of([name], model, tmp_path, steer_vector_load_dir=[str(folder)])
    plain = logits(applier)
    applier.apply_vectors({name: vectors})
    from_memory = logits(applier)
    applier.model.reset_all()
    assert same(logits(applier), plain)
    applier.apply_vectors()
    from_disk = logits(applier)
    assert not same(from_memory, plain)
    assert same(from_disk, from_memory)
    applier.model.reset(name)
    assert same(logits(applier), plain)


@pytest.mark.parametrize("name", slow_but(QUICK, METHODS))
def test_the_model_that_was_given_is_never_steered_itself(
    model: SteeredModel, name: str, tmp_path: Path
):
    vectors, _ = made(name, model, tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    before = model.model(ids).logits
    applier = applier_of([name], model, tmp_path)
    applier.apply_vectors({name: vectors})
    assert model.interventions() == []
    assert same(model.model(ids).logits, before)
    applier.generate({"kind": INPUTS}, save_results=False)
    assert same(model.model(ids).logits, before)
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("name", slow_but(QUICK, TRAINED))
def test_training_twice_gives_the_same_bits_and_disturbs_nobody(
    model: SteeredModel, name: str, tmp_path: Path
):
    before = {n: p.clone() for n, p in model.model.state_dict().items()}
    first, _ = made(name, model, tmp_path)
    torch.rand(7)
    second, _ = made(name, model, tmp_path)
    assert sorted(first) == sorted(second)
    assert all(same(first[n], second[n]) for n in first)
    assert all(same(p, before[n]) for n, p in model.model.state_dict().items())


@pytest.mark.parametrize("name", slow_but(QUICK, TRAINED))
def test_what_is_trained_is_returned_by_data_set_and_method_and_lies_where_the_applier_looks(
    model: SteeredModel, name: str, tmp_path: Path
):
    generator = generator_of(name, model, tmp_path)
    made = generator.generate_vectors({"kind": ROWS, "short": ROWS[:1]})
    assert list(made) == ["kind", "short"]
    half = build_half(name, tmp_path)
    for dataset, by_method in made.items():
        assert list(by_method) == [name]
        assert generator.folders(dataset) == [
            tmp_path / "out" / dataset / generator.hparams_dict[name].folder
        ]
        files = {path.stem for path in generator.folders(dataset)[0].glob("*.pt")}
        assert all(v.isfinite().all() for v in by_method[name].values())
        entries = (read_metadata(generator.folders(dataset)[0]) or {})["vectors"]
        if bundle := generator.trained[dataset][name].bundle:
            assert files == set(entries) == {bundle}
            shapes = {n: entry["shape"] for n, entry in entries[bundle]["tensors"].items()}
            assert shapes == {n: list(v.shape) for n, v in by_method[name].items()}
        else:
            beside = generator.trained[dataset][name].beside
            assert files == set(by_method[name]) - {n for v in beside.values() for n in v}
            for folder, vectors in beside.items():
                place = tmp_path / "out" / dataset / folder
                assert {path.stem for path in place.glob("*.pt")} == set(vectors)
            assert set(half.names()) <= set(by_method[name])
            assert all(v.shape == (16,) for v in by_method[name].values())
        assert {entry["method"] for entry in entries.values()} == {name}
        reads_data = hasattr(generator.hparams_dict[name], "train")
        learnt_from = {entry.get("data", {}).get("name") for entry in entries.values()}
        assert learnt_from == {dataset if reads_data else None}


@pytest.mark.parametrize("name", slow_but(QUICK, TRAINED))
def test_nothing_is_written_where_saving_is_off(model: SteeredModel, name: str, tmp_path: Path):
    path = method_file(tmp_path, name, "generate")
    config = {"steer_train_hparam_paths": [path], "save_vectors": False}
    generator = BaseVectorGenerator(config, model)
    assert generator.generate_vectors({"kind": ROWS})["kind"][name]
    assert generator.folders("kind") == []
    assert [p.name for p in tmp_path.iterdir()] == [Path(path).name]


@pytest.mark.parametrize("name, phase", HALVES)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest_one(
    model: SteeredModel, name: str, phase: str, tmp_path: Path
):
    key = fields(half_of(name, phase))[0].name
    path = method_file(tmp_path, name, phase, **{f"{key}x": 1})
    where = "steer_train_hparam_paths" if phase == "generate" else "apply_steer_hparam_paths"
    face: Callable[..., object] = BaseVectorGenerator if phase == "generate" else BaseVectorApplier
    with pytest.raises(ValueError, match=f"{path}: .*'{key}x'; did you mean '{key}'"):
        face({where: [path]}, model)


@pytest.mark.parametrize("name", [n for n in METHODS if hasattr(half_of(n, "apply"), "names")])
def test_vectors_that_are_missing_are_said_to_be(model: SteeredModel, name: str, tmp_path: Path):
    applier = applier_of([name], model, tmp_path)
    with pytest.raises(ValueError, match="no vectors to apply: give steer_vector_load_dir"):
        applier.apply_vectors()
    with pytest.raises(ValueError, match=r"no vectors \['layer_0.*there are \['other'\]"):
        applier.apply_vectors({name: {"other": torch.ones(16)}})
    assert applier.model.interventions() == []


# ---- settings between calls ---------------------------------------------------------------------


def caa(model: SteeredModel, folder: Path, **top: Any) -> BaseVectorApplier:
    return applier_of(["caa"], model, folder, **top)


VECTORS = {"caa": {f"layer_{n}": torch.linspace(-1, 1, 16).roll(n) for n in range(3)}}


def expected(model: SteeredModel, layers: list[int], multipliers: list[float]) -> Tensor:
    """Logits with vectors added by hooks of the test's own."""
    handles = [
        model.blocks[layer].register_forward_hook(
            lambda _m, _i, out, v=multiplier * VECTORS["caa"][f"layer_{layer}"]: (
                (out[0] + v, *out[1:]) if isinstance(out, tuple) else out + v
            )
        )
        for layer, multiplier in zip(layers, multipliers, strict=True)
    ]
    ids = torch.tensor([model.tokenizer("Hello there")["input_ids"]])
    with torch.inference_mode():
        found = model.model(ids).logits[0]
    for handle in handles:
        handle.remove()
    return found


def test_multipliers_can_be_swept_without_a_new_applier(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path)
    for multiplier in (-2.0, 0.0, 0.5, 4.0):
        applier.hparams_dict["caa"].multipliers = [multiplier, 1.0]
        applier.apply_vectors(VECTORS)
        wanted = expected(model, [0, 2], [multiplier, 1.0])
        torch.testing.assert_close(logits(applier), wanted, rtol=1e-5, atol=1e-5)
        # As EasyEdit2's users keep the rounds apart.
        applier.config.generation_output_dir = str(tmp_path / f"out {multiplier}")
        applier.generate({"kind": INPUTS[:1]})
        assert (tmp_path / f"out {multiplier}" / "kind_results.json").is_file()


def test_a_layer_of_the_call_before_does_not_stay_steered(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path)
    applier.apply_vectors(VECTORS)
    applier.hparams_dict["caa"].layers = [1]
    applier.hparams_dict["caa"].multipliers = [2.0]
    applier.apply_vectors(VECTORS)
    torch.testing.assert_close(logits(applier), expected(model, [1], [2.0]), rtol=1e-5, atol=1e-5)


def test_all_strengths_at_0_are_the_bare_models_bits(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path)
    plain = logits(applier)
    applier.hparams_dict["caa"].multipliers = [0.0, 0.0]
    applier.apply_vectors(VECTORS)
    assert same(logits(applier), plain)
    records = applier.generate({"kind": INPUTS}, save_results=False)["kind"]
    assert len(records) == 2


def test_a_method_taken_out_of_the_settings_is_out_of_force(model: SteeredModel, tmp_path: Path):
    applier = applier_of(["caa", "prompt"], model, tmp_path)
    plain = logits(applier)
    applier.model.steer("mine", [])
    applier.apply_vectors(VECTORS)
    del applier.hparams_dict["caa"]
    applier.apply_vectors()
    assert list(applier.model.in_force) == ["mine", "prompt"]
    del applier.hparams_dict["prompt"]
    applier.apply_vectors()
    assert same(logits(applier), plain)


def test_what_was_in_force_stays_where_new_settings_are_refused(
    model: SteeredModel, tmp_path: Path
):
    applier = applier_of(["prompt", "caa"], model, tmp_path)
    applier.apply_vectors(VECTORS)
    before = logits(applier)
    applier.hparams_dict["prompt"].prompt = "Be brief."
    applier.hparams_dict["caa"].layers = [0, 7]
    with pytest.raises(ValueError, match=r"layers \[7\] do not exist: the model has 3"):
        applier.apply_vectors(VECTORS)
    assert same(logits(applier), before)


def test_the_next_data_sets_vectors_take_the_place_of_the_last_ones(
    model: SteeredModel, tmp_path: Path
):
    vectors = generator_of("caa", model, tmp_path).generate_vectors(
        {"kind": ROWS, "rude": [{**r, "matching": "Grr!"} for r in ROWS]}
    )
    applier = caa(model, tmp_path)
    steered_by = {}
    for name, of_data_set in vectors.items():
        applier.apply_vectors(of_data_set)
        steered_by[name] = logits(applier)
    assert not same(steered_by["kind"], steered_by["rude"])
    fresh = caa(model, tmp_path)
    fresh.apply_vectors(vectors["rude"])
    assert same(logits(fresh), steered_by["rude"])


def test_methods_add_up(model: SteeredModel, tmp_path: Path):
    applier = applier_of(["caa", "vector_prompt"], model, tmp_path)
    applier.hparams_dict["vector_prompt"].multipliers = [1.0, 5.0]
    applier.apply_vectors({"caa": VECTORS["caa"], "vector_prompt": VECTORS["caa"]})
    torch.testing.assert_close(
        logits(applier), expected(model, [0, 2], [4.0, 3.0]), rtol=1e-4, atol=1e-4
    )


# ---- CAA by hand --------------------------------------------------------------------------------


def slow_caa(
    model: SteeredModel, rows: list[dict[str, str]], layer: int, before: str, joint: str, after: str
) -> Tensor:
    """Mean over rows of (mean of block outputs on one answer - on the other), one text at a time.

    `before` and `after` are what the template puts around a question; with `joint` a line of its
    own, the last token but one is read, else all of the answer.
    """
    differences = []
    for row in rows:
        means = []
        for side in ("matching", "not_matching"):
            question = before + row["question"] + after
            ids = model.tokenizer(question + joint + row[side])["input_ids"]
            kept: list[Tensor] = []
            hook = model.blocks[layer].register_forward_hook(
                lambda _m, _i, out, kept=kept: kept.append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
            with torch.inference_mode():
                model.model(torch.tensor([ids]))
            hook.remove()
            start = len(model.tokenizer(question)["input_ids"])
            hidden = kept[0][0]
            means.append(hidden[-2] if joint.startswith("\n") else hidden[start:].mean(dim=0))
        differences.append(means[0] - means[1])
    return torch.stack(differences).mean(dim=0)


@pytest.mark.parametrize("multiple_choice", [False, True])
@pytest.mark.parametrize(
    "top, before, after",
    [
        ({}, "", ""),
        ({"system_prompt": "Be kind."}, "Be kind. ", ""),
        ({"use_chat_template": True}, "<user>", "\n<assistant>"),
        (
            {"use_chat_template": True, "system_prompt": "Be kind and say much."},
            "<system>Be kind and say much.\n<user>",
            "\n<assistant>",
        ),
    ],
    ids=["plain", "plain, system", "chat", "chat, system"],
)
def test_caa_is_the_slow_loop(
    model: SteeredModel, multiple_choice: bool, top: dict[str, Any], before: str, after: str
):
    choices = [{**row, "matching": "(A)", "not_matching": "(B)"} for row in ROWS]
    rows = choices if multiple_choice else ROWS
    trainer = METHODS_CLASS_DICT["caa"]["train"](multiple_choice=multiple_choice, **top)
    vectors = trainer.train(model, rows).vectors
    assert sorted(vectors) == ["layer_0", "layer_1", "layer_2"]
    for layer in range(3):
        joint = "\nAnswer: " if multiple_choice else " "
        wanted = slow_caa(model, rows, layer, before, joint, after)
        torch.testing.assert_close(vectors[f"layer_{layer}"], wanted, rtol=1e-4, atol=1e-5)


# ---- answers ------------------------------------------------------------------------------------


def greedy(model: SteeredModel, text: str, tokens: int = 6) -> str:
    """The bare model's answer, one token at a time without a cache."""
    ids = list(model.tokenizer(text)["input_ids"])
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + tokens and ids[-1] != model.tokenizer.eos_token_id:
            ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return model.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_without_methods_answers_are_the_bare_models(model: SteeredModel):
    applier = BaseVectorApplier({"generation_params": GREEDY, "generate_orig_output": True}, model)
    applier.apply_vectors()
    records = applier.generate({"kind": INPUTS}, save_results=False)["kind"]
    for row, record in zip(INPUTS, records, strict=True):
        assert record["pred"] == record["orig_pred"] == [greedy(model, row["input"])]
        assert record["complete_output"] == [row["input"] + record["pred"][0]]
    assert applier.reports["kind"].layers == {}


def test_the_baseline_has_neither_the_steering_prompt_nor_the_vectors(
    model: SteeredModel, tmp_path: Path
):
    applier = applier_of(["prompt", "caa"], model, tmp_path, generate_orig_output=True)
    applier.apply_vectors(VECTORS)
    records = applier.generate({"kind": INPUTS}, save_results=False)["kind"]
    for row, record in zip(INPUTS, records, strict=True):
        assert record["orig_pred"] == [greedy(model, row["input"])]
        assert record["complete_output"][0].startswith(f"Be kind. {row['input']}")
        assert record["pred"] != record["orig_pred"]


def test_every_data_sets_answers_come_back_by_name_and_lie_in_files_of_their_own(
    model: SteeredModel, tmp_path: Path
):
    applier = caa(model, tmp_path)
    applier.apply_vectors(VECTORS)
    results = applier.generate({"one": INPUTS, "two": INPUTS[:1], "three": INPUTS[1:]})
    assert {name: len(records) for name, records in results.items()} == {
        "one": 2,
        "two": 1,
        "three": 1,
    }
    for name, records in results.items():
        path = tmp_path / "results" / f"{name}_results.json"
        assert json.loads(path.read_text(encoding="utf-8")) == records
    assert results["two"] == results["one"][:1]
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    wanted = [f"{name}_{kind}.json" for name in results for kind in ("results", "run")]
    assert names == sorted(wanted)


def test_a_result_file_has_the_documented_form(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path, generate_orig_output=True)
    applier.apply_vectors(VECTORS)
    applier.generate({"kind": INPUTS})
    data = (tmp_path / "results" / "kind_results.json").read_bytes()
    records = json.loads(data.decode("utf-8"))
    keys = ["input", "orig_pred", "pred", "reference_response", "complete_output"]
    assert [list(record) for record in records] == [keys, keys]
    assert [record["input"] for record in records] == ["Hello", "Où ça, là-bas ?"]
    assert [record["reference_response"] for record in records] == [None, "Ici."]
    assert data.startswith(b'[\n    {\n        "input": "Hello",\n        "orig_pred": [\n')
    assert "Où ça, là-bas ?".encode() in data
    assert b"\r" not in data


def test_results_keep_the_concept_that_a_judge_looks_for(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path)
    applier.apply_vectors(VECTORS)
    rows = [{"input": "Hello", "concept": "tea", "concept_id": 3}, INPUTS[0]]
    records = applier.generate({"kind": rows}, save_results=False)["kind"]
    assert [record.get("concept") for record in records] == ["tea", None]
    first, second = read_sides(records, "kind")["steered"].items
    assert (first.row["concept"], "concept" in second.row) == ("tea", False)


def test_without_a_baseline_its_list_is_empty(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path)
    applier.apply_vectors(VECTORS)
    (record,) = applier.generate({"kind": INPUTS[:1]}, save_results=False)["kind"]
    assert record["orig_pred"] == []


SAMPLED = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.0, "top_k": 0}


@pytest.mark.slow
def test_sampled_responses_differ_and_come_back_in_the_next_run(
    model: SteeredModel, tmp_path: Path
):
    runs = []
    for seed in (1, 1, 2):
        top = {"num_responses": 3, "seed": seed, "generation_params": SAMPLED}
        applier = caa(model, tmp_path, generate_orig_output=True, **top)
        applier.apply_vectors(VECTORS)
        runs.append(applier.generate({"kind": INPUTS}, save_results=False)["kind"])
    for record in runs[0]:
        assert len(record["pred"]) == len(record["complete_output"]) == 3
        assert len(set(record["pred"])) > 1
        assert len(record["orig_pred"]) == 1
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_greedy_responses_are_all_there_and_alike(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path, num_responses=3)
    applier.apply_vectors(VECTORS)
    for record in applier.generate({"kind": INPUTS}, save_results=False)["kind"]:
        assert len(record["pred"]) == 3
        assert len(set(record["pred"])) == 1


@pytest.mark.parametrize("size, answered", [(1, 1), (2, 2), (9, 2), (None, 2), (0, 2), (-1, 2)])
def test_only_so_many_rows_are_answered(
    model: SteeredModel, tmp_path: Path, size: int | None, answered: int
):
    applier = caa(model, tmp_path, generation_data_size=size)
    applier.apply_vectors(VECTORS)
    records = applier.generate({"kind": INPUTS}, save_results=False)["kind"]
    assert [r["input"] for r in records] == [r["input"] for r in INPUTS[:answered]]


def test_parameters_of_the_call_go_over_those_of_the_config(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path)
    short = applier.generate({"kind": INPUTS}, save_results=False, max_new_tokens=1)["kind"]
    long = applier.generate({"kind": INPUTS}, save_results=False)["kind"]
    for one, other in zip(short, long, strict=True):
        assert len(one["complete_output"][0]) < len(other["complete_output"][0])


def test_what_cannot_be_answered_is_named(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path)
    with pytest.raises(ValueError, match="data set 'kind' has no rows to answer"):
        applier.generate({"kind": []})
    with pytest.raises(ValueError, match="data set 'kind': row 2: 'input' is empty"):
        applier.generate({"kind": [INPUTS[0], {"input": " "}]})
    nowhere = BaseVectorApplier({}, model)
    with pytest.raises(ValueError, match="no place for results: give generation_output_dir"):
        nowhere.generate({"kind": INPUTS})


# ---- a run that does not steer ------------------------------------------------------------------


def test_a_strength_that_changes_nothing_ends_the_run(model: SteeredModel, tmp_path: Path):
    applier = caa(model, tmp_path)
    applier.hparams_dict["caa"].multipliers = [1e-12, 1.0]
    applier.apply_vectors(VECTORS)
    with pytest.raises(RuntimeError, match=r"layer 0 was .* fired \d+ times and changed 0 tokens"):
        applier.generate({"kind": INPUTS}, save_results=False)


def test_a_hook_that_never_fired_ends_the_run():
    steps = [EditLayer(1, Add(torch.ones(4)))]
    with pytest.raises(RuntimeError, match="layer 1 was to be steered, but its hook fired 0 times"):
        basic_report({}, steps)


def test_additions_that_cancel_give_the_unsteered_answer_and_a_warning(
    model: SteeredModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    applier = applier_of(["caa", "merge_vector"], model, tmp_path, generate_orig_output=True)
    half = {f"{name}_merged_vector": v / 2 for name, v in VECTORS["caa"].items()}
    applier.hparams_dict["caa"].multipliers = [-1.0, -1.0]
    applier.hparams_dict["merge_vector"].multipliers = [2.0, 2.0]
    applier.apply_vectors({"caa": VECTORS["caa"], "merge_vector": half})
    for record in applier.generate({"kind": INPUTS}, save_results=False)["kind"]:
        assert record["pred"] == record["orig_pred"]
    assert "layer 0: what is added sums to nothing" in caplog.text
    assert "layer 2: what is added sums to nothing" in caplog.text


ONES = torch.ones(4)
BRAIN = torch.full((4,), 0.3, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "edits, cancel",
    [
        ([Add(ONES, 2.0)], False),
        ([Add(ONES, 2.0), Add(ONES, -2.0)], True),
        ([Add(ONES, 2.0), Add(ONES, -1.5)], False),
        ([Add(ONES, 0.1), Add(ONES, 0.2), Add(ONES, -0.3)], True),
        ([Add(BRAIN, 1.0), Add(ONES, -0.3)], True),
        ([Add(BRAIN.float(), 1.0), Add(ONES, -0.3)], False),
        ([Add(ONES.repeat(3, 1), torch.tensor([1.0, 2.0, 3.0])), Add(ONES, -2.0)], False),
        ([Add(ONES.repeat(3, 1), torch.tensor([2.0, 2.0, 2.0])), Add(ONES, -2.0)], True),
    ],
)
def test_additions_cancel_where_nothing_but_rounding_is_left(edits: list[Add], cancel: bool):
    assert cancels([EditLayer(1, edit) for edit in edits]) is cancel


def test_additions_at_different_tokens_do_not_cancel():
    edits = [EditLayer(1, Add(ONES), PROMPT), EditLayer(1, Add(-ONES), GENERATED)]
    assert not cancels(edits)


def test_a_layer_that_cancels_is_refused_all_the_same_where_its_hook_never_fired():
    steps = [EditLayer(1, Add(ONES)), EditLayer(1, Add(-ONES))]
    with pytest.raises(RuntimeError, match="fired 0 times"):
        basic_report({}, steps)


def test_a_layer_that_cancels_may_leave_every_token_as_it_is():
    model = steered(tiny_config("llama"))
    # Too small for float32 to see beside a hidden state, each of them and both.
    steps = [EditLayer(1, Add(torch.full((16,), sign * 1e-20))) for sign in (1, -1)]
    tally: Tally = {}
    with torch.inference_mode(), model.steering(steps, tally=tally):
        model.model(torch.tensor([[1, 2, 3]]))
    assert basic_report(tally, steps).layers[1]["tokens_changed"] == 0
    with pytest.raises(RuntimeError, match="fired 1 times and changed 0 tokens"):
        basic_report(tally, steps[:1])


@pytest.mark.slow
def test_a_run_killed_behind_its_last_answer_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = steered(tiny_config("llama"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def answers(resume: bool) -> Any:
        applier = caa(model, tmp_path, resume=resume)
        applier.apply_vectors(VECTORS)
        return applier.generate({"kind": INPUTS}), applier.reports["kind"]

    wanted, _ = answers(resume=False)
    with monkeypatch.context() as patched:
        patched.setattr("steer.applier.save_results", killed)
        with pytest.raises(KeyboardInterrupt):
            answers(resume=False)
    found, report = answers(resume=True)
    assert found == wanted
    assert report.why_not["layers"] == "2 answers of the killed run are not counted"
