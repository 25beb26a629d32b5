"""The doctor finds planted faults, each by its check and with its fix, and is quiet without."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import full_logits, steered, tiny_config

from steer.doctor import CHECKS, Result, diagnose
from steer.doctor.__main__ import main
from steer.doctor.folders import run_of
from steer.generator import BaseVectorGenerator
from steer.models import SteeredModel
from steer.vectors import export_vectors, save_vectors

ROOT = Path(__file__).resolve().parent.parent
FORMATS = """\
train: {mine: {file_path: train.jsonl}}
valid: {mine: {file_path: valid.jsonl}}
generation: {mine: {file_path: test.jsonl}}
"""
LAYER = 1
VECTORS = "vectors/mine/caa_vector"
# A model of random weights cannot read English, and the doctor is right to say so.
EXPECTED = {"language"}


def pair(number: int, when: str) -> dict[str, str]:
    question = f"How was {when} {number}?"
    return {"question": question, "matching": "a" * 12, "not_matching": "z" * 12}


@dataclass
class Bench:
    """A working directory with a healthy set-up, for a fault to be planted in.

    Attributes:
        folder: The working directory.
        model: Its embeddings are its head, so that what is added for "a" makes "a" likelier.
        cfg: Of the run.
    """

    folder: Path
    model: SteeredModel
    cfg: dict[str, Any] = field(default_factory=dict)

    @property
    def vectors(self) -> Path:
        return self.folder / VECTORS

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / name).write_text(text, encoding="utf-8")

    def vector(self) -> torch.Tensor:
        return torch.load(self.vectors / f"layer_{LAYER}.pt", weights_only=True)

    def entry(self) -> dict[str, Any]:
        metadata = json.loads((self.vectors / "metadata.json").read_text())
        return metadata["vectors"][f"layer_{LAYER}"]

    def put(self, vector: torch.Tensor, layer: int = LAYER, **about: Any) -> None:
        """Save a vector in place of the healthy one, with its metadata but for `about`."""
        entry = {**self.entry(), "layer": layer, **about}
        save_vectors(self.vectors, {f"layer_{layer}": vector}, {f"layer_{layer}": entry})

    def found(self, check: str, level: str) -> list[Result]:
        results = diagnose(self.cfg, self.model)
        return [one for one in results if one.check == check and one.level == level]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hparams/Steer").mkdir(parents=True)
    (tmp_path / "hparams/Steer/dataset_format.yaml").write_text(FORMATS)
    model = steered(tiny_config("llama", tie_word_embeddings=True))
    model.tokenizer.padding_side = "left"
    made = Bench(tmp_path, model)
    made.rows("train.jsonl", [pair(n, "day") for n in range(8)])
    made.rows("valid.jsonl", [pair(n, "week") for n in range(8)])
    made.rows("test.jsonl", [{"input": "Tell me."}])
    shared = {"device": "cpu", "dtype": "float32", "use_chat_template": True, "layers": [LAYER]}
    training = {
        "steer_train_dataset": ["mine"],
        "steer_train_hparam_paths": ["hparams/Steer/caa_hparams/generate_caa.yaml"],
        "steer_vector_output_dirs": ["vectors"],
    }
    BaseVectorGenerator({**shared, **training}, model).generate_vectors()
    made.cfg = {
        **shared,
        "apply_steer_hparam_paths": ["hparams/Steer/caa_hparams/apply_caa.yaml"],
        "steer_vector_load_dir": [VECTORS],
        "multipliers": [0.3],
        "generation_data": ["mine"],
    }
    return made


# ---- the faults ---------------------------------------------------------------------------------


def swapped_sign(bench: Bench) -> None:
    bench.put(-bench.vector())


def swapped_data(bench: Bench) -> None:
    rows = [pair(n, "day") for n in range(8)]
    swapped = [{**r, "matching": r["not_matching"], "not_matching": r["matching"]} for r in rows]
    bench.rows("train.jsonl", swapped)


def wrong_template(bench: Bench) -> None:
    bench.model.tokenizer.chat_template = "{{ messages[0]['content'] }} Reply:"


def template_at_one_end(bench: Bench) -> None:
    bench.cfg["use_chat_template"] = False


def no_template(bench: Bench) -> None:
    bench.model.tokenizer.chat_template = None


def foreign_vector(bench: Bench) -> None:
    bench.put(bench.vector(), model={**bench.entry()["model"], "id": "other", "fingerprint": "0"})


def no_metadata(bench: Bench) -> None:
    (bench.vectors / "metadata.json").unlink()


def right_padding(bench: Bench) -> None:
    bench.model.tokenizer.padding_side = "right"


def no_padding(bench: Bench) -> None:
    bench.model.tokenizer.pad_token = None


def nan_data(bench: Bench) -> None:
    bench.rows("train.jsonl", [{**pair(n, "day"), "matching": float("nan")} for n in range(8)])


def duplicates(bench: Bench) -> None:
    bench.rows("train.jsonl", [pair(0, "day")] * 8)


def leakage(bench: Bench) -> None:
    bench.rows("valid.jsonl", [pair(n, "day") for n in range(8)])


def stale_data(bench: Bench) -> None:
    bench.rows("train.jsonl", [pair(n, "night") for n in range(9)])


def stale_file(bench: Bench) -> None:
    torch.save(2 * bench.vector(), bench.vectors / f"layer_{LAYER}.pt")


def layer_off_by_one(bench: Bench) -> None:
    # The vector of layer 1 under the name of layer 2, as a tool that counts hidden states has it.
    bench.put(bench.vector(), layer=2)
    bench.cfg["layers"] = [2]


def misnamed_layer(bench: Bench) -> None:
    about = {"layer_2": bench.entry()}
    save_vectors(bench.vectors, {"layer_2": bench.vector()}, about)
    bench.cfg["layers"] = [2]


def layer_not_made(bench: Bench) -> None:
    bench.cfg["layers"] = [0]


def layer_out_of_range(bench: Bench) -> None:
    bench.put(bench.vector(), layer=7)
    bench.cfg["layers"] = [7]


def strength_0(bench: Bench) -> None:
    bench.cfg["multipliers"] = [0.0]


def absurd_dose(bench: Bench) -> None:
    bench.cfg["multipliers"] = [50.0]


def faint_dose(bench: Bench) -> None:
    bench.cfg["multipliers"] = [1e-3]


def zeros(bench: Bench) -> None:
    bench.put(torch.zeros(16))


def narrow(bench: Bench) -> None:
    bench.put(torch.ones(12))


def corrupted(bench: Bench) -> None:
    (bench.vectors / f"layer_{LAYER}.pt").write_bytes(b"PK\x03\x04 half a file")


def nan_vector(bench: Bench) -> None:
    torch.save(torch.full((16,), torch.nan), bench.vectors / f"layer_{LAYER}.pt")


def broken_metadata(bench: Bench) -> None:
    (bench.vectors / "metadata.json").write_text("{")


def no_folder(bench: Bench) -> None:
    bench.cfg["steer_vector_load_dir"] = ["vectors/other"]


def overflow(bench: Bench) -> None:
    bench.model.model.half()
    bench.put(torch.full((16,), 3e5))


def cancelling_hook(bench: Bench) -> None:
    """What a tool that keeps the old stream does: the next block is given it again."""
    kept: list[torch.Tensor] = []
    blocks = bench.model.blocks
    plain = blocks[LAYER].register_forward_hook(lambda _m, _a, out: kept.append(out.clone()))
    assert plain is not None
    blocks[LAYER + 1].register_forward_pre_hook(lambda _m, args: (kept.pop(), *args[1:]))


def mixing_hook(bench: Bench) -> None:
    def mix(_m: object, _a: object, out: torch.Tensor) -> torch.Tensor:
        return out + out.mean(dim=0, keepdim=True)

    bench.model.blocks[0].register_forward_hook(mix)


def nan_weights(bench: Bench) -> None:
    bench.model.model.get_parameter("model.layers.1.mlp.down_proj.weight").data[0] = torch.nan


def larger_tokenizer(bench: Bench) -> None:
    bench.model.tokenizer.add_tokens([f"<{n}>" for n in range(40)])


def other_end(bench: Bench) -> None:
    bench.model.tokenizer.eos_token = "z"


def dropout_left_on(bench: Bench) -> None:
    bench.model.blocks[0].register_forward_hook(lambda _m, _a, out: out * torch.rand(1))


def misspelt_key(bench: Bench) -> None:
    bench.cfg["multiplier"] = [1.0]


def two_methods(bench: Bench, *settings: str) -> None:
    """Several method files that apply the same vector, each as `settings` say."""
    for key in ("layers", "multipliers"):
        del bench.cfg[key]
    paths = [bench.folder / f"apply_{n}.yaml" for n in range(len(settings))]
    for path, text in zip(paths, settings, strict=True):
        path.write_text(text, encoding="utf-8")
    bench.cfg["apply_steer_hparam_paths"] = list(map(str, paths))


def twice_the_same(bench: Bench) -> None:
    two_methods(bench, *["alg_name: caa\nlayers: [1]\nmultipliers: [0.3]\n"] * 2)


def taken_back(bench: Bench) -> None:
    caa = "alg_name: caa\nlayers: [1]\nmultipliers: [{}]\n"
    two_methods(bench, caa.format(0.3), caa.format(-0.3))


def turned_round(bench: Bench) -> None:
    caa = "alg_name: caa\nlayers: [1]\nmultipliers: [{}]\n"
    two_methods(bench, caa.format(0.05), caa.format(-0.15))


def removed_after_it_was_added(bench: Bench) -> None:
    caa = "alg_name: caa\nlayers: [1]\nmultipliers: [{}]\n"
    two_methods(bench, caa.format(0.3), caa.format(1.0) + "operation: project_out\n")


def gate_that_detects(bench: Bench, area: float, share: float) -> None:
    rates = {"threshold": -1.0, "auroc": area, "quality": [area, 1.0], "on": 8, "off": 8}
    rates |= {"true_positive_rate": share, "false_positive_rate": 0.0}
    entry = {**bench.entry(), "detector": {"read": "prompts", "row": rates}}
    save_vectors(bench.folder / "gate", {"layer_1": bench.vector()}, {"layer_1": entry})
    bench.cfg["gate"] = str(bench.folder / "gate")


def weak_gate(bench: Bench) -> None:
    gate_that_detects(bench, 0.6, 0.5)


def shut_gate(bench: Bench) -> None:
    gate_that_detects(bench, 0.9, 0.0)


def gate_not_calibrated(bench: Bench) -> None:
    bench.cfg["gate"] = VECTORS


def no_inputs(bench: Bench) -> None:
    (bench.folder / "test.jsonl").unlink()


FAULTS: list[tuple[Callable[[Bench], None], str, str, str]] = [
    (swapped_sign, "sign", "failure", "turn the sign of multipliers"),
    (swapped_sign, "vector fits layer", "failure", "sides were swapped"),
    (swapped_data, "sign", "failure", "swap matching and not_matching"),
    (wrong_template, "vector fits text", "warning", "make the vector anew"),
    (template_at_one_end, "vector fits text", "warning", "set use_chat_template alike"),
    (template_at_one_end, "chat template", "warning", "set use_chat_template: true"),
    (no_template, "chat template", "failure", "use_chat_template: false"),
    (foreign_vector, "vector fits model", "failure", "make the vector with this model"),
    (no_metadata, "vector fits model", "warning", "hidden state n"),
    (right_padding, "padding", "warning", "padding_side = 'left'"),
    (no_padding, "padding", "warning", "pad_token = tokenizer.eos_token"),
    (nan_data, "data", "failure", "fill it, or drop the rows"),
    (duplicates, "data", "warning", "drop them"),
    (leakage, "data", "failure", "drop them here or there"),
    (stale_data, "stale vectors", "warning", "vectors_generate.py"),
    (stale_file, "vector files", "failure", "make the vector anew"),
    (layer_off_by_one, "vector fits layer", "failure", "use it at layer 1"),
    (misnamed_layer, "vector fits model", "failure", "rename it to layer_1.pt"),
    (layer_not_made, "vector files", "failure", "set layers: [1]"),
    (layer_out_of_range, "vector fits model", "failure", "numbers below 3"),
    (strength_0, "strength", "failure", "multipliers: [2.0]"),
    (absurd_dose, "dose", "failure", "for a dose of 20%"),
    (faint_dose, "dose", "warning", "for a dose of 20%"),
    (zeros, "vector files", "failure", "make the vector anew"),
    (narrow, "vector files", "failure", "a model of that width"),
    (corrupted, "vector files", "failure", "make the vector anew"),
    (nan_vector, "vector files", "failure", "make the vector anew"),
    (broken_metadata, "vector files", "failure", "restore metadata.json"),
    (no_folder, "vector files", "failure", "vectors_generate.py"),
    (overflow, "numbers", "failure", "bfloat16 or float32"),
    (cancelling_hook, "hooks fire", "failure", "remove the other hooks"),
    (cancelling_hook, "other hooks", "warning", "handle.remove()"),
    (mixing_hook, "batches", "failure", "batch_size: 1"),
    (nan_weights, "numbers", "failure", "dtype"),
    (larger_tokenizer, "tokenizer", "failure", "one folder or revision"),
    (other_end, "tokenizer", "failure", "one folder or revision"),
    (dropout_left_on, "strength 0", "failure", "model.eval()"),
    (misspelt_key, "settings", "failure", "mend the config"),
    (twice_the_same, "interference", "warning", "use one of them"),
    (taken_back, "strength", "failure", "take one of them out"),
    (taken_back, "interference", "warning", "lower the multiplier of caa_2"),
    (turned_round, "interference", "failure", "lower the multiplier of caa_2"),
    (removed_after_it_was_added, "interference", "warning", "in the order caa_2, caa"),
    (weak_gate, "gate", "warning", "other --layers"),
    (shut_gate, "gate", "warning", "a higher --fpr"),
    (gate_not_calibrated, "vectors", "failure", "mend what the message names"),
    (no_inputs, "inputs", "failure", "a file with inputs"),
]


# Each takes half a second: `make check` plants a few of them.
QUICK = FAULTS[::7]


@pytest.mark.parametrize(
    "plant, check, level, fix",
    [
        pytest.param(
            *fault,
            marks=() if fault in QUICK else pytest.mark.slow,
            id=f"{fault[0].__name__}-{fault[1]}",
        )
        for fault in FAULTS
    ],
)
def test_a_planted_fault_is_found_and_its_fix_named(
    bench: Bench, plant: Callable[[Bench], None], check: str, level: str, fix: str
):
    plant(bench)
    found = bench.found(check, level)
    assert any(fix in one.do for one in found), found
    assert all(one.what and one.do for one in found)


def test_a_healthy_set_up_is_called_healthy(bench: Bench):
    results = diagnose(bench.cfg, bench.model)
    assert {one.check for one in results} == set(CHECKS)
    assert {one.check for one in results if one.level != "ok"} == EXPECTED


@pytest.mark.slow
def test_effects_on_each_others_pairs_are_those_of_the_slow_loop(bench: Bench):
    """The second adds 0.2 of the vector: its effect is foreseen as 2/3 of the first one's 0.3."""
    caa = "alg_name: caa\nlayers: [1]\nmultipliers: [{}]\n"
    two_methods(bench, caa.format(0.3), caa.format(0.2))
    found = diagnose(bench.cfg, bench.model)
    start = "8 held-out pairs of mine: caa alone"
    (line,) = [one.what for one in found if one.what.startswith(start)]

    def effect(strength: float) -> float:
        edit = {LAYER: lambda h: h + strength * bench.vector()}
        margins = [slow_margin(bench, row, edit) - slow_margin(bench, row, {}) for row in HELD_OUT]
        return sum(margins) / len(margins)

    one, other, both = (effect(strength) for strength in (0.3, 0.2, 0.5))
    assert line == (
        f"8 held-out pairs of mine: caa alone {one:+.2f} nats, caa_2 alone {other:+.2f} (predicted "
        f"{one * 2 / 3:+.2f}), together {both:+.2f} (sum {one + other:+.2f})"
    )


