"""Which value holds where a key is given more than once, and where each value came from."""

import logging
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import steer
from steer.method_files import METHOD_ALIASES, field_names
from steer.methods import METHODS_CLASS_DICT
from steer.settings import Run

ROOT = Path(__file__).parents[1]
HPARAMS = "hparams/Steer"
CAA = f"{HPARAMS}/caa_hparams"

FLAT = "alg_name: caa\nlayers: [1]\nmultipliers: [5.0]\n"
MERGED = """\
alg_name: caa
layers: [1]
seed: 1
generate: {layers: [2]}
apply: {multipliers: [5.0]}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a file into an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    return write


@pytest.fixture
def explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, tuple[str, str]]]:
    """Runs a script with --explain-config: key -> (value, where it came from)."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(logging.root, "handlers", [])

    def explain(script: str, *arguments: str) -> dict[str, tuple[str, str]]:
        monkeypatch.setattr("sys.argv", [script, "--explain-config", *arguments])
        runpy.run_path(str(ROOT / script), run_name="__main__")
        lines = [line.split("│") for line in capsys.readouterr().out.splitlines()]
        rows = [[cell.strip() for cell in line[1:4]] for line in lines if len(line) == 5]
        return {key: (value, origin) for key, value, origin in rows}

    return explain


def applied(*files: str, **top: Any) -> Run:
    return Run.of({"apply_steer_hparam_paths": list(files), **top}, "apply")


def generated(*files: str, **top: Any) -> Run:
    return Run.of({"steer_train_hparam_paths": list(files), **top}, "generate")


def test_other_spellings_are_of_keys_that_there_are():
    halves = [half for row in METHODS_CLASS_DICT.values() for half in row.values()]
    known = set().union(*map(field_names, halves))  # type: ignore[arg-type]
    assert set(METHOD_ALIASES.values()) <= known


# ---- precedence --------------------------------------------------------------------------------


def test_the_default_holds_where_nobody_says_anything(write):
    run = applied(write("a.yaml", "alg_name: caa\nlayers: [1]\n"))
    assert run.methods["caa"].half.multipliers == [1.0]
    assert run.settings.seed == 42
    assert run.origin["caa.multipliers"] == run.origin["seed"] == "default"


def test_a_flat_file_beats_the_default(write):
    run = applied(write("a.yaml", FLAT))
    assert run.methods["caa"].half.multipliers == [5.0]
    assert run.origin["caa.multipliers"] == "a.yaml"


def test_the_shared_part_of_a_merged_file_serves_both_phases(write):
    path = write("a.yaml", MERGED.replace("generate: {layers: [2]}\n", "generate:\n"))
    assert generated(path).methods["caa"].half.layers == [1]
    assert applied(path).methods["caa"].half.layers == [1]


def test_the_section_of_the_phase_beats_the_shared_part(write):
    path = write("a.yaml", MERGED)
    assert generated(path).methods["caa"].half.layers == [2]
    assert applied(path).methods["caa"].half.layers == [1]


@pytest.mark.parametrize("text", [FLAT, MERGED])
def test_the_top_level_beats_every_method_file(write, text: str):
    run = applied(write("a.yaml", text), layers=[0], multipliers=[7])
    assert (run.methods["caa"].half.layers, run.methods["caa"].half.multipliers) == ([0], [7.0])
    assert run.origin["caa.layers"] == "config"


@pytest.mark.parametrize("given, said", [(1, True), (8, False), ("auto", False)])
def test_rows_in_a_pass_are_not_the_texts_in_a_step(
    write, caplog: pytest.LogCaptureFixture, given: int | str, said: bool
):
    caplog.set_level(logging.INFO, "steer")
    files = [
        write("lm.yaml", "alg_name: lm_steer\nbatch_size: 8\n"),
        write("caa.yaml", "alg_name: caa\nlayers: [1]\nbatch_size: 8\n"),
    ]
    config = {"steer_train_hparam_paths": files, "batch_size": given, "save_vectors": False}
    run = steer.BaseVectorGenerator(config).run
    sizes = {key: method.half.batch_size for key, method in run.methods.items()}
    assert sizes == {"lm_steer": "8", "caa": str(given)}
    assert run.settings.batch_size == str(given)
    assert run.origin["lm_steer.batch_size"] == "lm.yaml"
    line = "lm.yaml: batch_size stays 8, texts in a step of training: 1 (config) does not change"
    assert (line in caplog.text, "batch_size" in caplog.text) == (said, said)


