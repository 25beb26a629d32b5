"""Bad input of every kind: it is refused in one line that says what was got and what to do.

Each row of the tables is a name, what is done, and what the message says. All of it goes through
the public doors; the scripts' own handling of errors is in test_scripts.py.
"""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config

import steer
from steer.models import SteeredModel
from steer.vectors import import_safetensors

ROWS = [
    {"question": "How was it?", "matching": "A joy.", "not_matching": "A bore."},
    {"question": "And the food?", "matching": "Very good.", "not_matching": "Quite bad."},
]
INPUTS = {"mine": [{"input": "Tell me."}]}
GENERATE = "alg_name: caa\nlayers: [1]\n"
APPLY = "alg_name: caa\nlayers: [1]\nmultipliers: [2.0]\n"
MERGED = (
    "alg_name: caa\nlayers: [1]\ngenerate:\n  multiple_choice: false\napply:\n  multipliers: [2]\n"
)
FORMATS = "hparams/Steer/dataset_format.yaml"


class Place:
    """A working directory with method files, a tiny model and vectors made with it."""

    def __init__(self, folder: Path, model_folder: Path, model: SteeredModel):
        self.folder = folder
        self.model_folder = model_folder
        self.model = model
        self.file("generate.yaml", GENERATE)
        self.file("apply.yaml", APPLY)

    def file(self, name: str, content: str | bytes = "") -> str:
        """Write a file into the working directory; its path as a config would say it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def config(self, **more: Any) -> dict[str, Any]:
        base = {
            "model_name_or_path": str(self.model_folder),
            "device": "cpu",
            "dtype": "float32",
            "steer_train_hparam_paths": ["generate.yaml"],
            "steer_vector_output_dirs": ["made"],
            "apply_steer_hparam_paths": ["apply.yaml"],
            "steer_vector_load_dir": ["kept"],
            "generation_output_dir": "answers",
            "generation_params": {"max_new_tokens": 2},
        }
        return {k: v for k, v in {**base, **more}.items() if v is not ...}

    def generate(self, datasets: Any = None, **config: Any) -> None:
        """All of a run that makes vectors."""
        generator = steer.BaseVectorGenerator(self.config(**config), self.model)
        generator.generate_vectors({"mine": ROWS} if datasets is None else datasets)

    def train_on(self, row: Mapping[str, Any]) -> None:
        self.generate({"mine": [ROWS[0], row]})

    def apply(self, vectors: Any = None, **config: Any) -> steer.BaseVectorApplier:
        """All of a run that puts vectors in force."""
        applier = steer.BaseVectorApplier(self.config(**config), self.model)
        applier.apply_vectors(vectors)
        return applier

    def answer(self, datasets: Any = None, params: Any = None, **config: Any) -> None:
        """All of a run that answers."""
        applier = self.apply({"caa": {"layer_1": torch.ones(16)}}, **config)
        applier.generate(INPUTS if datasets is None else datasets, **(params or {}))

    def load(self, **config: Any) -> None:
        """The model that a config names, and no other."""
        steer.BaseVectorApplier(self.config(**config))

    def made(self, folder: str = "kept") -> Path:
        """A folder of vectors made with the tiny model."""
        self.generate(steer_vector_output_dirs="new")
        shutil.copytree(self.folder / "new" / "mine" / "caa_vector", self.folder / folder)
        return self.folder / folder

    def described(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Vectors whose metadata is `change`d; then they are applied."""
        path = self.made() / "metadata.json"
        metadata = json.loads(path.read_text())
        change(metadata)
        path.write_text(json.dumps(metadata))
        self.apply()

    def tensor(self, value: Any) -> None:
        """A bare folder with `value` in its .pt file; then it is applied."""
        (self.folder / "kept").mkdir()
        torch.save(value, self.folder / "kept" / "layer_1.pt")
        self.apply()

    def bytes_of_pt(self, change: Callable[[bytes], bytes]) -> None:
        """Vectors whose .pt file is `change`d; then they are applied, without metadata."""
        folder = self.made()
        (folder / "metadata.json").unlink()
        path = folder / "layer_1.pt"
        path.write_bytes(change(path.read_bytes()))
        self.apply()

    def method(self, text: str, phase: str = "apply") -> None:
        """A method file of that text, in a run of that phase."""
        path = self.file("method.yaml", text)
        if phase == "apply":
            self.apply(apply_steer_hparam_paths=[path])
        else:
            self.generate(steer_train_hparam_paths=[path])

    def data(self, name: str, content: str | bytes, fields: str = "{}") -> None:
        """A data file `name`, read by the name `mine`."""
        path = self.file(name, content)
        self.formats(f"train: {{mine: {{file_path: {path}, field_names: {fields}}}}}")

    def formats(self, text: str, name: str = "mine") -> None:
        """A format file, and the training data `name` read by it."""
        self.file(FORMATS, text)
        steer.prepare_train_dataset({"steer_train_dataset": name})


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> SteeredModel:
    return steer.ModelSource(
        model_name_or_path=str(tiny_folder), device="cpu", dtype="float32"
    ).load()


@pytest.fixture
def place(
    tmp_path: Path, tiny_folder: Path, tiny: SteeredModel, monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, tiny_folder, tiny)


def refused(place: Place, do: Callable[[Place], Any], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message) as caught:
        do(place)
    assert "\n" not in str(caught.value)


class Bomb:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


# ---- keys and values of a config ---------------------------------------------------------------

