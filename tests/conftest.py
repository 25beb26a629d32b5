"""Models small enough to be made anew for every test, a tokenizer of bytes, and their folder."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.gpt2 import GPT2Config
from transformers.models.llama import LlamaConfig

from steer.models import SteeredModel

torch.set_num_threads(1)

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257}


def tiny_config(kind: str, **more: object) -> PretrainedConfig:
    """A 3-block model, 16 wide, over 258 tokens."""
    if kind == "gpt2":
        return GPT2Config(vocab_size=258, n_embd=16, n_layer=3, n_head=2, **SPECIAL, **more)
    return LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        **SPECIAL,
        **more,
    )


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte; adds no special token by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"<eos>": 256, "<pad>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = template
    return fast


def steered(config: PretrainedConfig) -> SteeredModel:
    """A model of random weights (seed 0), large enough for its blocks to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return SteeredModel(model, byte_tokenizer())


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> SteeredModel:
    return steered(tiny_config(request.param))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny = steered(tiny_config("llama"))
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded() -> SteeredModel:
    """The embedded model; only for tests marked slow."""
    from steer.models.load import ModelSource

    return ModelSource(device="cpu", dtype="float32").load()
