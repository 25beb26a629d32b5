"""From a name or a path to a model: errors, shared weights, several devices, quantised weights."""

import gc
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.utils import hf_raise_for_status
from omegaconf import OmegaConf
from tiny import byte_tokenizer, full_logits, hooks_on, ids_of, steered, tiny_config
from transformers import AutoModelForCausalLM, T5Config, dynamic_module_utils
from transformers.models.auto import auto_factory

import steer
from steer.activations import contrast
from steer.likelihood import AnswerScorer
from steer.models import FROM_PROMPT_END, Add, EditLayer, SteeredModel, generate
from steer.models import load as loading
from steer.models.facts import model_facts, weight_fingerprint
from steer.models.load import ModelSource, choose_device, get_model
from steer.passages import Passage

VECTOR = 3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def source(folder: Path | str, **more: Any) -> ModelSource:
    return ModelSource(model_name_or_path=str(folder), **{"device": "cpu", **more})


# ---- places ----


def test_a_folder_is_loaded_with_its_tokenizer(tiny_folder: Path):
    model, written = source(tiny_folder).load(), steered(tiny_config("llama"))
    (row,) = ids_of([9])
    torch.testing.assert_close(full_logits(model, row), full_logits(written, row))
    assert model.tokenizer("Hi")["input_ids"] == written.tokenizer("Hi")["input_ids"]
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("name", ["./{}", "{}", "../{parent}/{}"])
def test_a_relative_path_is_tried_from_the_working_directory(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tiny_folder.parent)
    path = name.format(tiny_folder.name, parent=tiny_folder.parent.name)
    assert source(path).load().depth == 3


def test_a_gguf_file_is_loaded(tiny_gguf: tuple[Path, SteeredModel]):
    path, written = tiny_gguf
    model = source(path).load()
    (row,) = ids_of([9])
    torch.testing.assert_close(full_logits(model, row), full_logits(written, row))
    # Its tokenizer joins a and b; the model's own does not.
    assert model.tokenizer("ab x")["input_ids"] == [258, 220, 87]
    (answer,) = generate(model, ["ab"], interventions=[EditLayer(1, Add(VECTOR))], max_new_tokens=2)
    assert len(answer.new_ids) <= 2


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder-here"])
def test_a_folder_that_is_not_there_is_named(name: str):
    with pytest.raises(FileNotFoundError, match=f"^no model folder at {name} "):
        source(name).load()


def test_a_gguf_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"^no model file at models/none\.gguf "):
        source("models/none.gguf").load()


def test_a_folder_without_a_model_is_said_to_hold_none(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r" holds no model: there is no config\.json in it$"
    ):
        source(tmp_path).load()


def test_a_folder_without_weights_is_not_taken_for_a_name_on_the_hub(tmp_path: Path):
    tiny_config("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"^no model can be read from {str(tmp_path)!r}: .*model.safetensors"
    ):
        source(tmp_path).load()


def test_a_model_that_is_nowhere_is_refused_with_the_places_that_were_tried():
    with pytest.raises(ValueError, match=r"^no model 'nobody/nothing': not 'SmolLM2-135M-In") as no:
        source("nobody/nothing").load()
    assert "not to be had from the Hugging Face Hub" in str(no.value)
    assert str(no.value).endswith(
        "; where it is gated, accept its terms at https://huggingface.co/nobody/nothing, and log "
        "in (hf auth login, or HF_TOKEN)"
    )


@pytest.mark.parametrize(
    "status, headers, parts",
    [
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            ["'401 Unauthorized'", "Invalid credentials in Authorization header);"],
        ),
        (
            403,
            {"X-Error-Code": "GatedRepo", "X-Error-Message": "You are not in the authorized list."},
            [
                "a gated repo. Make sure to have access to it at https://huggingface.co/some/model.",
                "You are not in the authorized list.);",
            ],
        ),
    ],
)
def test_why_the_hub_gives_no_model_is_said(
    monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], parts: list[str]
):
    # What huggingface_hub asks with; older ones ask with another package.
    http = pytest.importorskip("httpx2")

    def refused(repo: str, filename: str, **_: Any) -> None:
        asked = http.Request("HEAD", f"https://huggingface.co/{repo}/resolve/main/{filename}")
        hf_raise_for_status(http.Response(status, headers=headers, request=asked))

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refused)
    with pytest.raises(ValueError, match=r"^no model 'some/model': ") as no:
        source("some/model").load()
    assert [part for part in parts if part not in str(no.value)] == []


def test_a_model_that_is_too_large_for_the_gpu_says_what_to_do(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, no_weights_in_use: None
):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee more")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError) as refused:
        source(tiny_folder).load()
    assert str(refused.value) == (
        f"{tiny_folder} does not fit into the memory there is: give load_in_4bit=true, "
        "device_map=auto or device=cpu (CUDA out of memory. Tried to allocate 20.00 MiB. See more)"
    )


def test_an_encoder_decoder_model_is_refused_before_its_weights_are_read(tmp_path: Path):
    T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError) as refused:
        source(tmp_path).load()
    assert str(refused.value) == (
        f"{tmp_path} is an encoder-decoder model (t5): only decoder models can be steered; "
        "choose a causal language model"
    )