HELD_OUT = [pair(n, "week") for n in range(8)]


def slow_margin(bench: Bench, row: dict[str, str], edit: dict[int, Any]) -> float:
    """The margin of one pair, each answer read alone."""
    start = f"<user>{row['question']}\n<assistant>"
    sums = []
    for side in ("matching", "not_matching"):
        prompt = bench.model.tokenizer(start)["input_ids"]
        ids = bench.model.tokenizer(f"{start} {row[side]}")["input_ids"]
        logs = full_logits(bench.model, ids, edit).log_softmax(-1)
        sums.append(sum(float(logs[n - 1, ids[n]]) for n in range(len(prompt), len(ids))))
    return sums[0] - sums[1]


# ---- the command --------------------------------------------------------------------------------


def run(bench: Bench, *arguments: str) -> int:
    """The command on a model in a folder, by a config file with the bench's settings."""
    place = bench.folder / "model"
    bench.model.model.save_pretrained(place)
    bench.model.tokenizer.save_pretrained(place)
    bench.cfg["model_name_or_path"] = str(place)
    (bench.folder / "run.yaml").write_text(json.dumps(bench.cfg), encoding="utf-8")
    return main(["--config", "run.yaml", *arguments])


def test_the_command_prints_every_check_and_ends_with_1_where_one_failed(
    bench: Bench, capsys: pytest.CaptureFixture[str]
):
    assert run(bench) == 0
    healthy = capsys.readouterr().out
    assert all(name in healthy for name in CHECKS)
    # A path is not broken.
    wide = [line for line in healthy.splitlines() if len(line) > 80]
    assert all(max(map(len, line.split())) > 60 for line in wide)
    assert run(bench, "multipliers=[0]") == 1
    printed = capsys.readouterr().out
    assert "failure   strength\n" in printed
    assert "  -> set multipliers to numbers other than 0" in printed
    assert "not healthy: " in printed


