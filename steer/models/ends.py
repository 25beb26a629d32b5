"""Where answers end: end-of-text tokens, stop strings, the most new tokens."""

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import GenerationConfig, StopStringCriteria

from steer.models.batching import padded
from steer.models.steered_model import SteeredModel

# Stands for no token in the search for stop strings: behind any vocabulary.
NO_TOKEN = 2**62
# What transformers takes where neither the user nor the model's own file says anything.
DEFAULT_NEW_TOKENS = 20


def settled(config: GenerationConfig, model: SteeredModel) -> GenerationConfig:
    """`config` with the end and padding tokens that hold; padding is masked, any token will do."""
    tokenizer = model.tokenizer
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    config.pad_token_id = next(pad for pad in pads if pad is not None)
    return config


def limits(config: GenerationConfig, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Most new tokens of each row, whatever batch it is in.

    Raises:
        ValueError: `max_length` leaves a row no room.
    """
    if config.max_new_tokens is not None or config.max_length is None:
        return [config.max_new_tokens or DEFAULT_NEW_TOKENS] * len(prompts)
    longest = max(map(len, prompts), default=0)
    if longest >= config.max_length:
        raise ValueError(
            f"max_length {config.max_length} leaves no room behind a prompt of {longest} tokens: "
            "use max_new_tokens"
        )
    return [config.max_length - len(prompt) for prompt in prompts]


class Ending(Protocol):
    """Where one answer ends.

    Attributes:
        tokens: Those that end it.
    """

    tokens: set[int]

    def reached(self, prompt: list[int], new: list[int]) -> bool:
        """Whether the last token of `new` ends the answer; asked once for each token."""
        ...


class Ends:
    """The end-of-text tokens and stop strings of a generation.

    Attributes:
        tokens: Those that end an answer.
    """

    def __init__(self, config: GenerationConfig, model: SteeredModel) -> None:
        ends = config.eos_token_id
        self.tokens = {ends} if isinstance(ends, int) else set(ends or ())
        stops = config.stop_strings
        self.strings = StopStringCriteria(model.tokenizer, stops) if stops else None

    def reached(self, prompt: list[int], new: list[int]) -> bool:
        """Whether the last token of `new` ends the answer."""
        return new[-1] in self.tokens or bool(self._stopped([prompt + new]))

    def cut(self, prompt: list[int], new: list[int]) -> list[int]:
        """`new` without the padding behind its end."""
        places = [place for place, token in enumerate(new) if token in self.tokens]
        # A string may begin in the prompt; a row of each length says where it first is whole.
        places += self._stopped([prompt + new[:n] for n in range(1, len(new) + 1)])
        return new[: min(places) + 1] if places else new

    def _stopped(self, texts: list[list[int]]) -> list[int]:
        """Numbers of those `texts` that end with a stop string."""
        if self.strings is None or not texts:
            return []
        recent = [text[-self.strings.maximum_token_len :] for text in texts]
        ids, _ = padded(recent, NO_TOKEN, "left", torch.device("cpu"))
        return self.strings(ids, None).nonzero().flatten().tolist()  # type: ignore[arg-type]