CONFIG = [
    (
        "a key misspelt",
        lambda p: p.apply(multiplier=[1]),
        r"^config: unknown key 'multiplier'; did you mean 'multipliers'\?$",
    ),
    (
        "a key that nothing is like",
        lambda p: p.apply(qqqq=1),
        r"^config: unknown key 'qqqq' \(allowed: ",
    ),
    (
        "a key misspelt in a file",
        lambda p: steer.BaseVectorApplier(p.file("top.yaml", "seeed: 1")),
        r"^top.yaml: unknown key 'seeed'; did you mean 'seed'\?",
    ),
    (
        "a key of vLLM misspelt",
        lambda p: p.apply(vllm_enabel=True),
        r"unknown key 'vllm_enabel'; did you mean 'vllm_enable'\?",
    ),
    (
        "layers that are text",
        lambda p: p.apply(layers="abc"),
        r"^config: layers must be a list of whole numbers: got 'abc'",
    ),
    (
        "layers that are text, when generating",
        lambda p: p.generate(layers="abc"),
        r"^config: layers must be a list of whole numbers or null: got 'abc'",
    ),
    (
        "layers that are one number",
        lambda p: p.apply(layers=3),
        r"layers must be a list of whole numbers: got 3",
    ),
    (
        "a layer that is no whole number",
        lambda p: p.apply(layers=[1.5]),
        r"layers must be a list of whole numbers: got \[1.5\]",
    ),
    (
        "multipliers that are one number",
        lambda p: p.apply(multipliers=3),
        r"^config: multipliers must be a list of numbers: got 3",
    ),
    (
        "multipliers that are text, in a method file",
        lambda p: p.method("alg_name: caa\nlayers: [1]\nmultipliers: [much]\n"),
        r"^method.yaml: multipliers must be a list of numbers: got \['much'\]",
    ),
    (
        "a multiplier that is no number",
        lambda p: p.apply(multipliers=[float("nan")]),
        r"^config: multipliers must be finite numbers: got \[nan\]",
    ),
    (
        "a seed that is text",
        lambda p: p.apply(seed="x"),
        r"^config: seed must be a whole number: got 'x'",
    ),
    (
        "a seed below 0",
        lambda p: p.apply(seed=-1),
        r"seed must be 0 or more and below 2\*\*32: got -1",
    ),
    (
        "resume that is neither yes nor no",
        lambda p: p.apply(resume="maybe"),
        r"resume must be true or false: got 'maybe'",
    ),
    (
        "generation_params that are a list",
        lambda p: p.apply(generation_params=[]),
        r"generation_params must be a mapping: got \[\]",
    ),
    (
        "a system prompt that is a list",
        lambda p: p.apply(system_prompt=["a"]),
        r"system_prompt must be text: got \['a'\]",
    ),
    (
        "method files that are a number",
        lambda p: p.apply(apply_steer_hparam_paths=3),
        r"^config: apply_steer_hparam_paths must be a name or path, or a list of them: got 3",
    ),
    (
        "no data set, but a hole in the list",
        lambda p: p.generate(steer_train_dataset=[None]),
        r"steer_train_dataset must be a name or path, or a list of them: got \[None\]",
    ),
    (
        "no such report",
        lambda p: p.apply(report="ful"),
        r"^config: unknown report 'ful'; did you mean 'full'\? \(allowed: basic, full, off\)",
    ),
    (
        "no such positions",
        lambda p: p.apply(positions="everywhere"),
        r"^config: unknown positions 'everywhere' \(allowed: all, from_prompt_end, generated, "
        r"prompt\)",
    ),
    (
        "two positions",
        lambda p: p.apply(positions="prompt", steer_from_end_position=True),
        r"steer_from_end_position: true and positions: prompt exclude each other",
    ),
    (
        "a batch of none",
        lambda p: p.apply(batch_size=0),
        r"^config: batch_size must be auto, or 1 or more: got '0'",
    ),
    (
        "a batch size in a method file that is no number",
        lambda p: p.method("alg_name: caa\nlayers: [1]\nbatch_size: many\n", "generate"),
        r"^method.yaml: batch_size must be auto, or 1 or more: got 'many'",
    ),
    (
        "no responses",
        lambda p: p.apply(num_responses=0),
        r"^config: num_responses must be 1 or more: got 0",
    ),
    (
        "an engine that there is not",
        lambda p: p.apply(engine="vlm"),
        r"unknown engine 'vlm'; did you mean 'vllm'\?",
    ),
    (
        "vLLM with a device map",
        lambda p: p.apply(vllm_enable=True, device_map="auto"),
        r"engine: vllm does not take device_map: use vllm_tensor_parallel_size",
    ),
    (
        "a setting of vLLM that belongs to steering",
        lambda p: p.apply(vllm_params={"worker_cls": "other"}),
        r"vllm_params must leave worker_cls to steering",
    ),
    (
        "no slots for vLLM",
        lambda p: p.apply(vllm_slots=1),
        r"vllm_slots must be 2 or more: got 1",
    ),
    (
        "one key in two spellings with two values",
        lambda p: p.apply(dtype="float32", torch_dtype="float16"),
        r"^config: dtype and torch_dtype are one key, but dtype is 'float32' and torch_dtype is "
        r"'float16': remove one",
    ),
    (
        "a key of a secret",
        lambda p: p.apply(api_key="sk-123"),
        r"^config: api_key: keys and tokens come from the environment only; remove it",
    ),
    (
        "a secret further down",
        lambda p: p.apply(model_kwargs={"token": "hf_123"}),
        r"^config: model_kwargs: token: keys and tokens come from the environment only; remove it",
    ),
    (
        "a secret in a method file",
        lambda p: p.method(APPLY + "hf_token: hf_123\n"),
        r"^method.yaml: hf_token: keys and tokens come from the environment only; remove it",
    ),
    (
        "a config that is a list",
        lambda p: p.file("top.yaml", "- a\n") and steer.BaseVectorApplier("top.yaml"),
        r"^top.yaml must hold a mapping of keys: got list",
    ),
    (
        "no config",
        lambda p: steer.BaseVectorApplier(None),
        r"^config must hold a mapping of keys: got NoneType",
    ),
    (
        "a config file that is not there",
        lambda p: steer.BaseVectorGenerator("nowhere.yaml"),
        r"^no config at nowhere.yaml \(looked at .*nowhere.yaml and .*nowhere.yaml\)",
    ),
    (
        "an interpolation that leads nowhere",
        lambda p: steer.BaseVectorApplier(p.file("top.yaml", "system_prompt: ${nothing}")),
        r"^top.yaml: Interpolation key 'nothing' not found",
    ),
]

# ---- method files ------------------------------------------------------------------------------