def test_json_has_the_counts_and_every_result(bench: Bench, capsys: pytest.CaptureFixture[str]):
    assert run(bench, "--json", "multipliers=[50]") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failure"] == 1
    (dose,) = [one for one in found["checks"] if one["check"] == "dose"]
    assert dose["level"] == "failure"
    assert "for a dose of 20%" in dose["do"]


def test_a_file_of_ones_own_is_not_held_out_from_itself(bench: Bench):
    names = {"question": "q", "matching": "good", "not_matching": "bad"}
    bench.rows("my.jsonl", [{names[k]: v for k, v in row.items()} for row in HELD_OUT])
    bench.cfg |= {"steer_train_dataset": ["my.jsonl"], "train_fields": names}
    found = [one.what for one in diagnose(bench.cfg, bench.model) if one.check == "data"]
    assert found[0] == "my: 8 rows, nothing found"


def test_vectors_of_ones_own_file_are_judged_on_it(bench: Bench):
    rows = [pair(n, "day") for n in range(8)]
    bench.rows("my.jsonl", rows)
    bench.put(bench.vector(), data={**bench.entry()["data"], "name": "my"})
    (unread,) = bench.found("stale vectors", "unchecked")
    assert "train_data=FILE" in unread.what
    bench.cfg["steer_train_dataset"] = ["my.jsonl"]
    assert len(bench.found("sign", "ok")) == 1
    assert len(bench.found("stale vectors", "ok")) == 1
    assert [one.what for one in bench.found("data", "ok")] == ["my: 8 rows, nothing found"]
    bench.rows(
        "my.jsonl",
        [{**r, "matching": r["not_matching"], "not_matching": r["matching"]} for r in rows],
    )
    assert len(bench.found("sign", "failure")) == 1
    assert len(bench.found("stale vectors", "warning")) == 1


