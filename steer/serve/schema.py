"""What a request's JSON may hold; anything else is refused by name."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# What asks for nothing is taken: clients send it unasked.
Nothing = Annotated[float, Field(ge=0, le=0)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_listed)]
Stop = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """What all have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class VectorUse(Body):
    """One vector of a request.

    Attributes:
        name: As listed.
        strength: Signed; times the vector.
        layers: Of those that the vector has; all where None.
        positions: `all`, `prompt`, `from_prompt_end` or `generated`.
        operation: `add`, `add_keeping_norm` or `project_out`.
    """

    name: str
    strength: float = 1.0
    layers: list[int] | None = None
    positions: str = "all"
    operation: str = "add"


class SteeringSpec(Body):
    """How a request is steered: its vectors, in the order in which they act."""

    vectors: list[VectorUse] = []


def _spelt_out(value: Any) -> Any:
    if value is None:
        return {}
    return {"vectors": [{"name": value}]} if isinstance(value, str) else value


class StreamOptions(Body):
    """What a stream brings beside text."""

    include_usage: bool = False


class Generation(Body):
    """What chats and completions share; temperature 0 takes the likeliest token each time."""

    # Most tokens of an answer where the request does not say; None is as many as there may be.
    usual: ClassVar[int | None] = None

    model: str
    n: int = Field(1, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: Annotated[list[Stop], BeforeValidator(_listed), Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Nothing = 0.0
    presence_penalty: Nothing = 0.0
    user: str | None = None
    steering: Annotated[SteeringSpec, BeforeValidator(_spelt_out)] = SteeringSpec()

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer, where the request says."""
        return self.max_tokens


class TextPart(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str


def _in_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_in_parts)]

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(part.text for part in self.content)


class ChatRequest(Generation):
    """Of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer, where the request says."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Generation):
    """Of POST /v1/completions."""

    # As in OpenAI's.
    usual: ClassVar[int | None] = 16

    prompt: Annotated[Texts, Field(min_length=1)]


class LoadRequest(Body):
    """Of POST /v1/steering/vectors."""

    name: str