@pytest.mark.parametrize("end, pad", [("<eos>", "<eos>"), (None, "!")])
def test_a_tokenizer_without_padding_gets_one(tmp_path: Path, end: str | None, pad: str):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, end
    tokenizer.save_pretrained(tmp_path)
    steered(tiny_config("llama")).model.save_pretrained(tmp_path)
    assert source(tmp_path).load().tokenizer.pad_token == pad


# ---- shared weights ----


def test_one_source_loaded_twice_shares_weights_and_no_state(tiny_folder: Path):
    first = source(tiny_folder).load()
    first.steer("caa", [EditLayer(1, Add(VECTOR))])
    second = source(tiny_folder, dtype="torch.float32").load()
    assert second.model is first.model
    assert second.tokenizer is first.tokenizer
    assert second.interventions() == []
    second.reset_all()
    assert len(first.interventions()) == 1


@pytest.mark.parametrize("dtype", ["auto", "fp32", "torch.float32", None])
def test_names_of_one_dtype_are_one_source(tiny_folder: Path, dtype: str | None):
    model = source(tiny_folder, dtype="float32").load()
    assert source(tiny_folder, dtype=dtype).load().model is model.model


def test_another_source_has_weights_of_its_own(tiny_folder: Path):
    first = source(tiny_folder).load()
    half = source(tiny_folder, dtype="bf16").load()
    assert half.model is not first.model
    assert half.model.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.usefixtures("no_weights_in_use")
def test_the_latest_weights_outlive_their_last_user_and_others_do_not(tiny_folder: Path):
    first = id(source(tiny_folder).load().model)
    gc.collect()
    assert id(source(tiny_folder).load().model) == first
    source(tiny_folder, dtype="bf16").load()
    gc.collect()
    assert len(loading._in_use) == 1


# ---- settings ----


def test_device_auto_is_one_that_is_there(tiny_folder: Path):
    best = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.backends.mps.is_available():
        best = "mps"
    assert ModelSource(model_name_or_path=str(tiny_folder)).device == best
    assert choose_device("auto").type == best


@NO_GPU
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "0", 1])
def test_a_gpu_that_is_not_there_is_refused(device: str | int):
    with pytest.raises(ValueError, match=r"^device 'cuda(:\d)?' is not on this machine") as refused:
        ModelSource(device=device)
    assert "(0 cuda devices seen by torch" in str(refused.value)
    assert str(refused.value).endswith("; use device: auto, or device: cpu")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"device": "gpu"}, "^device 'gpu' is not one: use auto, cpu, mps, cuda or cuda:N$"),
        ({"dtype": "flaot16"}, "^unknown dtype 'flaot16'; did you mean 'float16'?"),
        ({"dtype": "int8"}, "^unknown dtype 'int8'"),
        (
            {"load_in_8bit": True, "load_in_4bit": True},
            "^load_in_8bit and load_in_4bit exclude each other$",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ModelSource(**settings)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "auto"])
def test_the_weights_have_the_dtype_asked_for(tiny_folder: Path, dtype: str):
    expected = {"auto": torch.float32}.get(dtype) or getattr(torch, dtype)
    assert source(tiny_folder, dtype=dtype).load().model.dtype == expected


