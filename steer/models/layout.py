"""Where a decoder model keeps its blocks, found by structure and never by name."""

from typing import Any

from torch import nn


def decoder_of(model: nn.Module) -> nn.Module:
    """The part of a causal language model that turns token ids into hidden states, without head.

    Raises:
        ValueError: The model has an encoder.
    """
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder model: only decoder models can be "
            "steered; choose a causal language model (AutoModelForCausalLM)"
        )
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    return decoder if isinstance(decoder, nn.Module) else model.base_model  # type: ignore[return-value]


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks: the first list of as many modules as the config says there are layers.

    Raises:
        ValueError: There is no such list, or the model has an encoder.
    """
    config: Any = model.config
    depth = config.get_text_config(decoder=True).num_hidden_layers
    return list_of(depth, decoder_of(model), type(model).__name__)


def list_of(depth: int, model: nn.Module, name: str) -> nn.ModuleList:
    """The first list of `depth` modules in `model`, which a message calls `name`.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(
        f"{name} has no list of {depth} decoder blocks: its layout is not known; "
        "a decoder model of transformers keeps them in one torch.nn.ModuleList"
    )


def width_of(model: nn.Module) -> int:
    """Width of the residual stream, d_model."""
    config: Any = model.config
    return config.get_text_config(decoder=True).hidden_size
