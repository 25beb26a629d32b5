"""Merging: numbers by hand and of the reference, statistics of DARE, and the method around it."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_methods import ROWS, method_file
from tiny import steered, tiny_config
from torch import Tensor, tensor

from steer import BaseVectorApplier, BaseVectorGenerator
from steer.methods import Context
from steer.methods.merge_vector import MakeMergedVectors
from steer.vectors import Vectors, read_metadata, save_vectors
from steer.vectors.merging import (
    cosines,
    draw_masks,
    keep_largest,
    merge,
    of_equal_l1_norm,
    sign_conflict,
)

ROOT = Path(__file__).resolve().parent.parent
PARITY = Path(os.environ.get("STEER_PARITY") or ROOT.parent / "shared" / "parity" / "open")
CASE = PARITY / "07_merge_vector"

X1, X2 = tensor([1.0, 2, -3, 4]), tensor([1.0, -5, -3, 0])


# ---- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, options, wanted",
    [
        ("linear", {"weights": [1, 1]}, [1, -1.5, -3, 2]),
        ("linear", {"weights": [1, 1], "normalize": False}, [2, -3, -6, 4]),
        ("linear", {}, [1, -1.5, -3, 2]),
        ("ties", {"densities": [0.5, 0.5]}, [0, -5, -3, 4]),
        ("ties", {"densities": [0.5, 0.5], "normalize": False}, [0, -5, -6, 4]),
        ("ties", {"weights": [2, 1], "densities": [1, 1]}, [1, -5, -3, 4]),
    ],
)
def test_the_references_numbers(method: str, options: dict[str, Any], wanted: list[float]):
    assert merge([X1, X2], method, **options).tolist() == wanted


@pytest.mark.parametrize(
    "method, options, wanted",
    [
        # Weights that sum to 0 have no mean: their difference is given.
        ("linear", {"weights": [1, -1]}, [0, 7, 0, 4]),
        # 2 - 5 elects minus, and leaves -5 of the weight 1; 3 * 1 + 1 = 4 over 3 + 1.
        ("ties", {"weights": [3, 1]}, [1, 2, -3, 4]),
        ("dare_linear", {"densities": [1, 1]}, [1, -1.5, -3, 2]),
        ("dare_ties", {"densities": [1, 1]}, [1, -5, -3, 4]),
        # By hand with masks 1010 and 0110: kept [1, 0, -3, 0] and [0, -5, -3, 0], doubled.
        ("dare_linear", {"densities": [0.5, 0.5], "normalize": False}, [2, -10, -12, 0]),
        ("dare_linear", {"densities": [0.5, 0.5]}, [1, -5, -6, 0]),
        ("dare_ties", {"densities": [0.5, 0.5]}, [2, -10, -6, 0]),
        # To L1 norms 10 and 9: times 2.5 and 1.125.
        (
            "dare_linear",
            {"densities": [0.5, 0.5], "normalize": False, "rescale": "l1"},
            [2.5, -5.625, -10.875, 0],
        ),
    ],
)
def test_numbers_by_hand(method: str, options: dict[str, Any], wanted: list[float]):
    masks = [tensor([1.0, 0, 1, 0]), tensor([0.0, 1, 1, 0])]
    assert merge([X1, X2], method, masks=masks, **options).tolist() == wanted


def test_sparsified_vectors_by_hand():
    assert keep_largest(tensor([1.0, -4, 2, 3]), 0.5).tolist() == [0, -4, 0, 3]
    assert of_equal_l1_norm(X1, tensor([1.0, 0, 1, 0]), 0.5).tolist() == [2.5, 0, -7.5, 0]
    assert of_equal_l1_norm(X1, torch.zeros(4), 0.5).tolist() == [0, 0, 0, 0]


def test_what_vectors_have_in_common_by_hand():
    assert cosines([tensor([3.0, 4]), tensor([4.0, 3]), tensor([0.0, 0])]) == [
        pytest.approx([1, 0.96, 0]),
        pytest.approx([0.96, 1, 0]),
        [0, 0, 0],
    ]
    # Of four entries the second alone is positive in one and negative in the other.
    assert sign_conflict([X1, X2]) == 0.25


def golden_merges() -> list[str]:
    if not CASE.is_dir():
        return []
    return list(json.loads((CASE / "case.json").read_text(encoding="utf-8"))["runs"])


@pytest.mark.skipif(not CASE.is_dir(), reason=f"no parity numbers at {CASE}")
@pytest.mark.parametrize("name", golden_merges())
def test_merges_are_the_references(name: str, tmp_path: Path):
    run = json.loads((CASE / "case.json").read_text(encoding="utf-8"))["runs"][name]
    tensors, inputs = load_file(CASE / "golden.safetensors"), load_file(CASE / "inputs.safetensors")
    values = dict(run["method_file"])
    golden = tensors[f"{name}/layer_15_merged_vector"]
    for number in range(3):
        place = tmp_path / values["vector_paths"][number]
        place.parent.mkdir(parents=True)
        torch.save(inputs[f"vector_{number}"], place)
    values["vector_paths"] = [str(tmp_path / path) for path in values["vector_paths"]]
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump({**values, "rescale": "l1"}), encoding="utf-8")
    config = {**run["top_config"], "steer_train_hparam_paths": str(path)}
    config["steer_vector_output_dirs"] = str(tmp_path / "out")
    made = BaseVectorGenerator(config).generate_vectors()["data"]["merge_vector"]
    # With the run's seed DARE's masks are the reference's too.
    assert_near(made["layer_15_merged_vector"], golden)
    assert (tmp_path / "out/data/merge_vector/layer_15_merged_vector.pt").is_file()

    masks = [tensors.get(f"{name}/mask_{n}", torch.ones_like(golden)) for n in range(3)]
    options = {k: v for k, v in values.items() if k in ("weights", "densities", "normalize")}
    vectors = [inputs[f"vector_{n}"] for n in range(3)]
    found = merge(vectors, values["method"], masks=masks, rescale="l1", **options)
    assert_near(found, golden)


def assert_near(found: Tensor, golden: Tensor) -> None:
    assert (found - golden).norm() <= 1e-6 * golden.norm()


# ---- DARE's statistics --------------------------------------------------------------------------


def test_random_entries_are_kept_at_the_rate_of_their_density():
    vectors = [torch.ones(100_000)] * 2
    rates = [float(mask.mean()) for mask in draw_masks(vectors, [0.3, 0.9], seed=1)]
    # Four standard deviations.
    assert rates == pytest.approx([0.3, 0.9], abs=4 * (0.25 / 100_000) ** 0.5)


def mean_of_merges(method: str, vectors: list[Tensor], density: float, **options: Any) -> Tensor:
    merges = [
        merge(vectors, method, densities=[density] * len(vectors), seed=seed, **options)
        for seed in range(4000)
    ]
    return torch.stack(merges).mean(0)


@pytest.mark.slow
def test_what_is_left_is_on_average_what_there_was():
    wanted = merge([X1, X2], "linear", weights=[2, 1])
    found = mean_of_merges("dare_linear", [X1, X2], 0.5, weights=[2, 1])
    assert (found - wanted).norm() < 0.03 * wanted.norm()
    # The reference's rule keeps the length in each merge, and so not on average.
    by_l1 = mean_of_merges("dare_linear", [X1, X2], 0.5, weights=[2, 1], rescale="l1")
    assert (by_l1 - wanted).norm() > 0.1 * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.5, 0.8])
def test_the_mean_of_dare_ties_is_too_long_by_what_is_documented(density: float):
    mean = mean_of_merges("dare_ties", [X1, X1], density)
    assert (mean / X1).tolist() == pytest.approx([2 - density] * 4, rel=0.05)
    summed = mean_of_merges("dare_ties", [X1, X1], density, normalize=False)
    assert (summed / X1).tolist() == pytest.approx([2.0] * 4, rel=0.05)


def test_a_seed_gives_the_same_merge_whatever_else_is_random():
    one, other = (torch.randn(500, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    merges = []
    for seed in (3, 3, 4):
        torch.rand(5)
        merges.append(merge([one, other], "dare_ties", densities=[0.5, 0.5], seed=seed))
    assert torch.equal(merges[0], merges[1])
    assert not torch.equal(merges[0], merges[2])
    before = torch.get_rng_state()
    merge([one, other], "dare_linear", densities=[0.5, 0.5])
    assert torch.equal(torch.get_rng_state(), before)


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "tie"}, "unknown method 'tie'; did you mean 'ties'"),
        ({"rescale": "densty"}, "unknown rescale 'densty'; did you mean 'density'"),
        ({"weights": [1]}, r"weights go with the vectors one by one: got 1 weights \[1\] for 2"),
        ({"densities": [1, 1, 1]}, "densities go with the vectors one by one: got 3 densities"),
        (
            {"densities": [0.1, 1]},
            "densities: 0.1 of 4 entries is none of them: give at least 0.25",
        ),
        ({"densities": [0, 1]}, "densities must be above 0 and at most 1"),
        ({"densities": [0.5, 1.5]}, "densities must be above 0 and at most 1"),
        ({"weights": [1, float("nan")]}, "weights must be finite numbers"),
        ({"method": "linear", "densities": [0.5, 1]}, "densities have no say in method: linear"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        merge([X1, X2], **options)


def test_vectors_that_do_not_go_together_are_refused():
    with pytest.raises(
        ValueError, match=r"different shapes cannot be merged: got \[\[4\], \[3\]\]"
    ):
        merge([X1, torch.ones(3)])
    with pytest.raises(ValueError, match=r"vectors \[2\] .* hold NaN or infinity"):
        merge([X1, X2 / 0])
    with pytest.raises(ValueError, match="no vectors to merge"):
        merge([])


# ---- the method ---------------------------------------------------------------------------------

MODEL = {"id": "a", "num_layers": 30, "hidden_size": 4, "dtype": "float32", "fingerprint": "1"}
OTHER = {**MODEL, "id": "b", "fingerprint": "2"}


def about(layer: int, **more: Any) -> dict[str, Any]:
    return {"layer": layer, "model": MODEL, "residual_norm": 10.0, **more}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders: one with layers 1 and 2, one with 2 and 3."""
    data = [{"name": name} for name in ("mood", "manners")]
    places = tmp_path / "mood" / "caa_vector", tmp_path / "manners" / "caa_vector"
    for place, layers, vector, of, norm in zip(
        places, ((1, 2), (2, 3)), (X1, X2), data, (10.0, 30.0), strict=True
    ):
        names = {f"layer_{layer}": vector for layer in layers}
        entries = {f"layer_{n}": about(n, data=of, residual_norm=norm) for n in layers}
        save_vectors(place, names, entries)
    return places


