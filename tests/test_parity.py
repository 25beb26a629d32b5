"""Numbers of the reference: the embedded model gives what EasyEdit2 gave, case by case.

They were recorded from zjunlp/EasyEdit at commit 14cea82, in float32 on a CPU; the README beside
them says how, and which differences are the order of sums. `STEER_PARITY` names another folder of
the same layout.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import steer.applier
import steer.methods.contrastive
from steer import BaseVectorApplier, BaseVectorGenerator
from steer.activations import Contrast, contrast
from steer.answering import answer_jobs
from steer.models import Answer
from steer.passages import Passage

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("STEER_PARITY") or ROOT.parent / "shared" / "parity" / "open")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no parity numbers at {FOLDER}"),
]

CAA = [
    "01_caa_chat",
    "02_caa_plain_system",
    "02b_caa_no_question_plain",
    "02c_caa_no_question_chat_system",
    "03_caa_multiple_choice_chat",
    "03b_caa_multiple_choice_plain",
]
GENERATION = {
    "09_steered_greedy": 2,
    "10_steer_from_end_position": 2,
    "11_combined_methods": 4,
}
RUNS = [(case, number) for case, runs in GENERATION.items() for number in range(runs)]

# Logits nearer to each other than this may change places with the order of sums.
CLOSE = 0.005


@dataclass(frozen=True)
class Case:
    """A case's folder."""

    name: str

    @cached_property
    def described(self) -> dict[str, Any]:
        return self._json("case.json")

    @cached_property
    def golden(self) -> dict[str, Any]:
        return self._json("golden.json")

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(FOLDER / self.name / "golden.safetensors")

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return load_file(FOLDER / self.name / "inputs.safetensors")

    def _json(self, file: str) -> dict[str, Any]:
        return json.loads((FOLDER / self.name / file).read_text(encoding="utf-8"))


def written(folder: Path, name: str, values: dict[str, Any]) -> str:
    """A method's file, as a user writes it."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"alg_name": name, **values}), encoding="utf-8")
    return str(path)


# ---- vectors ------------------------------------------------------------------------------------


@dataclass
class Read:
    """What was read of each item."""

    positive: Sequence[Passage] = ()
    negative: Sequence[Passage] = ()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    seen = Read()

    def reading(model: Any, wanted: Any, shunned: Any, *others: Any, **options: Any) -> Contrast:
        seen.positive, seen.negative = wanted, shunned
        return contrast(model, wanted, shunned, *others, **options)

    monkeypatch.setattr(steer.methods.contrastive, "contrast", reading)
    return seen


def assert_near(found: torch.Tensor, golden: torch.Tensor) -> None:
    """The README's gates: absolute, but relative where massive activations are in the mean."""
    difference = found - golden
    assert torch.cosine_similarity(found, golden, dim=0) >= 0.99999
    relative = difference.norm() / golden.norm()
    assert difference.abs().max() <= 1e-4 or relative <= 1e-5


@pytest.mark.parametrize("batch_size", ["auto", "1"])
@pytest.mark.parametrize("name", CAA)
def test_caa_vectors_are_the_references(name: str, batch_size: str, read: Read, tmp_path: Path):
    case = Case(name)
    method = case.described["method_file"]
    config = {
        **case.described["top_config"],
        "batch_size": batch_size,
        "steer_train_hparam_paths": [written(tmp_path, "caa", method)],
        "steer_vector_output_dirs": [str(tmp_path / "out")],
    }
    generator = BaseVectorGenerator(config)
    vectors = generator.generate_vectors({"data": case.described["items"]})["data"]["caa"]

    tokens = case.golden["tokens"]
    assert [p.ids for p in read.positive] == [t["pos_ids"] for t in tokens]
    assert [p.ids for p in read.negative] == [t["neg_ids"] for t in tokens]
    if method["multiple_choice"]:
        spans = {(p.start - len(p.ids), p.stop - len(p.ids)) for p in read.positive}
        assert spans == {(-2, -1)}
    else:
        assert [p.start for p in read.positive] == [t["question_len"] for t in tokens]
        assert all(p.stop == len(p.ids) for p in read.positive)

    assert sorted(vectors) == sorted(case.tensors)
    for layer, golden in case.tensors.items():
        assert_near(vectors[layer], golden)

    kind = "caa_vector_multiple_choice" if method["multiple_choice"] else "caa_vector"
    folder = tmp_path / "out" / "data" / kind
    for layer, found in vectors.items():
        assert torch.equal(torch.load(folder / f"{layer}.pt", weights_only=True), found)