METHOD_FILES = [
    (
        "a method file that is not there",
        lambda p: p.apply(apply_steer_hparam_paths=["caa.yml"]),
        r"^no method file at caa.yml \(looked at ",
    ),
    (
        "a method file that is a folder",
        lambda p: p.apply(apply_steer_hparam_paths=["."]),
        r"^\. is a folder: give a method file",
    ),
    (
        "broken YAML",
        lambda p: p.method("alg_name: caa\nlayers: [1"),
        r"^method.yaml is not valid YAML: .*line ",
    ),
    (
        "YAML that is a list",
        lambda p: p.method("- caa\n"),
        r"^method.yaml must hold a mapping of keys: got list",
    ),
    ("YAML that is a word", lambda p: p.method("caa"), r"^method.yaml: alg_name is missing"),
    (
        "a key given twice",
        lambda p: p.method("alg_name: caa\nlayers: [1]\nlayers: [2]\n"),
        r"^method.yaml is not valid YAML: .*duplicate key layers",
    ),
    (
        "YAML that is not UTF-8",
        lambda p: (
            p.file("method.yaml", b"alg_name: \xff\xfe")
            and p.apply(apply_steer_hparam_paths=["method.yaml"])
        ),
        r"^method.yaml is not valid YAML: ",
    ),
    (
        "no alg_name",
        lambda p: p.method("layers: [1]\n"),
        r"^method.yaml: alg_name is missing; it names the method, e.g. alg_name: caa",
    ),
    (
        "an alg_name that is a number",
        lambda p: p.method("alg_name: 3\n"),
        r"^method.yaml: alg_name must be text: got 3",
    ),
    (
        "a method misspelt",
        lambda p: p.method("alg_name: caaa\n"),
        r"^method.yaml: unknown method 'caaa'; did you mean 'caa'\? \(allowed: .*\bcaa, ",
    ),
    (
        "a method that is not built yet",
        lambda p: p.method("alg_name: reps\n"),
        r"^method.yaml: RePS \(reps\) is not supported yet",
    ),
    (
        "a method that learns nothing, when generating",
        lambda p: p.method("alg_name: prompt\nprompt: Be brief.\n", "generate"),
        r"^method.yaml: prompt has no vectors to generate here, it can only be applied "
        r"\(methods that generate: caa",
    ),
    (
        "a key misspelt in a flat file",
        lambda p: p.method("alg_name: caa\nlayrs: [1]\n"),
        r"^method.yaml: unknown key of caa 'layrs'; did you mean 'layers'\? \(allowed: "
        r".*multipliers",
    ),
    (
        "a key of the top level misspelt in a flat file",
        lambda p: p.method(APPLY + "torch_dtyp: float32\n"),
        r"^method.yaml: unknown key of caa 'torch_dtyp'; did you mean 'torch_dtype'\?",
    ),
    (
        "a key of the other phase in a flat file",
        lambda p: p.method(APPLY + "multiple_choice: true\n"),
        r"^method.yaml: unknown key of caa 'multiple_choice'",
    ),
    (
        "a key misspelt in the shared part",
        lambda p: p.method(MERGED + "layer: [2]\n"),
        r"^method.yaml: unknown key of caa 'layer'; did you mean 'layers'\?",
    ),
    (
        "a key misspelt in the section generate",
        lambda p: p.method(MERGED.replace("multiple_", "multple_"), "generate"),
        r"^method.yaml: generate: unknown key of caa 'multple_choice'; did you mean "
        r"'multiple_choice'\?",
    ),
    (
        "a key misspelt in the section apply",
        lambda p: p.method(MERGED.replace("multipliers", "mulitpliers")),
        r"^method.yaml: apply: unknown key of caa 'mulitpliers'; did you mean 'multipliers'\?",
    ),
    (
        "a key misspelt in the section of the other phase",
        lambda p: p.method(MERGED.replace("multipliers", "mulitpliers"), "generate"),
        r"^method.yaml: apply: unknown key of caa 'mulitpliers'",
    ),
    (
        "a phase that is no mapping",
        lambda p: p.method("alg_name: caa\nlayers: [1]\napply: 3\n"),
        r"^method.yaml: apply must be a mapping of keys: got 3",
    ),
    (
        "a key that must be there",
        lambda p: p.method("alg_name: caa\n"),
        r"^method.yaml: the key 'layers' is missing",
    ),
    (
        "layers and multipliers of unequal length",
        lambda p: p.method("alg_name: caa\nlayers: [1, 2]\nmultipliers: [1]\n"),
        r"^method.yaml: layers and multipliers go in pairs: got 2 layers \[1, 2\] and 1 "
        r"multipliers \[1.0\]",
    ),
    (
        "layers for the multipliers of a file, from the top",
        lambda p: p.apply(layers=[0, 1]),
        r"^config, apply.yaml: layers and multipliers go in pairs: got 2 layers",
    ),
    (
        "no layers",
        lambda p: p.apply(layers=[], multipliers=[]),
        r"^config: layers is empty: name the decoder blocks",
    ),
    (
        "a layer twice",
        lambda p: p.apply(layers=[1, 1], multipliers=[1, 2]),
        r"^config: layers must differ: got \[1, 1\]",
    ),
    (
        "a layer twice, when generating",
        lambda p: p.generate(layers=[1, 1]),
        r"^config: layers must differ: got \[1, 1\]",
    ),
    (
        "an empty prompt",
        lambda p: p.method("alg_name: prompt\nprompt: ' '\n"),
        r"^method.yaml: prompt must not be empty",
    ),
    (
        "two entries that would write one folder",
        lambda p: p.generate(
            steer_train_hparam_paths=["generate.yaml", "generate.yaml"],
            steer_vector_output_dirs=["made", "./made/"],
        ),
        r"^caa and caa_2 would both write made/<data set>/caa_vector: give each an entry of "
        r"its own in "
        r"steer_vector_output_dirs",
    ),
    (
        "two method files that name two models",
        lambda p: p.apply(
            model_name_or_path=...,
            apply_steer_hparam_paths=[
                p.file("one.yaml", APPLY + "model_name_or_path: a\n"),
                p.file("two.yaml", APPLY + "model_name_or_path: b\n"),
            ],
        ),
        r"^two.yaml: model_name_or_path is 'b', but 'a' in one.yaml: give it at the top level",
    ),
    (
        "an output folder that is a list, in a method file",
        lambda p: p.method(GENERATE + "steer_vector_output_dir: [a, b]\n", "generate"),
        r"^method.yaml: steer_vector_output_dir must be one folder: got \['a', 'b'\]",
    ),
]