def made(*paths: object, context: Context | None = None, **options: Any) -> Vectors:
    half = MakeMergedVectors(vector_paths=[str(path) for path in paths], **options)
    return half.make(context or Context()).vectors


def test_files_and_folders_are_merged_layer_by_layer(folders: tuple[Path, Path]):
    one, other = folders
    for paths, layers in (
        ((one, other), None),
        ((one, other), [2]),
        ((one / "layer_2.pt", other / "layer_2.pt"), None),
        ((one / "layer_2.pt", other), [2]),
    ):
        vectors = made(*paths, layers=layers, method="linear")
        assert {name: v.tolist() for name, v in vectors.items()} == {
            "layer_2_merged_vector": [1, -1.5, -3, 2]
        }


def test_what_the_inputs_agree_on_holds_for_the_merged_vector(folders: tuple[Path, Path]):
    known = made(*folders).about["layer_2_merged_vector"]
    assert known == {
        "layer": 2,
        "inputs": ["mood/caa_vector/layer_2", "manners/caa_vector/layer_2"],
        "model": MODEL,
        "residual_norm": 20.0,
    }
    alike = made(folders[0], folders[0], layers=[1]).about["layer_1_merged_vector"]
    assert alike["data"] == {"name": "mood"}


def test_the_report_says_what_was_merged(folders: tuple[Path, Path]):
    half = MakeMergedVectors(vector_paths=list(map(str, folders)), weights=[2.0, 1.0])
    report = half.make().report["layer_2_merged_vector"]
    assert report["signs_in_conflict"] == 0.25
    # 1 - 10 + 9 over the root of 30 * 35.
    assert report["cosines"][0][1] == pytest.approx(0.0, abs=1e-12)
    assert [v["norm"] for v in report["vectors"]] == pytest.approx([30**0.5, 35**0.5])
    assert [v["weight"] for v in report["vectors"]] == [2, 1]
    assert report["norm_merged"] == pytest.approx((1 + 25 + 9 + 16) ** 0.5)
    json.dumps(report)