@pytest.mark.parametrize("name", CAA)
def test_a_question_has_as_many_tokens_as_in_the_reference(name: str, tmp_path: Path):
    case = Case(name)
    method = written(tmp_path, "caa", case.described["method_file"])
    config = {**case.described["top_config"], "steer_train_hparam_paths": [method]}
    generator = BaseVectorGenerator(config)
    half: Any = generator.hparams_dict["caa"]
    tokenizer = generator.model.tokenizer
    texts = [half.text(tokenizer, item.get("question") or "") for item in case.described["items"]]
    lengths = [len(half.encode(tokenizer, text)) for text in texts]
    assert lengths == [token["question_len"] for token in case.golden["tokens"]]


# ---- steered answers ----------------------------------------------------------------------------


@dataclass
class Run:
    """One run of a generation case.

    Attributes:
        case: Its case.
        key: Its name in the golden files.
        config: The top-level config.
        methods: What each method's file says, by method.
    """

    case: Case
    key: str
    config: dict[str, Any]
    methods: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, name: str, number: int) -> "Run":
        """Run `number` of a case; one that is only recorded is the first with the option off."""
        case = Case(name)
        runs, key = case.described["runs"], list(case.golden)[number]
        run = runs[min(number, len(runs) - 1)]
        config = dict(run["top_config"])
        if number >= len(runs):
            assert key == "everywhere"
            config["steer_from_end_position"] = False
        methods = {method["alg_name"]: method["method_file"] for method in run["methods"]}
        return cls(case, key, config, methods)

    @property
    def items(self) -> list[dict[str, Any]]:
        """What is asked."""
        return self.case.described["items"]

    def golden(self, item: int, kind: str) -> dict[str, Any]:
        """What the reference answered; `kind` is steered or unsteered."""
        return self.case.golden[self.key][item][kind]

    def tensor(self, item: int, kind: str, name: str) -> torch.Tensor:
        """Logits that go with `golden`: of tokens 0, 192, 384 ..., or of those chosen."""
        # "caa+merge_vector (cancel)" in the one file is "caa+merge_vector" in the other.
        return self.case.tensors[f"{self.key.split()[0]}/{kind}/{item}/{name}"]

    def vector(self, name: str) -> torch.Tensor:
        """The vector of a method; the merged one is what cancels the run's other one."""
        (layer,) = self.methods[name]["layers"]
        if name in self.case.inputs:
            return self.case.inputs[name]
        if name == "merge_vector":
            strengths = [self.methods[m]["multipliers"][0] for m in ("caa", "merge_vector")]
            return -strengths[0] / strengths[1] * self.case.inputs["caa"]
        return self.case.inputs[f"layer_{layer}"]

    def applier(self, folder: Path) -> BaseVectorApplier:
        """Steering as the run's files say, with vectors in the form that EasyEdit2 keeps them."""
        files = [written(folder, name, values) for name, values in self.methods.items()]
        places = []
        for name, values in self.methods.items():
            place = folder / f"{name}_vector"
            place.mkdir()
            places.append(str(place))
            if "layers" in values:
                torch.save(self.vector(name), place / f"{file_stem(name, values)}.pt")
        config = {
            **self.config,
            "apply_steer_hparam_paths": files,
            "steer_vector_load_dir": places,
            "generation_output_dir": str(folder / "results"),
        }
        applier = BaseVectorApplier(config)
        applier.apply_vectors()
        return applier


def file_stem(name: str, values: dict[str, Any]) -> str:
    """EasyEdit2's name for the one vector of a method."""
    (layer,) = values["layers"]
    if name == "sta":
        return f"layer_{layer}_{values['mode']}_trim{values['trims'][0]}"
    return f"layer_{layer}_merged_vector" if name == "merge_vector" else f"layer_{layer}"


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    """Answers with their tokens, by item and kind, of the applier's latest run."""
    found: dict[str, Answer] = {}

    def answering(*given: Any, **options: Any) -> dict[str, Answer]:
        found.update(answer_jobs(*given, **options))
        return found

    monkeypatch.setattr(steer.applier, "answer_jobs", answering)
    return found