# ---- data --------------------------------------------------------------------------------------

CSV = "question,matching,not_matching\n"

DATA = [
    ("an empty jsonl file", lambda p: p.data("a.jsonl", ""), r"a.jsonl has no rows"),
    ("an empty json file", lambda p: p.data("a.json", ""), r"a.json has no rows"),
    ("an empty list", lambda p: p.data("a.json", "[]"), r"a.json has no rows"),
    ("an empty csv file", lambda p: p.data("a.csv", ""), r"a.csv has no rows"),
    ("a csv file with a header alone", lambda p: p.data("a.csv", CSV), r"a.csv has no rows"),
    (
        "a jsonl line cut off",
        lambda p: p.data("a.jsonl", '{"matching": "a"}\n\n{"matching": '),
        r"a.jsonl line 3 is not valid JSON: Expecting value",
    ),
    (
        "a jsonl line that is no object",
        lambda p: p.data("a.jsonl", '{"matching": "a"}\n[1]\n'),
        r"a.jsonl line 2 must be an object \{...\}: got list",
    ),
    (
        "broken json",
        lambda p: p.data("a.json", '[{"a": 1},]'),
        r"a.json is not valid JSON: .*line 1 column",
    ),
    (
        "json that is a word",
        lambda p: p.data("a.json", '"a"'),
        r"a.json must hold a list of objects: got str",
    ),
    (
        "a json list with a number in it",
        lambda p: p.data("a.json", '[{"a": 1}, 2]'),
        r"a.json row 2 must be an object \{...\}: got int",
    ),
    (
        "a csv row with a field too few",
        lambda p: p.data("a.csv", CSV + "q,m,n\nq,m\n"),
        r"a.csv row 2 has 2 fields, the header has 3: question, matching, not_matching",
    ),
    (
        "a tsv row with a field too many",
        lambda p: p.data("a.tsv", "matching\tnot_matching\nm\tn\to\n"),
        r"a.tsv row 1 has 3 fields, the header has 2: matching, not_matching",
    ),
    (
        "a csv quote that is not closed",
        lambda p: p.data("a.csv", CSV + 'q,"m,n\n'),
        r"a.csv line 2 is broken: unexpected end of data",
    ),
    (
        "a csv header with a name twice",
        lambda p: p.data("a.csv", "a,a\n1,2\n"),
        r"a.csv: the header has 'a' twice",
    ),
    (
        "a parquet file that is none",
        lambda p: p.data("a.parquet", "no"),
        r"a.parquet is not a parquet file: ",
    ),
    (
        "jsonl that is not UTF-8",
        lambda p: p.data("a.jsonl", b'{"a": "\xe9"}\n'),
        r"a.jsonl is not UTF-8: .*0xe9",
    ),
    (
        "json that is not UTF-8",
        lambda p: p.data("a.json", b'[{"a": "\xe9"}]'),
        r"a.json is not UTF-8: .*0xe9",
    ),
    (
        "csv that is not UTF-8",
        lambda p: p.data("a.csv", b"a\n\xe9\n"),
        r"a.csv is not UTF-8: .*0xe9.*; save it as UTF-8, 'CSV UTF-8' in Excel$",
    ),
    (
        "an unknown ending",
        lambda p: p.data("a.xlsx", "x"),
        r"a.xlsx: cannot read '.xlsx' files \(allowed: .jsonl, .json, .csv, .tsv, .parquet\)",
    ),
    (
        "a folder",
        lambda p: p.file("a.json/b") and p.formats("train: {mine: {file_path: a.json}}"),
        r"^no data for 'mine' \(train\) at a.json \(looked for .jsonl, .json, .csv, .tsv, .parquet",
    ),
    (
        "a data file that is not there",
        lambda p: p.formats("train: {mine: {file_path: gone.jsonl}}"),
        r"^no data for 'mine' \(train\) at gone.jsonl \(looked at ",
    ),
    (
        "a data set misspelt",
        lambda p: steer.prepare_train_dataset({"steer_train_dataset": "sentimant"}),
        r"^unknown train data set of hparams/Steer/dataset_format.yaml 'sentimant'; did you mean "
        r"'sentiment'\?",
    ),
    (
        "a data set misspelt, to answer",
        lambda p: steer.prepare_generation_datasets({"generation_data": ["refusals"]}),
        r"^unknown generation data set of .* 'refusals'; did you mean 'refusal'\?",
    ),
    (
        "no data set",
        lambda p: steer.prepare_train_dataset({}),
        r"^steer_train_dataset names no data set: give a name of section train of hparams",
    ),
    (
        "a data set that is a number",
        lambda p: steer.prepare_generation_datasets({"generation_data": 3}),
        r"^generation_data must be a name or a list of names: got 3",
    ),
    (
        "a format without a file",
        lambda p: p.formats("train: {mine: {field_names: {question: q}}}"),
        r"^hparams/Steer/dataset_format.yaml: train: mine: the key 'file_path' is missing",
    ),
    (
        "a format with a key misspelt",
        lambda p: p.formats("train: {mine: {file_pth: a.jsonl}}"),
        r"dataset_format.yaml: train: mine: unknown key 'file_pth'; did you mean 'file_path'\?",
    ),
    (
        "a format that is a word",
        lambda p: p.formats("train: {mine: a.jsonl}"),
        r"dataset_format.yaml: train: mine must be a mapping with file_path: got 'a.jsonl'",
    ),
    (
        "data on the Hub, where it is not reached",
        lambda p: p.formats("train: {mine: {hf_path: a/b}}"),
        r"^no data for 'mine' \(train\): cannot read a/b from the Hugging Face Hub: .*; get it "
        r"from https://huggingface.co/datasets/a/b$",
    ),
    (
        "a value that the format does not name",
        lambda p: p.formats(
            "train: {mine: {file_path: " + p.file("a.csv", "text,label\nx,Bad\n") + ", "
            "field_names: {text: text, label: label}, values: {label: {Good: 1}}}}"
        ),
        r"^a.csv row 1: 'label' is 'Bad', which values does not name \(allowed: Good\)",
    ),
    (
        "a comparison with what is no number",
        lambda p: p.formats(
            "train: {mine: {file_path: " + p.file("a.json", '[{"a": null}]') + ", "
            "field_names: {label: a}, values: {label: '>= 0.5'}}}"
        ),
        r"^a.json row 1: 'label' is None, and >= 0.5 needs a number \(where_not leaves rows out\)",
    ),
    (
        "conditions that leave no row",
        lambda p: p.formats(
            "train: {mine: {file_path: " + p.file("a.csv", "a\nx\n") + ", where: {a: y}}}"
        ),
        r"^a.csv: no row of 1 is left by where: \{'a': 'y'\} and where_not: \{\}",
    ),
    (
        "a field to group by that a row has not",
        lambda p: p.formats(
            "train: {mine: {file_path: " + p.file("a.csv", "a\nx\n") + ", multi_concept: true}}"
        ),
        r"^data set 'mine': row 1 has no 'concept_id' to group by",
    ),
    (
        "a concept that is not there",
        lambda p: steer.prepare_train_dataset(
            {"steer_train_dataset": "axbench/4", "data_source": "sample"}
        ),
        r"^unknown concept of axbench 'axbench/4'; did you mean .* \(allowed: axbench/0, "
        r"axbench/12, axbench/3\)",
    ),
    (
        "a field name that is a number",
        lambda p: p.formats("train: {mine: {file_path: a.csv, field_names: {question: 3}}}"),
        r"train: mine: field_names: question must be a name, or a list of names: got 3",
    ),
    (
        "a prompt misspelt",
        lambda p: p.formats("train: {mine: {file_path: a.csv, prompt: gsm8}}"),
        r"train: mine: unknown prompt 'gsm8'; did you mean 'gsm'\? \(allowed: gsm, mmlu\)",
    ),
    (
        "a key of hub misspelt",
        lambda p: p.formats("train: {mine: {hf_path: a/b, hub: {hf_spit: x}}}"),
        r"^unknown key of hub 'hf_spit'; did you mean 'hf_split'\?",
    ),
    (
        "a data source misspelt",
        lambda p: p.generate(data_source="hubb"),
        r"^config: unknown data_source 'hubb'; did you mean 'hub'\? \(allowed: auto, file, hub,",
    ),
    (
        "a data set of the Hub that is not there",
        lambda p: steer.prepare_train_dataset({"train_data": "refusal", "data_source": "hub"}),
        r"train: refusal: the key 'hf_path' is missing \(data_source: hub\)",
    ),
    (
        "a file of one's own without known fields",
        lambda p: steer.prepare_train_dataset(
            {"train_data": p.file("my.csv", "q,good,bad\n1,2,3")}
        ),
        r"^my.csv has the fields 'q', 'good', 'bad', and none of them is known as matching and "
        r"not_matching or text and label or output: say which with train_fields=\{matching: its "
        r"name, not_matching: its name\}",
    ),
    (
        "a file whose columns are separated by something else",
        lambda p: steer.prepare_train_dataset(
            {"train_data": p.file("my.csv", "question;matching;not_matching\n1;2;3")}
        ),
        r"^my.csv has one field, 'question;matching;not_matching': its columns seem to be "
        r"separated by ';'; separate them by commas, or by tabs in a .tsv file$",
    ),
    (
        "a file of a kind that is not read",
        lambda p: steer.prepare_train_dataset({"train_data": p.file("my.txt", "Hello.")}),
        r"^my.txt is no data file: data can be read from files with .jsonl, .json, .csv, .tsv",
    ),
    (
        "a field that may be one of two",
        lambda p: steer.prepare_train_dataset(
            {"train_data": p.file("my.csv", "prompt,query,chosen,rejected\na,b,c,d")}
        ),
        r"^my.csv: question may be 'prompt' or 'query': say which with train_fields=\{question",
    ),
    (
        "a file with pairs and labelled texts",
        lambda p: steer.prepare_train_dataset(
            {"train_data": p.file("my.csv", "text,label,chosen,rejected\na,1,c,d")}
        ),
        r"^my.csv has matching and not_matching as well as text and label: say which with train_fi",
    ),
    (
        "a field told that the file has not",
        lambda p: steer.prepare_generation_datasets(
            {
                "generation_data": p.file("my.csv", "q,a\n1,2"),
                "generation_fields": {"input": "quest"},
            }
        ),
        r"^generation_fields: my.csv has no 'quest' for input: it has 'q', 'a'",
    ),
    (
        "fields told for a data set with a name",
        lambda p: steer.prepare_train_dataset(
            {"train_data": "refusal", "train_fields": {"question": "q"}}
        ),
        r"^train_fields is for data named by its file, such as my.jsonl; the fields of refusal are",
    ),
    (
        "a file named like a data set",
        lambda p: steer.prepare_train_dataset(
            {"train_data": p.file("refusal.csv", "chosen,rejected\na,b")}
        ),
        r"^refusal.csv would be called 'refusal', which is a data set of hparams/.*: rename it",
    ),
    (
        "two files of one name",
        lambda p: steer.prepare_train_dataset(
            {
                "train_data": [
                    p.file(f"{folder}/my.csv", "chosen,rejected\na,b") for folder in ("a", "b")
                ]
            }
        ),
        r"^steer_train_dataset: two data sets would be called 'my'",
    ),
    (
        "a broken format file",
        lambda p: p.formats("train: {"),
        r"^hparams/Steer/dataset_format.yaml is not valid YAML",
    ),
    (
        "a split that the format file has not",
        lambda p: p.formats("valid: {}"),
        r"^unknown split of hparams/Steer/dataset_format.yaml 'train' \(allowed: valid\)",
    ),
    (
        "a column that is not there",
        lambda p: p.data("a.csv", "q,m\n1,2\n", "{question: q, matching: mm}"),
        r"a.csv row 1 has no 'mm': it has 'q', 'm' \(field_names in "
        r"hparams/Steer/dataset_format.yaml",
    ),
    (
        "a row without an answer",
        lambda p: p.train_on({"question": "q", "matching": "m"}),
        r"^data set 'mine', method caa: row 2 has no 'not_matching': it has 'question', 'matching'",
    ),
    (
        "an answer that is NaN",
        lambda p: p.train_on({"matching": float("nan"), "not_matching": "n"}),
        r"^data set 'mine', method caa: row 2: 'matching' is missing \(null or NaN\): fill "
        r"it, or drop the row",
    ),
    (
        "an answer that is null",
        lambda p: p.train_on({"matching": "m", "not_matching": None}),
        r"row 2: 'not_matching' is missing \(null or NaN\)",
    ),
    (
        "an empty answer",
        lambda p: p.train_on({"matching": " ", "not_matching": "n"}),
        r"row 2: 'matching' is empty: fill it, or drop the row",
    ),
    (
        "an answer that is a number",
        lambda p: p.train_on({"matching": 3, "not_matching": "n"}),
        r"row 2: 'matching' must be text: got int 3",
    ),
    (
        "a question that is a list",
        lambda p: p.train_on({"question": ["q"], "matching": "m", "not_matching": "n"}),
        r"row 2: 'question' must be text: got list \['q'\]",
    ),
    (
        "half a character",
        lambda p: p.train_on({"matching": "\ud83d", "not_matching": "n"}),
        r"row 2: 'matching' is not proper Unicode: ",
    ),
    (
        "a row that is text",
        lambda p: p.train_on("row"),
        r"row 2 must be a mapping of fields: got str",
    ),
    (
        "no rows to train on",
        lambda p: p.generate({"mine": []}),
        r"data set 'mine', method caa: no rows: give contrastive pairs",
    ),
    (
        "data that is a word",
        lambda p: p.generate("mine"),
        r"^data sets must be lists of rows, or lists of rows by name, \{'mine': \[\{...\}, "
        r"\{...\}\]\}: got str",
    ),
    (
        "a tuple that is too long",
        lambda p: p.generate([("a", "b", "c", "d")]),
        r"^data set 'data': row 1 must be \(matching, not_matching\) or \(question, matching, "
        r"not_matching\): got a tuple of 4",
    ),
    (
        "texts of one side only",
        lambda p: p.generate({"mine": [{"text": "a", "label": 1}, {"matching": "b"}]}),
        r"^data set 'mine', method caa: one side only: no row is not_matching; give texts of both",
    ),
    (
        "a label of neither side",
        lambda p: p.generate({"mine": [{"text": "a", "label": 1}, {"text": "b", "label": "3"}]}),
        r"row 2: 'label' must be 1 \(matching\), or 0 or -1 \(not matching\): got 3",
    ),
    (
        "a label that is a word",
        lambda p: p.generate({"mine": [{"text": "a", "label": "good"}]}),
        r"row 1: 'label' must be a number: got 'good'",
    ),
    (
        "no text among texts",
        lambda p: p.generate({"mine": [{"text": "a", "label": 1}, {"label": 0}]}),
        r"row 2 has neither 'matching' nor 'not_matching' nor 'text'",
    ),
    (
        "single texts for a method that needs pairs",
        lambda p: p.generate(
            {"mine": [{"text": "a", "label": 1}, {"text": "b", "label": 0}]},
            steer_train_hparam_paths=[p.file("pca.yaml", "alg_name: pca\nlayers: [1]\n")],
        ),
        r"method pca: pca learns from pairs, each row a matching and a not_matching answer: these "
        r"rows are single texts, from which caa learns",
    ),
    (
        "a data set that is one row",
        lambda p: p.answer({"mine": {"input": "a"}}),
        r"^data set 'mine' must be a list of rows: got dict",
    ),
    (
        "no rows to answer",
        lambda p: p.answer({"mine": []}),
        r"^data set 'mine' has no rows to answer",
    ),
    (
        "a row without input",
        lambda p: p.answer({"mine": [{"text": "a"}]}),
        r"^data set 'mine': row 1 has no 'input': it has 'text'",
    ),
    (
        "an input that is empty",
        lambda p: p.answer({"mine": [{"input": ""}]}),
        r"row 1: 'input' is empty",
    ),
]