def test_vectors_of_other_models_or_layers_are_merged_only_where_asked_for(
    folders: tuple[Path, Path], tmp_path: Path
):
    save_vectors(tmp_path / "b", {"layer_2": X2}, {"layer_2": about(2, model=OTHER)})
    with pytest.raises(
        ValueError, match=r"b/layer_2 does not go with .* made with b, the model is a"
    ):
        made(folders[0], tmp_path / "b")
    mixed = made(folders[0], tmp_path / "b", allow_mismatch=True)
    assert "model" not in mixed.about["layer_2_merged_vector"]
    files = folders[0] / "layer_1.pt", folders[1] / "layer_3.pt"
    with pytest.raises(ValueError, match="it is for layer 3, mood/caa_vector/layer_1 for layer 1"):
        made(*files)
    assert list(made(*files, allow_mismatch=True)) == ["layer_1_merged_vector"]


def test_names_of_easyedit2_are_kept_but_where_the_applier_would_not_find_them(tmp_path: Path):
    for name in ("happy.v2", "layer_3_act_and_freq_trim0.65"):
        torch.save(X1, tmp_path / f"{name}.pt")
    assert list(made(tmp_path / "happy.v2.pt")) == ["happy_merged_vector"]
    sta = tmp_path / "layer_3_act_and_freq_trim0.65.pt"
    assert list(made(sta)) == ["layer_3_merged_vector"]