def sure_steps(golden: dict[str, Any]) -> int:
    """How many of the greedy tokens no other order of sums can change."""
    gap, step = golden["min_top2_gap"], golden["min_gap_step"]
    return step if gap < CLOSE else len(golden["new_ids"])


@torch.inference_mode()
def assert_logits(applier: BaseVectorApplier, run: Run, item: int, kind: str) -> None:
    """The reference's logits behind the prompt, and of each token that it chose, in one pass."""
    golden, prompt = run.golden(item, kind), run.case.golden[run.key][item]["prompt_ids"]
    ids = torch.tensor([prompt + golden["new_ids"][:-1]])
    steps = None if kind == "steered" else []
    with applier.model.steering(steps, prompt_lengths=torch.tensor([len(prompt)])):
        logits = applier.model.model(ids).logits[0, len(prompt) - 1 :]
    top = golden["first_step"]["top5_ids"]
    assert_near_logits(logits[0, top], torch.tensor(golden["first_step"]["top5_logits"]))
    assert_near_logits(logits[0, ::192], run.tensor(item, kind, "first_logits_slice"))
    chosen = logits.gather(1, torch.tensor(golden["new_ids"])[:, None])[:, 0]
    assert_near_logits(chosen, run.tensor(item, kind, "token_logit"))


def assert_near_logits(found: torch.Tensor, golden: torch.Tensor) -> None:
    """The README's gate."""
    torch.testing.assert_close(found, golden, rtol=0, atol=1e-3)


def unsteered_elsewhere(run: Run, item: int) -> dict[str, Any]:
    """The unsteered answer to the same input in a run without a steering prompt."""
    text = run.items[item]["input"]
    for name, number in RUNS:
        other = Run.of(name, number)
        alike = other.config["generation_params"] == run.config["generation_params"]
        inputs = [each["input"] for each in other.items]
        if "prompt" not in other.methods and alike and text in inputs:
            return other.golden(inputs.index(text), "unsteered")
    raise AssertionError(f"no unsteered answer to {text!r} is recorded")


@pytest.mark.parametrize("name, number", RUNS)
def test_steered_answers_are_the_references(
    name: str, number: int, answered: dict[str, Answer], tmp_path: Path
):
    run = Run.of(name, number)
    applier = run.applier(tmp_path)
    records = applier.generate({"data": run.items})["data"]
    for item, record in enumerate(records):
        recorded = run.case.golden[run.key][item]
        steered, plain = answered[f"{item}/0"], answered[f"{item}/orig"]

        golden = run.golden(item, "steered")
        assert steered.prompt_ids == recorded["prompt_ids"]
        assert applier.tokenizer.decode(steered.prompt_ids) == recorded["model_input"]
        sure = sure_steps(golden)
        assert steered.new_ids[:sure] == golden["new_ids"][:sure]
        if sure == len(golden["new_ids"]):
            assert steered.new_ids == golden["new_ids"]
            assert record["pred"] == [golden["text"]]
            assert record["complete_output"] == [golden["complete_output"]]
        assert_logits(applier, run, item, "steered")

        # The reference leaves a steering prompt in what it calls unsteered; here it is not.
        if "prompt" in run.methods:
            golden = unsteered_elsewhere(run, item)
        else:
            assert plain.prompt_ids == recorded["prompt_ids"]
            assert_logits(applier, run, item, "unsteered")
            golden = run.golden(item, "unsteered")
        sure = sure_steps(golden)
        assert plain.new_ids[:sure] == golden["new_ids"][:sure]
        if sure == len(golden["new_ids"]):
            assert record["orig_pred"] == [golden["text"]]


def test_a_run_that_cancels_itself_gives_the_unsteered_answers(tmp_path: Path):
    run = Run.of("11_combined_methods", 3)
    assert "cancel" in run.key
    applier = run.applier(tmp_path)
    for item, record in enumerate(applier.generate({"data": run.items})["data"]):
        golden = run.golden(item, "unsteered")
        if sure_steps(golden) == len(golden["new_ids"]):
            assert record["pred"] == record["orig_pred"] == [golden["text"]]
    assert applier.reports
    (layer,) = applier.reports["data"].layers.values()
    assert layer["passes"] > 0
    assert layer["dose"] < 1e-6
