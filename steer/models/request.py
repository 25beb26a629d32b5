"""Requests whose rows may take each other's places, and what can be asked for in them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig, GenerationMixin

from steer.models.ends import Ending, Ends, limits, settled
from steer.models.interventions import Intervention, check_rows
from steer.models.prefix import attention_span
from steer.models.sampling import WARPERS, generation_config, warpers_of
from steer.models.steered_model import SteeredModel
from steer.models.tally import Tally

# Parameters of transformers' `generate` that are followed, or say nothing about the tokens.
FOLLOWED = {
    *WARPERS,
    *("do_sample", "repetition_penalty", "stop_strings"),
    *("max_length", "max_new_tokens", "min_new_tokens"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"),
}
# The others' values that ask for nothing, where it is not null, false or 0.
NEUTRAL = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "length_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "_from_model_config": True,
}
KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, eq=False)
class Manner:
    """Generation settings as far as they choose tokens and end answers.

    Attributes:
        ends: Where answers end.
        warpers: For sampling, by name; None for greedy search.
        min_new: Tokens before which no answer ends with an end-of-text token.
        penalty: On tokens that the row has; 1 for none.
    """

    ends: Ending
    warpers: dict[str, float] | None
    min_new: int
    penalty: float

    @classmethod
    def of(cls, config: GenerationConfig, model: SteeredModel) -> "Manner":
        """That of settled generation settings."""
        return cls(
            ends=Ends(config, model),
            warpers=warpers_of(config) if config.do_sample else None,
            min_new=config.min_new_tokens or 0,
            penalty=config.repetition_penalty or 1.0,
        )


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to be made by a `ContinuousDecoder`.

    Attributes:
        key: Names it; unique among those that wait or run.
        prompt: What the model reads, one token at least.
        limit: Most new tokens.
        manner: How tokens are chosen.
        interventions: Its own steering, given for one row; none is the unsteered model.
        seed: Its own random numbers.
    """

    key: Hashable
    prompt: list[int]
    limit: int
    manner: Manner
    interventions: Sequence[Intervention] = ()
    seed: tuple[int, ...] = (0,)


@dataclass(eq=False)
class Row:
    """A request under way.

    Attributes:
        request: What was asked for.
        said: The answer so far.
        read: Tokens of prompt and answer that the model has read.
        tally: Its own counts, where the decoder is asked for them.
        steering: What steers it; its gates by row are decided once the prompt was read.
    """

    request: Request
    said: list[int] = field(default_factory=list)
    read: int = 0
    tally: Tally = field(default_factory=dict)
    steering: Sequence[Intervention] = field(init=False)

    def __post_init__(self) -> None:
        self.steering = self.request.interventions

    @property
    def text(self) -> list[int]:
        """Prompt and answer so far."""
        return self.request.prompt + self.said

    def say(self, token: int) -> bool:
        """Add a token; whether the answer ends with it."""
        self.said.append(token)
        ended = self.request.manner.ends.reached(self.request.prompt, self.said)
        return ended or len(self.said) >= self.request.limit


def unfollowed(config: GenerationConfig) -> list[str]:
    """The parameters of `config` that a `ContinuousDecoder` cannot follow."""
    return [
        name
        for name, value in config.to_dict().items()
        if name not in FOLLOWED and value not in (None, NEUTRAL.get(name, False))
    ]


def can_refill(model: SteeredModel) -> bool:
    """Whether rows of the model can take each other's places.

    Its state is keys and values alone, and transformers prepares its inputs as it does for most.
    """
    config: Any = model.model.config.get_text_config(decoder=True)
    own: Any = getattr(type(model.model), "prepare_inputs_for_generation", None)
    usual = own is GenerationMixin.prepare_inputs_for_generation
    kinds = set(getattr(config, "layer_types", None) or ())
    return usual and kinds <= KINDS and attention_span(model) > 0


def request_of(
    model: SteeredModel,
    key: Hashable,
    prompt: list[int],
    params: dict[str, Any],
    *,
    interventions: Sequence[Intervention] = (),
    seed: tuple[int, ...] = (0,),
) -> Request:
    """A request with generation parameters as transformers' `generate` names them.

    Raises:
        ValueError: Unknown parameters, or such as cannot be followed; steering for several rows;
            or a prompt that leaves no room.
    """
    config = settled(generation_config(model.model.generation_config, params), model)
    wrong = unfollowed(config)
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)}: not possible where rows take each other's places; leave it out, "
            "or use generate_batches with a fixed batch"
        )
    check_rows(interventions, 1)
    prompt = prompt or [model.first_token]
    (limit,) = limits(config, [prompt])
    return Request(key, prompt, limit, Manner.of(config, model), interventions, seed)