class Asked:
    """What `from_pretrained` was called with; it then gives a tiny model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: dict[str, Any] = {}
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", self)

    def __call__(self, place: object, **options: Any) -> Any:
        self.options = options
        return steered(tiny_config("llama")).model


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_loading_reaches_bitsandbytes(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, bits: int
):
    asked = Asked(monkeypatch)
    source(tiny_folder, dtype="float16", **{f"load_in_{bits}bit": True}).load()
    settings = asked.options["quantization_config"]
    assert (settings.load_in_4bit, settings.load_in_8bit) == (bits == 4, bits == 8)
    assert asked.options["dtype"] == torch.float16


def test_settings_reach_from_pretrained(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = Asked(monkeypatch)
    source(tiny_folder, model_kwargs={"attn_implementation": "eager"}, revision="abc").load()
    assert asked.options == {
        "trust_remote_code": False,
        "revision": "abc",
        "dtype": torch.float32,
        "device_map": {"": "cpu"},
        "attn_implementation": "eager",
    }
    source(tiny_folder, device_map="auto", trust_remote_code=True).load()
    assert asked.options["device_map"] == "auto"
    assert asked.options["trust_remote_code"] is True


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "of_its_own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_that_brings_its_code_is_known_without_its_weights(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    folder = tmp_path / "own_model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "own.py").write_text(OWN_CODE)
    written = json.loads((folder / "config.json").read_text())
    written["model_type"] = "of_its_own"
    written["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(written))
    read, revisions = auto_factory.get_class_from_dynamic_module, []

    def noted(*given: Any, **options: Any) -> Any:
        revisions.append(options.get("code_revision"))
        return read(*given, **options)

    monkeypatch.setattr(auto_factory, "get_class_from_dynamic_module", noted)
    for _ in range(2):
        model = source(folder, trust_remote_code=True, revision="v2").structure()
        assert type(model.model).__name__ == "OwnModel"
        assert (model.depth, model.d_model) == (3, 16)
        assert all(one.is_meta for one in model.model.parameters())
    assert set(revisions) == {"v2"}
    with pytest.raises(ValueError, match="no model can be read"):
        source(folder).structure()


@pytest.mark.parametrize("kind", ["mapping", "object", "omegaconf"])
def test_get_model_takes_the_names_of_easyedit2(tiny_folder: Path, kind: str):
    values = {
        "model_name_or_path": str(tiny_folder),
        "torch_dtype": "bfloat16",
        "device": "cpu",
        "use_chat_template": True,
        "revision": None,
    }
    made = {
        "mapping": dict,
        "object": lambda v: SimpleNamespace(**v),
        "omegaconf": OmegaConf.create,
    }
    model, tokenizer = get_model(made[kind](values))
    assert model.model.dtype == torch.bfloat16
    assert tokenizer is model.tokenizer
    assert steer.get_model is get_model


# ---- spread over devices ----

SPREAD = {
    "llama": {
        "model.embed_tokens": "disk",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
    "gpt2": {
        "transformer.wte": "disk",
        "transformer.wpe": "cpu",
        "transformer.drop": "cpu",
        "transformer.h.0": "cpu",
        "transformer.h.1": "disk",
        "transformer.h.2": "disk",
        "transformer.ln_f": "cpu",
        "lm_head": "disk",
    },
}


@pytest.fixture(params=list(SPREAD))
def spread(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SteeredModel, SteeredModel]:
    """A model of which accelerate fetches a part from disk at each call, and the same in memory."""
    whole = steered(tiny_config(request.param))
    whole.model.save_pretrained(tmp_path / "model")
    whole.tokenizer.save_pretrained(tmp_path / "model")
    offloaded = source(
        tmp_path / "model",
        device_map=SPREAD[request.param],
        model_kwargs={"offload_folder": str(tmp_path / "offload")},
    ).load()
    assert "forward" in offloaded.blocks[1].__dict__  # accelerate's own
    assert next(offloaded.blocks[1].parameters()).device.type == "meta"
    return offloaded, whole


@pytest.mark.slow
def test_a_spread_model_is_steered_as_a_whole_one(spread: tuple[SteeredModel, SteeredModel]):
    offloaded, whole = spread
    before = hooks_on(offloaded.model)
    assert offloaded.device == torch.device("cpu")
    edits = [EditLayer(1, Add(VECTOR), FROM_PROMPT_END), EditLayer(2, Add(VECTOR, -1.0))]
    options: dict[str, Any] = {"interventions": edits, "max_new_tokens": 6, "do_sample": False}
    prompts = ["hello", "you there", "a"]
    assert generate(offloaded, prompts, **options) == generate(whole, prompts, **options)
    assert hooks_on(offloaded.model) == before


@pytest.mark.slow
def test_a_spread_model_is_read_and_scored_as_a_whole_one(
    spread: tuple[SteeredModel, SteeredModel],
):
    offloaded, _ = spread
    before = hooks_on(offloaded.model)
    wanted = [Passage(row, 1, len(row)) for row in ids_of([5, 3, 8])]
    shunned = [Passage(row, 1, len(row)) for row in ids_of([4, 6, 2], 1)]
    means, expected = (contrast(m, wanted, shunned, [0, 1]).means() for m in spread)
    for layer in (0, 1):
        torch.testing.assert_close(means[layer], expected[layer])
    scorers = [AnswerScorer(m, ids_of([3, 5]), ids_of([2, 4], 1)) for m in spread]
    for vector in (VECTOR, -VECTOR):  # the second time, the first blocks are replayed
        found, wanted_rows = (s.log_probs([EditLayer(1, Add(vector))]) for s in scorers)
        for one, other in zip(found, wanted_rows, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert hooks_on(offloaded.model) == before
    assert (offloaded.spread, spread[1].spread) == (True, False)
    assert next(offloaded.blocks[1].parameters()).device.type == "meta"


# ---- facts ----


def test_the_fingerprint_is_of_the_weights_and_not_of_their_dtype(tiny_folder: Path):
    prints = {
        dtype: weight_fingerprint(source(tiny_folder, dtype=dtype).load().model)
        for dtype in ("float32", "bfloat16", "float64")
    }
    assert len(set(prints.values())) == 1
    other = steered(tiny_config("llama"))
    assert weight_fingerprint(other.model) == prints["float32"]
    with torch.no_grad():
        other.model.get_input_embeddings().weight[0, 0] += 1
    assert weight_fingerprint(other.model) != prints["float32"]


def test_facts_name_the_model(tiny_folder: Path):
    facts = model_facts(source(tiny_folder).load())
    assert facts["id"] == tiny_folder.name
    assert facts["architecture"] == "LlamaForCausalLM"
    assert (facts["model_type"], facts["hidden_size"], facts["num_layers"]) == ("llama", 16, 3)
