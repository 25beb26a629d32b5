"""Models small enough to be made anew for every test, a tokenizer of bytes, and slow truths."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from steer.models import SteeredModel

torch.set_num_threads(1)

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL: dict[str, Any] = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257}


def tiny_config(kind: str, **more: Any) -> PretrainedConfig:
    """A 3-block model, 16 wide, over 258 tokens."""
    small = {"vocab_size": 258} | ARCHITECTURES[kind][1] | SPECIAL | more
    return AutoConfig.for_model(kind, **small)


def blocks_by_name(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, from the place where this architecture is known to keep them."""
    blocks = model.get_submodule(ARCHITECTURES[model.config.model_type][0])
    assert isinstance(blocks, nn.ModuleList)
    return blocks


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


@cache
def kept(kind: str) -> SteeredModel:
    return steered(tiny_config(kind))


# ---- truths of their own: nothing here goes through the library's hooks, masks or batches ----


def ids_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Rows of random byte tokens, one of each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]


def full_logits(
    model: SteeredModel,
    ids: Sequence[int],
    edits: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
) -> Tensor:
    """Logits [tokens, vocab] of one row, read whole without a cache or a mask.

    Args:
        model: Its transformers model alone is used.
        ids: The row.
        edits: Layer -> new block output [tokens, d_model] of the old, by plain torch hooks.
    """
    with ExitStack() as stack:
        for layer, edit in (edits or {}).items():
            block = blocks_by_name(model.model)[layer]
            hook = block.register_forward_hook(lambda _m, _a, h, edit=edit: edit(h[0])[None])
            stack.callback(hook.remove)
        with torch.no_grad():
            row = torch.tensor([list(ids)])
            return model.model(input_ids=row, use_cache=False).logits[0]


def adding(vector: Tensor, columns: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The edit of one row [tokens, d_model] that adds `vector` to the tokens `columns`."""

    def edit(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        for column in columns:
            changed[column] += vector
        return changed

    return edit


def hooks_on(model: nn.Module) -> list[tuple[str, str, int]]:
    """Where there are hooks, of which kind, how many; and each `forward` of an instance's own.

    transformers leaves hooks of its own on a model that was ever asked for its hidden states.
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(model.named_modules())

    def number(module: nn.Module, kind: str) -> int:
        hooks = getattr(module, kind).values()
        return sum(not str(getattr(h, "__module__", "")).startswith("transformers.") for h in hooks)

    found = [(name, kind, number(module, kind)) for name, module in modules for kind in kinds]
    own = [(n, "forward", id(m.__dict__["forward"])) for n, m in modules if "forward" in m.__dict__]
    return [hook for hook in found if hook[2]] + own


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_tensor(name: str, values: Tensor, config: PretrainedConfig) -> tuple[str, Any]:
    """A Llama weight as llama.cpp keeps it: under its name, rotary halves interleaved."""
    base = name.removesuffix(".weight")
    if base in GGUF_NAMES:
        return f"{GGUF_NAMES[base]}.weight", values.numpy()
    _, _, block, part = base.split(".", 3)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": 1}.get(part)
    if heads:
        values = values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return f"blk.{block}.{GGUF_NAMES[part]}.weight", values.contiguous().numpy()


def write_gguf(path: Path, tiny: SteeredModel) -> None:
    """Write a tiny Llama of 259 tokens as the GGUF file that llama.cpp would make of it."""
    import gguf

    writer, config = gguf.GGUFWriter(path, "llama"), tiny.model.config
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    vocab = tiny.tokenizer.get_vocab()
    writer.add_token_list([*sorted(vocab, key=vocab.__getitem__), "ab"])
    writer.add_token_types([1] * 256 + [3, 3, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    writer.add_pad_token_id(257)
    for name, values in tiny.model.state_dict().items():
        writer.add_tensor(*gguf_tensor(name, values, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