def test_a_setting_that_is_none_ends_it_with_2(bench: Bench, capsys: pytest.CaptureFixture[str]):
    assert main(["--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    assert run(bench, "layres=[1]") == 2
    assert "no check was made" in " ".join(capsys.readouterr().out.split())


def test_a_folder_of_easyedit2s_is_examined(bench: Bench, capsys: pytest.CaptureFixture[str]):
    folder = bench.folder / "theirs"
    folder.mkdir()
    torch.save(bench.vector(), folder / "layer_1.pt")
    assert run(bench, "multipliers=[0.3]", "--vectors", str(folder)) == 0
    printed = capsys.readouterr().out
    assert "which model layer_1.pt is for is not known" in printed
    assert "ok        dose" in printed


def test_settings_hold_for_named_vectors_and_one_file_is_that_file(bench: Bench):
    torch.save(bench.vector(), bench.vectors / "layer_2.pt")
    cfg = bench.cfg | {"multipliers": 0, "positions": "generated", "gate": "my/detector"}
    (half,) = [one.half for one in run_of(cfg, [VECTORS], "").methods.values()]
    assert (half.layers, half.multipliers) == ([LAYER, 2], [0.0, 0.0])
    assert (half.positions, half.gate) == ("generated", "my/detector")
    (one,) = run_of(bench.cfg, [f"{VECTORS}/layer_2.pt"], "").methods.values()
    assert (one.half.layers, one.half.multipliers) == ([2], [0.3])
    with pytest.raises(ValueError, match="multipliers: one for each of 1 paths, or one: got"):
        run_of(bench.cfg | {"multipliers": [1, 2]}, [VECTORS], "")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".gguf", ".safetensors"])
def test_a_file_of_another_tool_is_examined(
    bench: Bench, capsys: pytest.CaptureFixture[str], ending: str
):
    path = bench.folder / f"control{ending}"
    export_vectors(bench.vectors, path)
    assert run(bench, "--vectors", str(path), "multipliers=[50]") == 1
    printed = capsys.readouterr().out
    assert "failure   dose" in printed
    assert "ok        vector files" in printed
    # A .gguf file does not say it, and a safetensors file of this project does.
    assert ("is for is not known" in printed) == (ending == ".gguf")


@pytest.mark.slow
def test_the_embedded_model_and_its_vector_are_healthy(tmp_path: Path):
    given = ["steer_vector_load_dir=vectors/examples/SmolLM2-135M-Instruct/sentiment/caa_vector"]
    command = [sys.executable, "-m", "steer.doctor", "--json", "device=cpu", *given]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(ran.stdout)
    assert ran.returncode == 0
    assert (found["failure"], found["warning"], found["unchecked"]) == (0, 0, 0)