# ---- models and runs ---------------------------------------------------------------------------


def _broken_model(place: Place, name: str, content: str) -> None:
    shutil.copytree(place.model_folder, place.folder / "broken")
    (place.folder / "broken" / name).write_text(content)
    place.load(model_name_or_path="./broken")


def _encoder_decoder(place: Place) -> None:
    T5Config(vocab_size=8, d_model=8, d_ff=8, num_layers=1).save_pretrained("t5")
    place.load(model_name_or_path="./t5")


def _resumed(place: Place, **changes: Any) -> None:
    place.answer()
    place.answer(resume=True, **changes)


def _broken_partial(place: Place) -> None:
    place.file("answers/mine_partial.jsonl", "{}\nnot json\n")
    place.answer(resume=True)


RUNS = [
    (
        "a model folder that is not there",
        lambda p: p.load(model_name_or_path="./gone"),
        r"^no model folder at ./gone \(looked at ",
    ),
    (
        "a model that nobody knows",
        lambda p: p.load(model_name_or_path="nobody/nothing"),
        r"^no model 'nobody/nothing': not 'SmolLM2-135M-Instruct', not a folder .* not to be had",
    ),
    (
        "a model name that is none",
        lambda p: p.load(model_name_or_path="a b//c?"),
        r"^no model 'a b//c\?': not 'SmolLM2-135M-Instruct', not a folder",
    ),
    (
        "a model folder without config",
        lambda p: p.file("empty/readme") and p.load(model_name_or_path="./empty"),
        r"^./empty holds no model: there is no config.json in it",
    ),
    (
        "a model config that is broken",
        lambda p: _broken_model(p, "config.json", "{"),
        r"^no model can be read from './broken'",
    ),
    (
        "a model config that says nothing",
        lambda p: _broken_model(p, "config.json", "{}"),
        r"^no model can be read from './broken'",
    ),
    (
        "weights that are broken",
        lambda p: _broken_model(p, "model.safetensors", "x"),
        r"^no model can be read from './broken'",
    ),
    (
        "an encoder-decoder model",
        _encoder_decoder,
        r"^./t5 is an encoder-decoder model \(t5\): only decoder models can be steered; "
        r"choose a causal",
    ),
    (
        "no such dtype",
        lambda p: p.load(dtype="flaot16"),
        r"^config: unknown dtype 'flaot16'; did you mean 'float16'\? \(allowed: .*bfloat16",
    ),
    (
        "no such device",
        lambda p: p.load(device="gpu"),
        r"^config: device 'gpu' is not one: use auto, cpu, mps, cuda or cuda:N",
    ),
    (
        "a device that is not there",
        lambda p: p.load(device="cuda:99"),
        r"^config: device 'cuda:99' is not on this machine \(\d+ cuda devices seen by torch",
    ),
    (
        "8 and 4 bits",
        lambda p: p.load(load_in_8bit=True, load_in_4bit=True),
        r"^config: load_in_8bit and load_in_4bit exclude each other",
    ),
    (
        "a layer that the model has not, when generating",
        lambda p: p.generate(layers=[3]),
        r"^data set 'mine', method caa: layers \[3\] do not exist: the model has 3 decoder "
        r"blocks, counted from 0 to 2",
    ),
    (
        "a layer that the model has not",
        lambda p: p.apply({"caa": {"layer_7": torch.ones(16)}}, layers=[7]),
        r"layers \[7\] do not exist: the model has 3 decoder blocks, counted from 0 to 2",
    ),
    (
        "generating without methods",
        lambda p: p.generate(steer_train_hparam_paths=...),
        r"^no method to generate with: list files in steer_train_hparam_paths",
    ),
    (
        "generating without a place",
        lambda p: p.generate(steer_vector_output_dirs=...),
        r"^caa has no place to write: give steer_vector_output_dirs, or set save_vectors: false",
    ),
    (
        "generating into a file's place",
        lambda p: p.file("made") and p.generate(),
        r"cannot write to made/mine/caa_vector: .*made is a file; give another folder",
    ),
    (
        "applying without vectors",
        lambda p: p.apply(steer_vector_load_dir=...),
        r"^no vectors to apply: give steer_vector_load_dir, or apply_vectors\(vectors\)",
    ),
    (
        "answering without a place",
        lambda p: p.answer(generation_output_dir=...),
        r"^no place for results: give generation_output_dir",
    ),
    (
        "answering into a file's place",
        lambda p: p.file("answers") and p.answer(),
        r"^cannot write to answers: answers is a file; give another folder",
    ),
    (
        "no such parameter of generate",
        lambda p: p.answer(params={"max_new_token": 3}),
        r"^unknown generation parameter 'max_new_token'; did you mean 'max_new_tokens'\?$",
    ),
    (
        "several sequences",
        lambda p: p.answer(params={"num_return_sequences": 2}),
        r"^num_return_sequences is not supported: use num_responses",
    ),
    (
        "a method's name for a parameter of generate",
        lambda p: p.answer(params={"to_dict": 3}),
        r"^unknown generation parameter 'to_dict'",
    ),
    (
        "a number of tokens that is text",
        lambda p: p.answer(generation_params={"max_new_tokens": "many"}),
        r"^generation parameter max_new_tokens must be a whole number: got 'many'",
    ),
    (
        "a beam for true",
        lambda p: p.answer(params={"num_beams": True}),
        r"^generation parameter num_beams must be a whole number: got True",
    ),
    (
        "sampling, maybe",
        lambda p: p.answer(params={"do_sample": "maybe"}),
        r"^generation parameter do_sample must be true or false: got 'maybe'",
    ),
    (
        "a negative temperature",
        lambda p: p.answer(params={"do_sample": True, "temperature": -1.0}),
        r"`temperature` \(=-1.0\) has to be a strictly positive float",
    ),
    (
        "going on with another seed",
        lambda p: _resumed(p, seed=1),
        r"^cannot resume: answers/mine_results.json is of a run with other settings "
        r"\(settings.seed: 42 then, 1 now\); set them back, or remove the file, or set "
        r"resume: false",
    ),
    (
        "going on with another multiplier",
        lambda p: _resumed(p, multipliers=[3]),
        r"\(settings.methods.caa.multipliers: \[2.0\] then, \[3.0\] now\)",
    ),
    (
        "going on from a broken file",
        _broken_partial,
        r"^cannot resume: answers/mine_partial.jsonl line 2 is broken \(.*\); remove the "
        r"file, or set resume: false",
    ),
]