def test_what_is_not_there_is_named(folders: tuple[Path, Path], tmp_path: Path):
    one, other = folders
    with pytest.raises(FileNotFoundError, match=r"no vector at caa_3 .*in this run: mood/caa"):
        made("caa_3", context=Context(made={"mood": {"caa": Vectors()}}))
    with pytest.raises(FileNotFoundError, match=r"no layer_9\.pt|no vector at .*layer_9"):
        made(one / "layer_9.pt")
    with pytest.raises(ValueError, match="mood/caa_vector has 0 vectors of layer 3"):
        made(one, other, layers=[3])
    with pytest.raises(ValueError, match="no layer in common"):
        made(one, other / "layer_3.pt")
    torch.save(torch.ones(3), tmp_path / "layer_1.pt")
    with pytest.raises(ValueError, match=re.escape("caa_vector/layer_1 [4]")):
        made(one, tmp_path / "layer_1.pt", layers=[1])
    torch.save(X1 / 0, tmp_path / "layer_1.pt")
    with pytest.raises(ValueError, match="NaN or infinity"):
        made(one, tmp_path / "layer_1.pt", layers=[1])
    with pytest.raises(ValueError, match="vector_paths is empty"):
        MakeMergedVectors(vector_paths=[])
    with pytest.raises(ValueError, match="layers must differ, and be one or more"):
        MakeMergedVectors(vector_paths=["a"], layers=[])


def test_a_mean_that_may_point_the_other_way_is_warned_of(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
):
    turned = made(*folders, method="linear", weights=[1, -2])["layer_2_merged_vector"]
    assert torch.equal(turned, -(X1 - 2 * X2))
    assert "weights [1, -2]: divided by their sum" in caplog.text
    caplog.clear()
    made(*folders, method="linear", weights=[1, -2], normalize=False)
    assert caplog.text == ""


def test_vectors_made_in_the_run_go_by_their_keys():
    of = {
        "mood": {"caa": Vectors({"layer_1": X1}), "caa_2": Vectors({"layer_1": X2})},
        "manners": {"caa": Vectors({"layer_1": 10 * X2}), "sta": Vectors({"layer_1": X2})},
    }
    here = Context(dataset="mood", made=of)

    def merged(*names: str, context: Context = here) -> list[float]:
        return made(*names, context=context, method="linear")["layer_1_merged_vector"].tolist()

    assert merged("caa", "caa_2") == [1, -1.5, -3, 2]
    assert merged("mood/caa", "sta") == [1, -1.5, -3, 2]
    assert merged("caa", "manners/caa") == ((X1 + 10 * X2) / 2).tolist()
    with pytest.raises(ValueError, match="'caa' may be any of mood/caa, manners/caa"):
        merged("caa", context=Context(dataset="third", made=of))


