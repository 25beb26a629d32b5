"""Answers in the shape of OpenAI's."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from steer.models.tally import Tally, merge
from steer.serve.asked import Said
from steer.serve.steering import Steering

DONE = "data: [DONE]\n\n"


@dataclass
class Reply:
    """What becomes of one request.

    Attributes:
        is_chat: Whether it is a chat; else a completion.
        model: Its name.
        steering: What the request is steered by.
        counts_apart: As in `Engine`.
        prompt_tokens: Of all its prompts.
        choices: How many answers are to come.
        tokens: New ones so far.
        texts: Of each answer so far.
        finishes: Why each answer ended, of those that have.
    """

    is_chat: bool
    model: str
    steering: Steering
    counts_apart: bool
    prompt_tokens: int
    choices: int
    tokens: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    _tally: Tally = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def add(self, said: Said) -> None:
        """Take note of more of an answer."""
        self.tokens += said.tokens
        self.texts[said.choice] = self.texts.get(said.choice, "") + said.text
        if said.finish is not None:
            self.finishes[said.choice] = said.finish
            if self.counts_apart:
                merge(self._tally, said.tally or {})
            else:
                # The last one's are of the others too.
                self._tally = said.tally or {}

    @property
    def is_over(self) -> bool:
        """Whether every answer has ended."""
        return len(self.finishes) == self.choices

    def usage(self) -> dict[str, int]:
        """Tokens read and said."""
        total = self.prompt_tokens + self.tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": total,
        }

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream.

        Raises:
            RuntimeError: It was to be steered, and was not.
        """
        choices = [self._choice(number) for number in range(self.choices)]
        report = self._report()
        return {**self._head(), "choices": choices, "usage": self.usage(), "steering": report}

    def _choice(self, number: int) -> dict[str, Any]:
        text = self.texts[number]
        said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {}
        return {
            "index": number,
            **(said or {"text": text}),
            "logprobs": None,
            "finish_reason": self.finishes[number],
        }

    def _head(self, chunk: str = "") -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _report(self) -> dict[str, Any]:
        """What was done to the answers, or to all that were steered like them meanwhile."""
        whose = "this request" if self.counts_apart else "this steering"
        return {**self.steering.report(self._tally), "counts_of": whose}

    def opening(self) -> Sequence[str]:
        """Events that a stream begins with."""
        if not self.is_chat:
            return ()
        delta = {"role": "assistant", "content": ""}
        choices = [
            {"index": number, "delta": delta, "finish_reason": None}
            for number in range(self.choices)
        ]
        return [event({**self._head(".chunk"), "choices": choices})]

    def chunk(self, said: Said) -> str:
        """The event of a piece that was added; the last one has the steering report.

        Raises:
            RuntimeError: It was to be steered, and was not.
        """
        delta = {"delta": {"content": said.text}} if self.is_chat else {"text": said.text}
        choice = {"index": said.choice, **delta, "finish_reason": said.finish}
        report = {"steering": self._report()} if self.is_over else {}
        return event({**self._head(".chunk"), "choices": [choice], **report})

    def closing(self, *, with_usage: bool) -> Sequence[str]:
        """Events that a stream ends with."""
        last = {**self._head(".chunk"), "choices": [], "usage": self.usage()}
        return [event(last), DONE] if with_usage else [DONE]


def event(value: dict[str, Any]) -> str:
    """`value` as a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