def test_the_command_line_beats_the_top_file_and_the_method_file(explained):
    rows = explained("vectors_apply.py", "seed=7", "layers=[3]", "num_responses=2")
    assert rows["seed"] == ("7", "command line")
    assert rows["num_responses"] == ("2", "command line")
    assert rows["apply: caa.layers"] == ("[3]", "command line")


@pytest.mark.slow
def test_a_merged_file_is_read_for_its_phase_from_the_command_line(write, explained):
    path = write("a.yaml", MERGED)
    rows = explained(
        "steering.py",
        f"steer_train_hparam_paths=[{path}]",
        f"apply_steer_hparam_paths=[{path}]",
        "multipliers=[9]",
    )
    assert rows["generate: caa.layers"] == ("[2]", "a.yaml")
    assert rows["apply: caa.layers"] == ("[1]", "a.yaml")
    assert rows["apply: caa.multipliers"] == ("[9.0]", "command line")
    assert rows["seed"][1].endswith("config.yaml")


@pytest.mark.slow
def test_a_plus_before_a_key_replaces_too(explained):
    assert explained("vectors_apply.py", "+seed=7")["seed"] == ("7", "command line")
    assert explained("vectors_apply.py", "++seed=8")["seed"] == ("8", "command line")


@pytest.mark.slow
def test_one_key_of_a_mapping_changes_and_the_others_stay(explained):
    value, origin = explained("vectors_apply.py", "generation_params.max_new_tokens=3")[
        "generation_params"
    ]
    assert "'max_new_tokens': 3" in value
    assert "'do_sample': False" in value
    assert origin.endswith("vector_apply.yaml and command line")


