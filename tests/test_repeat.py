"""A run is made again from what is kept beside its results."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import slow_but
from desk import Desk, pair

from steer import BaseVectorApplier, BaseVectorGenerator, prepare_generation_datasets
from steer.recording import origin_of
from steer.repeat import main, write_config
from steer.settings import Run
from steer.vectors import Vectors, read_metadata


def kept(desk: Desk) -> dict[str, Any]:
    return json.loads((desk.out / "answers/mine_run.json").read_text())


def repeated(desk: Desk, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["out/answers", *arguments])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_a_run_says_by_what_it_was_made(desk: Desk):
    desk.run("steering.py", seed=7)
    made = kept(desk)["made_by"]
    assert made["command"][0] == "steering.py"
    assert "seed=7" in made["command"]
    assert made["config"]["seed"] == 7
    assert made["method_files"]["hparams/Steer/caa_hparams/generate_caa.yaml"]["alg_name"] == "caa"
    assert made["versions"].keys() >= {"python", "steer", "torch", "transformers", "git"}
    assert made["machine"]["device"] == "cpu"
    # What it learnt and answered with, to the bit.
    assert len(kept(desk)["run"]["steering"][0]["edit"]["vector"]["sha256"]) == 64
    assert len(kept(desk)["run"]["data"]["sha256"]) == 64
    entry = (read_metadata(desk.out / "vectors/mine/caa_vector") or {})["vectors"]["layer_1"]
    assert made["learnt_from"] == [entry["data"]]
    assert (entry["data"]["name"], entry["data"]["rows"]) == ("mine", 6)


@pytest.mark.parametrize("sampled", slow_but(["true"], ["false", "true"]))
def test_steering_gives_the_same_vectors_and_answers(
    desk: Desk, capsys: pytest.CaptureFixture[str], sampled: str
):
    desk.run("steering.py", generation_params__do_sample=sampled, generate_orig_output="true")
    assert desk.status == 0, desk.said
    status, said = repeated(desk, capsys)
    assert (status, "mine_run.json: all 4 answers are the same again" in said) == (0, True), said
    assert "What is not as it was" not in said
    again = desk.out / "answers_repeated"
    assert json.loads((again / "mine_results.json").read_text()) == desk.answers()
    vector = Path("mine/caa_vector/layer_1.pt")
    assert (again / "vectors/0" / vector).read_bytes() == (
        desk.out / "vectors" / vector
    ).read_bytes()


@pytest.mark.slow
def test_what_is_written_is_a_config_that_the_script_takes(
    desk: Desk, capsys: pytest.CaptureFixture[str]
):
    desk.run("steering.py")
    wanted = desk.answers()
    repeated(desk, capsys, "--output", "again")
    Path("again/mine_results.json").unlink()
    desk.bare("steering.py", "--config", "again/config.yaml")
    assert desk.status == 0, desk.said
    assert json.loads(Path("again/mine_results.json").read_text()) == wanted


@pytest.mark.slow
def test_method_files_that_have_changed_since_do_not_matter(
    desk: Desk, capsys: pytest.CaptureFixture[str]
):
    file = desk.write("mine.yaml", "alg_name: caa\nlayers: [1]\nmultipliers: [2]\n")
    desk.run("vectors_generate.py")
    given = [one for one in desk.overrides() if not one.startswith(("layers", "multipliers"))]
    desk.bare("vectors_apply.py", "apply_steer_hparam_paths=mine.yaml", *given)
    assert desk.status == 0, desk.said
    file.write_text("alg_name: caa\nlayers: [1]\nmultipliers: [-9]\n")
    assert repeated(desk, capsys)[0] == 0


@pytest.mark.slow
def test_what_differs_is_named(desk: Desk, capsys: pytest.CaptureFixture[str]):
    desk.run("vectors_generate.py")
    desk.run("vectors_apply.py")
    desk.rows("train.jsonl", [pair(n) for n in range(20, 24)])
    desk.run("vectors_generate.py")
    desk.rows("test.jsonl", [{"input": f"Say more of {n}."} for n in range(4)])
    status, said = repeated(desk, capsys)
    assert status == 1
    assert "steering 0: edit: vector: sha256" in said
    assert "data: sha256" in said
    assert "0 of 4 answers are the same again" in said
    assert "others: rows 0, 1, 2, 3" in said


def test_what_cannot_be_repeated_says_why(desk: Desk, capsys: pytest.CaptureFixture[str]):
    status, said = repeated(desk, capsys)
    # No run, and no folder for one.
    assert (status, "out/answers" in said) == (2, True)
    desk.run("vectors_generate.py")
    config = {
        "model_name_or_path": str(desk.model),
        "generation_output_dir": "out/answers",
        "generation_params": {"max_new_tokens": 2},
        "device": "cpu",
    }
    BaseVectorApplier(config).generate({"mine": ["Hello."]})
    status, said = repeated(desk, capsys)
    assert (status, "its data were given in Python" in said) == (2, True)
    old = kept(desk)
    del old["made_by"]
    desk.write("out/answers/mine_run.json", json.dumps(old))
    assert "of a version that did not keep" in repeated(desk, capsys)[1]


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("ours", ""),
        ("ours", "steer_train_dataset"),
        ("ours", "methods"),
        pytest.param("mine", "", marks=pytest.mark.slow),
    ],
)
def test_vectors_of_rows_given_in_python_are_not_repeated_with_the_configs_data(
    desk: Desk, capsys: pytest.CaptureFixture[str], name: str, lacking: str
):
    config = {
        "model_name_or_path": str(desk.model),
        "device": "cpu",
        "methods": ["caa"],
        "layers": [1],
        "multipliers": [2],
        "steer_train_dataset": ["mine"],
        "steer_vector_output_dirs": ["out/vectors"],
        "generation_data": ["mine"],
        "generation_output_dir": "out/answers",
        "generation_params": {"max_new_tokens": 2},
    }
    generator = BaseVectorGenerator(config)
    generator.generate_vectors({name: [pair(n) for n in range(20, 24)]})
    config.pop(lacking, None)
    if lacking == "methods":
        config["apply_steer_hparam_paths"] = ["hparams/Steer/caa_hparams/apply_caa.yaml"]
    applier = BaseVectorApplier(config, generator.model)
    applier.apply_vectors(generator.vectors(name))
    applier.generate(prepare_generation_datasets(config))
    status, said = repeated(desk, capsys)
    refused = f"its vectors have learnt from 4 rows '{name}' that are not what the config names"
    assert (status, refused in said) == (2, True), said


def test_what_a_merged_vector_was_made_of_is_not_what_the_run_has_learnt_from():
    data, other = {"name": "mine", "sha256": "1"}, {"name": "theirs", "sha256": "2"}
    given = {
        "caa": Vectors(about={"layer_1": {"data": data}, "layer_2": {"data": data}}),
        "merge_vector": Vectors(about={"layer_1": {"data": other, "inputs": ["a/b"]}}),
        "sae_feature": Vectors(about={"layer_1": {}}),
        "mine": {},
    }
    assert origin_of(given) == {"vectors": "this run", "learnt_from": [data]}
    assert origin_of(None) == {"vectors": "folders"}


def test_files_that_change_while_a_run_goes_on_are_kept_as_it_read_them(desk: Desk):
    method = desk.write("mine.yaml", "alg_name: caa\nlayers: [1]\nmultipliers: [2]\n")
    config = desk.write(
        "config.yaml",
        f"model_name_or_path: {desk.model}\ndevice: cpu\ngeneration_output_dir: out/answers\n"
        "apply_steer_hparam_paths: mine.yaml\ngeneration_params: {max_new_tokens: 2}\n",
    )
    applier = BaseVectorApplier("config.yaml")
    method.unlink()
    config.write_text("seed: 9\n")
    applier.generate({"mine": ["Hello."]})
    made = kept(desk)["made_by"]
    assert made["config"]["apply_steer_hparam_paths"] == "mine.yaml"
    assert made["method_files"]["mine.yaml"]["multipliers"] == [2]


def test_a_run_is_not_written_over(desk: Desk, capsys: pytest.CaptureFixture[str]):
    desk.write("out/answers/mine_run.json", "{}")
    for own in ("out/answers", "out/../out/answers"):
        status, said = repeated(desk, capsys, "--output", own)
        assert (status, "is the folder of the run: its answers would be lost" in said) == (2, True)


@pytest.mark.parametrize("named", [["caa"], "caa"], ids=str)
def test_kept_method_files_are_those_of_the_run_and_old_vectors_are_left(
    tmp_path: Path, named: str | list[str]
):
    path = "hparams/Steer/caa_hparams/caa.yaml"
    halves = {"generate": {"steer_vector_output_dir": "precious"}, "apply": {"multipliers": [9]}}
    kept = {path: {"alg_name": "caa", "layers": [7]} | halves}
    for given in (
        {"methods": named},
        {"steer_train_hparam_paths": path, "apply_steer_hparam_paths": [path]},
    ):
        config = write_config({"config": given, "method_files": kept}, tmp_path)
        made = Run.of(config, "generate").methods["caa"]
        assert (made.half.layers, made.output_dir) == ([7], str(tmp_path / "vectors/0"))
        assert Run.of(config, "apply").methods["caa"].half.multipliers == [9]