def test_a_run_that_makes_and_merges_steers_by_what_it_merged(tmp_path: Path):
    model = steered(tiny_config("llama"))
    caa = method_file(tmp_path, "caa", "generate")
    paths = ["one/caa", "two/caa"]
    merging = method_file(tmp_path, "merge_vector", "generate", vector_paths=paths, desities=[1, 1])
    config = {
        "steer_train_hparam_paths": [merging, caa],
        "steer_vector_output_dirs": str(tmp_path / "out"),
        "apply_steer_hparam_paths": [
            method_file(tmp_path, "merge_vector", "apply", strength="relative")
        ],
        "steer_vector_load_dir": str(tmp_path / "out/one/merge_vector"),
    }
    generator = BaseVectorGenerator(config, model)
    data = {"one": ROWS, "two": [{**row, "matching": "Grr!"} for row in ROWS]}
    by_data_set = generator.generate_vectors(data)
    vectors = by_data_set["one"]["merge_vector"]
    parts = [by_data_set[name]["caa"]["layer_2"] for name in data]
    torch.testing.assert_close(vectors["layer_2_merged_vector"], merge(parts, "ties"))
    entry = (read_metadata(tmp_path / "out/one/merge_vector") or {})["vectors"]
    known = entry["layer_2_merged_vector"]
    assert known["inputs"] == ["one/caa/layer_2", "two/caa/layer_2"]
    assert known["model"]["id"] == vectors.about["layer_2_merged_vector"]["model"]["id"]
    assert generator.folds("one")["merge_vector"] == []

    applier = BaseVectorApplier(config, model)
    steps = []
    for given in (by_data_set["one"], None):
        applier.apply_vectors(given)
        steps.append([s.edit.change() for s in applier.model.interventions()])  # type: ignore[union-attr]
    assert all(torch.equal(*pair) for pair in zip(*steps, strict=True))
    assert steps[0][0].norm() == pytest.approx(3.0 * known_norm(by_data_set, data), rel=1e-5)


def test_what_sta_keeps_beside_its_own_vectors_is_not_merged(tmp_path: Path):
    model = steered(tiny_config("llama"))
    files = [method_file(tmp_path, name, "generate") for name in ("caa", "sta")]
    merging = {"vector_paths": ["caa", "sta"], "layers": [0]}
    files.append(method_file(tmp_path, "merge_vector", "generate", **merging))
    config = {"steer_train_hparam_paths": files, "save_vectors": False}
    found = BaseVectorGenerator(config, model).generate_vectors({"one": ROWS})["one"]
    parts = [found["caa"]["layer_0"], found["sta"]["layer_0_act_and_freq_trim0.5"]]
    assert not torch.equal(*parts)
    torch.testing.assert_close(
        found["merge_vector"], {"layer_0_merged_vector": merge(parts, "ties")}
    )


def known_norm(made: Any, names: Any) -> float:
    """The mean of the usual residual norms at layer 0."""
    norms = [made[name]["caa"].about["layer_0"]["residual_norm"] for name in names]
    return sum(norms) / len(norms)


def test_merging_needs_neither_data_set_nor_model(folders: tuple[Path, Path], tmp_path: Path):
    paths = [str(folder) for folder in folders]
    file = method_file(tmp_path, "merge_vector", "generate", vector_paths=paths, layers=[2])
    config = {
        "model_name_or_path": "nowhere/no-such-model",
        "steer_train_hparam_paths": file,
        "steer_vector_output_dirs": str(tmp_path / "out"),
    }
    made = BaseVectorGenerator(config).generate_vectors()
    assert list(made["no_data"]["merge_vector"]) == ["layer_2_merged_vector"]
    place = tmp_path / "out/no_data/merge_vector"
    assert (place / "layer_2_merged_vector.pt").is_file()
    report = json.loads((place / "training.json").read_text(encoding="utf-8"))
    assert report["layer_2_merged_vector"]["method"] == "ties"
    # No place of this machine is written down.
    assert str(tmp_path) not in (place / "metadata.json").read_text(encoding="utf-8")