@pytest.mark.slow
def test_explain_config_says_for_each_value_where_it_came_from(write, explained, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = explained("steering.py", "+system_prompt=Be brief.")
    assert rows["system_prompt"] == ("Be brief.", "command line")
    assert rows["device"] == ("cpu", f"{HPARAMS}/config.yaml")
    assert rows["batch_size"] == ("auto", "default")
    assert rows["generate: caa.layers"] == ("[15]", f"{CAA}/generate_caa.yaml")
    assert rows["generate: caa.system_prompt"] == ("Be brief.", "command line")
    assert rows["apply: caa.positions"] == ("all", "default")
    assert rows["apply: caa.steer_vector_load_dir"][1] == f"{HPARAMS}/config.yaml"


@pytest.mark.slow
def test_explain_config_shows_no_secret(explained, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret-marker")
    rows = explained("vectors_apply.py", "system_prompt=${oc.env:SOME_TOKEN}")
    assert rows["system_prompt"] == ("***", "command line")


# ---- both spellings ----------------------------------------------------------------------------


def test_either_spelling_of_a_key_is_taken(write):
    path = write("a.yaml", FLAT.replace("multipliers: [5.0]\n", ""))
    old = generated(path, steer_vector_output_dir="out", torch_dtype="float16")
    new = generated(path, steer_vector_output_dirs=["out"], dtype="float16")
    assert old == new
    assert old.methods["caa"].output_dir == "out"
    assert (
        applied(path, steer_vector_load_dirs="in").methods["caa"].half.steer_vector_load_dir == "in"
    )


def test_both_spellings_with_one_value_are_no_contradiction(write):
    run = applied(write("a.yaml", FLAT), dtype="float16", torch_dtype="float16")
    assert run.settings.dtype == "float16"


@pytest.mark.slow
def test_the_other_spelling_on_the_command_line_replaces(explained):
    rows = explained("vectors_generate.py", "torch_dtype=float16", "+steer_vector_output_dir=out")
    assert rows["dtype"] == ("float16", "command line")
    assert rows["steer_vector_output_dirs"] == ("['out']", "command line")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--config-name=vector_applier"], ["-cn", "vector_apply.yaml"]]
)
def test_either_name_of_a_config_is_taken(explained, arguments: list[str]):
    rows = explained("vectors_generate.py", *arguments)
    assert rows["generation_data"][1].endswith("vector_apply.yaml")


@pytest.mark.slow
def test_a_config_folder_of_ones_own(write, explained):
    write("mine/top.yaml", f"apply_steer_hparam_paths: {CAA}/apply_caa.yaml\nseed: 3\n")
    rows = explained("vectors_apply.py", "--config-path", "mine", "--config-name", "top")
    assert rows["seed"] == ("3", "mine/top.yaml")
    assert rows["num_responses"] == ("1", "default")


def test_a_bare_off_turns_the_report_off(write):
    path = write("top.yaml", "report: off\n")
    assert Run.of(path, "apply").settings.report == "off"


# ---- several entries ---------------------------------------------------------------------------


def test_paths_and_output_folders_go_in_pairs_and_the_first_serves_the_rest(write):
    paths = [write(f"{n}.yaml", f"alg_name: caa\nlayers: [{n}]\n") for n in range(3)]
    run = generated(*paths, steer_vector_output_dirs=["a", "b", "c"])
    assert [m.output_dir for m in run.methods.values()] == ["a", "b", "c"]
    run = generated(*paths, steer_vector_output_dirs="a", save_vectors=False)
    assert [m.output_dir for m in run.methods.values()] == ["a", "a", "a"]


def test_paths_and_load_folders_go_in_pairs_and_the_first_serves_the_rest(write):
    paths = [write("a.yaml", FLAT), write("b.yaml", FLAT), write("c.yaml", FLAT)]
    run = applied(*paths, steer_vector_load_dir=["x", "y"])
    folders = [method.half.steer_vector_load_dir for method in run.methods.values()]
    assert folders == ["x", "y", "x"]


def test_a_method_without_vectors_takes_a_slot_all_the_same(write):
    paths = [write("p.yaml", "alg_name: prompt\nprompt: Hi.\n"), write("a.yaml", FLAT)]
    run = applied(*paths, steer_vector_load_dir=[None, "y"])
    assert run.methods["caa"].half.steer_vector_load_dir == "y"


def test_a_folder_in_a_method_file_serves_where_the_top_level_has_none(write):
    made = write("g.yaml", "alg_name: caa\nlayers: [1]\nsteer_vector_output_dir: out\n")
    assert generated(made).methods["caa"].output_dir == "out"
    assert generated(made, steer_vector_output_dirs="top").methods["caa"].output_dir == "top"
    read = write("a.yaml", FLAT + "steer_vector_load_dir: in\n")
    assert applied(read).methods["caa"].half.steer_vector_load_dir == "in"
    assert (
        applied(read, steer_vector_load_dir=None).methods["caa"].half.steer_vector_load_dir == "in"
    )


def test_two_entries_of_one_method_both_count(write):
    run = applied(write("a.yaml", FLAT), write("b.yaml", FLAT.replace("[1]", "[2]")))
    assert {key: method.half.layers for key, method in run.methods.items()} == {
        "caa": [1],
        "caa_2": [2],
    }
    assert (run.origin["caa.layers"], run.origin["caa_2.layers"]) == ("a.yaml", "b.yaml")


def test_one_path_or_name_need_not_be_a_list(write):
    run = Run.of(
        {"apply_steer_hparam_paths": write("a.yaml", FLAT), "generation_data": "x"}, "apply"
    )
    assert list(run.methods) == ["caa"]
    assert run.settings.generation_data == ["x"]


# ---- what a method file lends to the top -------------------------------------------------------


def test_keys_of_the_top_level_in_a_method_file_serve_where_the_top_says_nothing(write):
    path = write("a.yaml", FLAT + "model_name_or_path: x/y\ntorch_dtype: bfloat16\nseed: 3\n")
    run = applied(path, seed=4)
    assert (run.settings.model_name_or_path, run.settings.dtype) == ("x/y", "bfloat16")
    assert run.origin["dtype"] == "a.yaml"
    assert run.settings.seed == 4


def test_keys_of_easyedit2_that_nothing_here_depends_on_are_read(write):
    path = write("a.yaml", FLAT + "save_activations: True\nuse_cache: true\nvllm_enable: false\n")
    assert applied(path).methods["caa"].half.layers == [1]


# ---- files as EasyEdit2 ships them -------------------------------------------------------------

EASYEDIT2_TOP = """\
model_name_or_path: ../models/gemma-2-9b
torch_dtype: bfloat16
device: cpu
seed: 42
use_chat_template: false
system_prompt: ''
use_cache: true
save_activations: True
vllm_enable: false
vllm_gpu_memory_utilization: 0.9
vllm_max_model_len: null
vllm_enable_v1_multiprocessing: True
vllm_enforce_eager: True
vllm_tensor_parallel_size: 1
vllm_pipeline_parallel_size: 1

steer_train_hparam_paths:
 - generate_caa.yaml
steer_train_dataset:
 - toxicity
steer_vector_output_dir: vectors/gemma-2-9b/
save_vectors: True

# The two lists are corresponding line by line.
apply_steer_hparam_paths:
 - apply_caa.yaml
#  - hparams/Steer/vector_prompt_hparams/apply_vector_prompt.yaml
steer_vector_load_dir:
 - vectors/gemma-2-9b/toxicity/caa_vector

generation_data:
 - nontoxic
generation_data_size: 100
generation_output_dir: steer/logs/gemma-2-9b/
num_responses: 1
steer_from_end_position: false
generate_orig_output: True
max_length: 512
generation_params:
  max_new_tokens: 100
  temperature: 0.9
  do_sample: True
"""


def test_files_written_for_easyedit2_are_read(write):
    top = write("top.yaml", EASYEDIT2_TOP)
    write("generate_caa.yaml", "alg_name: caa\nlayers: [20]\nmultiple_choice: false\n")
    write(
        "apply_caa.yaml",
        "alg_name: caa\nlayers: [20]\nmultipliers: [1.0]\nsave_activations: True\n",
    )
    made, read = Run.of(top, "generate"), Run.of(top, "apply")
    assert made.methods["caa"].output_dir == "vectors/gemma-2-9b/"
    assert (
        read.methods["caa"].half.steer_vector_load_dir == "vectors/gemma-2-9b/toxicity/caa_vector"
    )
    assert read.settings.dtype == "bfloat16"
    assert read.settings.generation_params["temperature"] == 0.9


def test_a_config_of_hydra_of_a_mapping_and_of_a_file_are_one(write):
    top = write("top.yaml", EASYEDIT2_TOP.replace("generate_caa", "a").replace("apply_caa", "a"))
    write("a.yaml", MERGED)
    of_file = Run.of(top, "apply")
    of_omegaconf = Run.of(OmegaConf.load(top), "apply")
    half_spread = Run.of({**OmegaConf.load(top)}, "apply")
    assert of_file.as_dict() == of_omegaconf.as_dict() == half_spread.as_dict()


def test_interpolations_are_resolved_in_every_file(write, monkeypatch):
    monkeypatch.setenv("HOME_OF_VECTORS", "far/away")
    method = write("a.yaml", "alg_name: caa\nlayers: [4]\nmultipliers: ${layers}\n")
    folder = "steer_vector_load_dir: ${oc.env:HOME_OF_VECTORS}/x\n"
    top = write("top.yaml", f"apply_steer_hparam_paths: {method}\n{folder}")
    half = Run.of(top, "apply").methods["caa"].half
    assert (half.multipliers, half.steer_vector_load_dir) == ([4.0], "far/away/x")


# ---- relative paths ----------------------------------------------------------------------------


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sub-folder of a copy of the project, as the working directory."""
    for name in ("hparams", "data"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setattr("steer.files.project_root", lambda: tmp_path)
    folder = tmp_path / "tutorial-notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_paths_are_those_of_the_project_from_a_folder_below_it(notebooks: Path):
    run = Run.of(f"{HPARAMS}/config.yaml", "generate")
    assert run.methods["caa"].half.layers == [15]
    assert len(steer.prepare_train_datasets(f"{HPARAMS}/config.yaml")["sentiment"]) > 10


def test_a_file_in_the_working_directory_comes_before_the_projects(notebooks: Path):
    own = notebooks / CAA / "generate_caa.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("alg_name: caa\nlayers: [2]\n")
    run = Run.of(f"{HPARAMS}/config.yaml", "generate")
    assert run.methods["caa"].half.layers == [2]


def test_an_absolute_path_and_one_from_home_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.yaml").write_text(FLAT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    absolute = applied(str(tmp_path / "a.yaml")).methods
    assert applied("~/a.yaml").methods == absolute


def test_what_is_written_to_home_goes_there(write, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    config = {"steer_train_hparam_paths": write("a.yaml", "alg_name: caa\nlayers: [1]\n")}
    generator = steer.BaseVectorGenerator({**config, "steer_vector_output_dirs": "~/vectors"})
    assert generator.folder("caa", "x") == tmp_path / "home" / "vectors" / "x" / "caa_vector"


def test_names_of_methods_stand_for_the_files_that_come_with_the_project():
    config = {"methods": ["caa", "prompt"], "steer_train_hparam_paths": ["no/such/file.yaml"]}
    assert list(Run.of(config, "generate").methods) == ["caa"]
    applied = Run.of(config, "apply")
    assert list(applied.methods) == ["caa", "prompt"]
    files = ["caa_hparams/apply_caa.yaml", "prompt_hparams/apply_prompt.yaml"]
    listed = Run.of({"apply_steer_hparam_paths": [f"hparams/Steer/{f}" for f in files]}, "apply")
    assert applied.methods == listed.methods
    with pytest.raises(
        ValueError, match="unknown method 'vector_promt'; did you mean 'vector_prompt'"
    ):
        Run.of({"methods": "vector_promt"}, "apply")


def test_a_key_of_a_method_that_is_not_used_is_unknown():
    paths = {"apply_steer_hparam_paths": ["hparams/Steer/caa_hparams/apply_caa.yaml"]}
    with pytest.raises(ValueError, match="unknown key 'trims'"):
        Run.of({**paths, "trims": [0.5]}, "apply")
    assert Run.of({**paths, "multiple_choice": True}, "apply").methods["caa"].half.layers == [15]


# ---- where files go ----------------------------------------------------------------------------

PLACES: list[tuple[str, list[str], tuple[str, str, str]]] = [
    ("steering.py", [], ("SmolLM2-135M-Instruct", "sentiment", "caa")),
    ("steering.py", ["train_data=mine/days.jsonl"], ("SmolLM2-135M-Instruct", "days", "caa")),
    ("steering.py", ["methods=[sta,prompt]"], ("SmolLM2-135M-Instruct", "sentiment", "sta+prompt")),
    ("steering.py", ["train_data=[sentiment,refusal]", "model_name_or_path=org/Small"],
     ("Small", "sentiment+refusal", "caa")),
    ("vectors_apply.py", ["model_name_or_path=my/tiny.gguf"], ("tiny", "sentiment", "caa")),
    ("vectors_apply.py", ["steer_vector_load_dir=vectors/imported/caa_vector"],
     ("SmolLM2-135M-Instruct", "imported", "caa")),
    ("vectors_apply.py", ["methods=[prompt]", "steer_vector_load_dir=[]", "generation_data=q.json"],
     ("SmolLM2-135M-Instruct", "q", "prompt")),
]  # fmt: skip


@pytest.mark.parametrize("script, arguments, names", PLACES)
def test_a_run_writes_where_its_model_its_data_and_its_methods_say(
    explained: Callable[..., dict[str, tuple[str, str]]],
    script: str,
    arguments: list[str],
    names: tuple[str, str, str],
):
    values = explained(script, *arguments)
    assert values["generation_output_dir"][0] == "/".join(("generation", *names))


def test_vectors_of_another_model_lie_elsewhere(write: Callable[[str, str], str]):
    half = "alg_name: caa\nsteer_vector_output_dir: made/{model}/{data}\nlayers: [1]\n"
    cfg = {
        "model_name_or_path": "org/Small",
        "steer_train_dataset": "days.csv",
        "steer_train_hparam_paths": [write("own.yaml", half), write("caa.yaml", MERGED)],
    }
    own, caa = Run.of(cfg, "generate").methods.values()
    assert (own.output_dir, caa.output_dir) == ("made/Small/days", None)
    lists = {"steer_vector_output_dirs": ["a/{model}", "b/{data}"]}
    own, caa = Run.of(cfg | lists, "generate").methods.values()
    assert (own.output_dir, caa.output_dir) == ("a/Small", "b/days")


def test_vectors_are_looked_for_where_the_model_says(write: Callable[[str, str], str]):
    half = "alg_name: caa\nlayers: [1]\nmultipliers: [1.0]\nsteer_vector_load_dir: of/{model}\n"
    cfg = {"model_name_or_path": "org/Small", "apply_steer_hparam_paths": write("a.yaml", half)}
    assert Run.of(cfg, "apply").methods["caa"].half.steer_vector_load_dir == "of/Small"
    cfg["steer_vector_load_dir"] = "v/{model}/caa"
    assert Run.of(cfg, "apply").methods["caa"].half.steer_vector_load_dir == "v/Small/caa"


def test_a_folder_has_its_own_name_however_it_is_written(write: Callable[[str, str], str]):
    place = Path(write("models/tiny/config.json", "{}")).parent.absolute()
    cfg = {"model_name_or_path": f"{place}/sub/..", "generation_output_dir": "x/{model}/{data}"}
    cfg["steer_vector_load_dir"] = f"{place}/warm/caa_vector/../caa_vector/."
    assert Run.of(cfg, "apply").settings.generation_output_dir == "x/tiny/warm"


def test_a_name_in_braces_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"x/\{modl\}: unknown .*'modl'; did you mean 'model'\?"):
        Run.of({"generation_output_dir": "x/{modl}"}, "apply")
