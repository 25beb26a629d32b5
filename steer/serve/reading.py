"""From a request to token ids and settings, within the server's limits."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import TemplateError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from steer.models import ChatFormat, SteeredModel
from steer.models.chat import conversation, has_template
from steer.serve.asked import Asked
from steer.serve.errors import Refusal, of_validation
from steer.serve.schema import Body, ChatRequest, CompletionRequest, Generation, Message
from steer.serve.settings import ServeSettings
from steer.serve.steering import Steering

B = TypeVar("B", bound=Body)


async def body_of(request: Request, kind: type[B], most_kb: int) -> B:
    """A request's JSON.

    Raises:
        Refusal: No JSON, too much of it, or not what `kind` may hold.
    """
    # A page of another origin cannot send this type without asking first.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise Refusal(415, "send JSON, as content-type application/json")
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > most_kb * 1000:
                raise Refusal(413, f"the request is over {most_kb} kB", code="over_limit")
    except ClientDisconnect as error:
        raise Refusal(499, "the client has left") from error
    try:
        return kind.model_validate_json(bytes(data))
    except ValidationError as error:
        raise of_validation(error) from error


@dataclass(frozen=True)
class Reader:
    """Reads requests for one model.

    Attributes:
        model: Its tokenizer counts.
        settings: Limits, and what holds for every conversation.
        window: Tokens that the model can see; None where it does not say.
    """

    model: SteeredModel
    settings: ServeSettings
    window: int | None

    def chat(self, chat: ChatRequest) -> list[int]:
        """Token ids of a conversation.

        Raises:
            Refusal: The model has no chat template, or its template refuses these turns.
        """
        tokenizer = self.model.tokenizer
        if not has_template(tokenizer):
            raise _wrong("model", "the model has no chat template: use /v1/completions")
        system, turns = _apart(chat.messages)
        if not turns:
            raise _wrong("messages", "there is nothing but a system prompt")
        try:
            text = conversation(
                [{"role": turn.role, "content": turn.text} for turn in turns],
                tokenizer,
                system or self.settings.system_prompt,
                self.settings.enable_thinking,
            )
        except TemplateError as error:
            raise _wrong("messages", f"the chat template refuses them: {error}") from error
        return ChatFormat(use_chat_template=True).encode(tokenizer, text)

    def plain(self, completion: CompletionRequest) -> list[list[int]]:
        """Token ids of each prompt."""
        return [ChatFormat().encode(self.model.tokenizer, text) for text in completion.prompt]

    def asked(
        self, prompts: Sequence[list[int]], body: Generation, steering: Steering
    ) -> list[Asked]:
        """The answers that a request asks for: `n` of the first prompt, then of the next.

        Raises:
            Refusal: Over a limit.
        """
        most_read, longest = self.settings.max_prompt_tokens, max(map(len, prompts))
        if longest > most_read:
            field = "messages" if isinstance(body, ChatRequest) else "prompt"
            raise _over(field, f"{longest} tokens are over max_prompt_tokens, {most_read}")
        number = len(prompts) * body.n
        if number > self.settings.max_choices:
            raise _over("n", f"{number} answers are over max_choices, {self.settings.max_choices}")
        seed = secrets.randbits(63) if body.seed is None else body.seed % 2**64
        values: dict[str, Any] = {
            "edits": steering.edits,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": body.top_p or 1.0,
            "stops": tuple(body.stop or ()),
        }
        return [
            Asked(
                prompt=prompt,
                limit=self._limit(len(prompt), body),
                seed=(seed, choice),
                **values,
            )
            for prompt in prompts
            for choice in range(body.n)
        ]

    def _limit(self, prompt: int, body: Generation) -> int:
        most, wanted = self.settings.max_answer_tokens, body.limit
        if wanted is not None and wanted > most:
            raise _over("max_tokens", f"{wanted} is over max_answer_tokens, {most}")
        usual = min(body.usual or most, most)
        if self.window is None:
            return wanted or usual
        room = self.window - max(prompt, 1)
        if room < (wanted or 1):
            raise Refusal(
                400,
                f"the model sees {self.window} tokens: {prompt} of the prompt and "
                f"{wanted or 1} of the answer are more",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return wanted or min(usual, room)


def _apart(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """The system prompts that begin a conversation, and its turns."""
    first = next(
        (n for n, one in enumerate(messages) if one.role not in ("system", "developer")),
        len(messages),
    )
    return "\n".join(one.text for one in messages[:first]), list(messages[first:])


def _wrong(field: str, message: str) -> Refusal:
    return Refusal(400, f"{field}: {message}", param=field)


def _over(field: str, message: str) -> Refusal:
    return Refusal(400, f"{field}: {message}", param=field, code="over_limit")