# ---- vector files ------------------------------------------------------------------------------


def _set(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata.update(values)


def _set_model(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata["vectors"]["layer_1"]["model"].update(values)


def _corrupt_metadata(place: Place) -> None:
    (place.made() / "metadata.json").write_text("{")
    place.apply()


def _other_bytes(place: Place) -> None:
    torch.save(torch.zeros(16), place.made() / "layer_1.pt")
    place.apply()


def _safetensors_with(place: Place, name: str) -> None:
    from safetensors.torch import save_file

    save_file({name: torch.ones(16)}, "foreign.safetensors")
    import_safetensors("foreign.safetensors", "kept")


VECTORS = [
    (
        "a vector folder that is not there",
        lambda p: p.apply(),
        r"^no vector folder at kept \(looked at .*\); python vectors_generate.py makes the vectors",
    ),
    (
        "a layer without a vector",
        lambda p: p.made() and p.apply(layers=[2]),
        r"^no layer_2.pt in kept; there are: layer_1: run vectors_generate.py for that "
        r"layer first",
    ),
    (
        "a folder without vectors",
        lambda p: p.file("kept/readme") and p.apply(),
        r"^no layer_1.pt in kept; there are: no vectors: run",
    ),
    (
        "vectors in memory without the layer",
        lambda p: p.apply({"caa": {"layer_0": torch.ones(16)}}),
        r"^no vectors \['layer_1'\]: there are \['layer_0'\]; generate those layers first",
    ),
    (
        "a vector in memory of another width",
        lambda p: p.apply({"caa": {"layer_1": torch.ones(8)}}),
        r"^vector layer_1 does not fit: its shape is \[8\], the model is 16 wide",
    ),
    (
        "a vector of another width",
        lambda p: p.tensor(torch.ones(8)),
        r"^kept/layer_1.pt does not fit: its shape is \[8\], the model tiny-llama is 16 "
        r"wide; make the vector",
    ),
    (
        "a vector of another width, for a transfer",
        lambda p: (
            (p.folder / "kept").mkdir()
            or torch.save(torch.ones(8), "kept/layer_1.pt")
            or p.apply(allow_mismatch=True)
        ),
        r"does not fit: its shape is \[8\]",
    ),
    (
        "several vectors in one file",
        lambda p: p.tensor(torch.ones(2, 16)),
        r"does not fit: its shape is \[2, 16\]",
    ),
    (
        "a vector of another model",
        lambda p: p.described(_set_model(id="gpt2", fingerprint="0")),
        r"^kept/layer_1.pt does not fit: it was made with gpt2, the model is tiny-llama; set "
        r"allow_mismatch: true for a transfer experiment",
    ),
    (
        "a vector for a deeper layer",
        lambda p: p.described(lambda m: m["vectors"]["layer_1"].update(layer=9)),
        r"layer_1.pt does not fit: it is for layer 9, the model tiny-llama has layers 0 to 2",
    ),
    (
        "a pt file that is cut off",
        lambda p: p.bytes_of_pt(lambda b: b[:-40]),
        r"^kept/layer_1.pt is broken, or holds more than tensors",
    ),
    (
        "a pt file of nothing",
        lambda p: p.bytes_of_pt(lambda _: b""),
        r"^kept/layer_1.pt is broken, or .* not opened \(",
    ),
    (
        "a pt file of noise",
        lambda p: p.bytes_of_pt(lambda _: b"noise" * 9),
        r"^kept/layer_1.pt is broken, or",
    ),
    (
        "a pt file with bytes changed inside",
        lambda p: p.bytes_of_pt(lambda b: b.replace(b"FloatStorage", b"FlaotStorage")),
        r"^kept/layer_1.pt is broken, or",
    ),
    (
        "a pt file with a dict",
        lambda p: p.tensor({"a": torch.ones(16)}),
        r"^kept/layer_1.pt must hold one tensor: got dict",
    ),
    (
        "a pt file with NaN",
        lambda p: p.tensor(torch.full((16,), torch.nan)),
        r"^kept/layer_1.pt holds NaN or infinity: make the vector anew",
    ),
    (
        "a pt file with infinity",
        lambda p: p.tensor(torch.full((16,), torch.inf)),
        r"holds NaN or infinity",
    ),
    ("broken metadata", _corrupt_metadata, r"^kept/metadata.json is not valid JSON: "),
    (
        "metadata without entries",
        lambda p: p.described(dict.clear),
        r"^kept/metadata.json is not a steering vector's metadata: it has no entries under "
        r"'vectors'",
    ),
    (
        "metadata with a number for an entry",
        lambda p: p.described(_set(vectors={"layer_1": 3})),
        r"has no entries under 'vectors'",
    ),
    (
        "metadata of the future",
        lambda p: p.described(_set(format_version=99)),
        r"^kept/metadata.json has format_version 99; this version of steer reads 1 to 1: "
        r"update steer",
    ),
    (
        "metadata without a version",
        lambda p: p.described(_set(format_version=None)),
        r"has format_version None",
    ),
    (
        "a vector that is not the one described",
        _other_bytes,
        r"^kept/layer_1.pt is not the file that metadata.json describes \(its SHA-256 "
        r"differs\): make the vector anew",
    ),
    (
        "a name that leads out of the folder",
        lambda p: _safetensors_with(p, "../escaped"),
        r"^'../escaped' is no name for a vector: use letters, digits",
    ),
    (
        "a vector with NaN to be saved",
        lambda p: steer.save_vectors("made", {"layer_0": torch.full((16,), torch.nan)}, {}),
        r"^vector layer_0 holds NaN or infinity, and is not saved",
    ),
    (
        "a safetensors file that is none",
        lambda p: import_safetensors(p.file("a.safetensors", "x"), "v"),
        r"^a.safetensors is not a safetensors file",
    ),
]


TABLES = [*CONFIG, *METHOD_FILES, *DATA, *RUNS, *VECTORS]


@pytest.mark.parametrize("do, message", [row[1:] for row in TABLES], ids=[row[0] for row in TABLES])
def test_it_is_refused_in_one_line(place: Place, do: Callable[[Place], Any], message: str):
    refused(place, do, message)


def test_a_pickle_that_would_run_something_is_not_run(place: Place):
    (place.folder / "kept").mkdir()
    bomb = pickle.dumps(Bomb(), protocol=2)
    for name, write in {
        "plain": lambda path: path.write_bytes(bomb),
        "zipped": lambda path: torch.save(Bomb(), path),
        "legacy": lambda path: torch.save(Bomb(), path, _use_new_zipfile_serialization=False),
    }.items():
        path = place.folder / "kept" / "layer_1.pt"
        write(path)
        refused(place, Place.apply, r"^kept/layer_1.pt is broken, or holds more than tensors")
        assert not (place.folder / "exploded").exists(), name
        pickle.loads(bomb)  # the bomb does explode where it is let
        (place.folder / "exploded").rmdir()


def test_a_full_disk_leaves_the_old_files_and_nothing_half_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    place.generate()
    place.answer()
    before = files(place.folder)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(
        place,
        lambda p: p.generate(layers=[0, 1]),
        "cannot write made/mine/caa_vector/layer_0.pt: No space left on device; nothing was "
        "changed there",
    )
    assert files(place.folder) == before
    refused(
        place,
        Place.answer,
        "cannot write answers/mine_partial.jsonl: No space left on device; what was finished "
        "before is kept",
    )
    after = files(place.folder)
    assert {name for name in after if name not in before} == {"answers/mine_partial.jsonl"}
    assert {n: after[n] for n in before} == before


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("run", [Place.generate, Place.answer])
def test_a_folder_without_permission_is_refused_before_anything_is_computed(
    place: Place, run: Callable[[Place], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(place.model.model, "forward", None)
    refused(place, run, r"cannot write to .*: no permission in ")


def test_there_are_enough_rows_and_no_two_of_one_name():
    names = [row[0] for row in TABLES]
    assert len(names) == len(set(names))
    assert len(names) >= 65
