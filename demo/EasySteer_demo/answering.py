"""One model for all visitors: each answer has steering of its own, and all share its passes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence, Sized
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar

import torch
from options import DemoOptions

from steer.methods.prompt_writing import PromptWriter, cleaned
from steer.models import ChatFormat, EditLayer, EditPrompt, Intervention, SteeredModel
from steer.models.continuous import ContinuousDecoder, NewToken
from steer.models.request import can_refill
from steer.serve.asked import Asked, Said
from steer.serve.engine import Engine
from steer.serve.steering import Steering

T = TypeVar("T")


class SharedDecoder:
    """A decoder between whose steps others may use the model, each in turn.

    To an `Engine` it is as any other.
    """

    def __init__(self, model: SteeredModel, rows: int) -> None:
        self._decoder = ContinuousDecoder(model, rows, apart=True)
        self.add, self.cancel = self._decoder.add, self._decoder.cancel
        self.waiting = self._decoder.waiting
        self._next, self._in_use = Lock(), Lock()

    @property
    def running(self) -> Sized:
        """Requests under way."""
        return self._decoder.running

    @property
    def busy(self) -> bool:
        """Whether a request waits or is under way."""
        return self._decoder.busy

    def step(self) -> Sequence[NewToken]:
        """Some more tokens, once the model is free."""
        with self._turn():
            return self._decoder.step()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """While open nothing is decoded, and no hook is on the model."""
        with self._turn():
            with torch.inference_mode():
                self._decoder.pause()
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # Locks are not fair: who waits holds `_next`, so that the next step cannot overtake.
        with self._next:
            self._in_use.acquire()
        try:
            yield
        finally:
            self._in_use.release()


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One question of a visitor's, and how it is to be answered.

    Attributes:
        question: What the model is asked.
        max_new_tokens: Tokens of each answer.
        temperature: 0 takes the likeliest token each time.
        top_p: Share of probability that is drawn from.
        seed: For drawing.
    """

    question: str
    max_new_tokens: int = 60
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42

    @property
    def generation_params(self) -> dict[str, Any]:
        """The same as `transformers` names them."""
        params: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        if self.temperature:
            drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
            params |= {"do_sample": True, **drawn}
        return params


@dataclass(frozen=True)
class Pair:
    """Both answers so far.

    Attributes:
        unsteered: Of the untouched model.
        steered: Of the same model, steered.
        layers: Once both are over: layer -> passes, tokens, tokens_changed, dose.
    """

    unsteered: str = ""
    steered: str = ""
    layers: dict[str, dict[str, Any]] | None = None


class Answers:
    """Answers of one model to many visitors at once.

    Args:
        model: The model; nothing is in force on it.
        options: How text is put before it, and what may be asked for.

    Raises:
        ValueError: Answers of this model cannot come and go.
    """

    def __init__(self, model: SteeredModel, options: DemoOptions) -> None:
        if not can_refill(model):
            raise ValueError(
                f"{type(model.model).__name__} keeps more than keys and values, so its answers "
                "cannot share a batch: the demo needs another model, e.g. a Llama, Qwen or Gemma"
            )
        self.model, self.options = model, options
        self._decoder = SharedDecoder(model, options.rows)
        self._engine = Engine(model, self._decoder)
        self._started = False

    async def alone(self, job: Callable[[], T]) -> T:
        """What `job` gives, with the model to itself."""

        def run() -> T:
            with self._decoder.resting():
                return job()

        return await asyncio.to_thread(run)

    async def compare(
        self, wish: Wish, interventions: Sequence[Intervention]
    ) -> AsyncGenerator[Pair]:
        """Both answers to a question as they come; the last has the counts.

        Raises:
            ValueError: The question is too long for the model, or too many wait.
            RuntimeError: The model failed, or a layer was to be steered and nothing changed.
        """
        prompts = [one.text for one in interventions if isinstance(one, EditPrompt)]
        # What does nothing would be counted where others in the batch are steered.
        layers = [one for one in interventions if isinstance(one, EditLayer)]
        edits = [one for one in layers if not one.is_idle()]
        chat = self.options.chat
        plain = self._asked(wish, chat, wish.question, [])
        steered = self._asked(wish, chat, " ".join([*prompts, wish.question]), edits)
        texts, pair = ["", ""], Pair()
        async with aclosing(self._ask([plain, steered])) as pieces:
            async for said in pieces:
                texts[said.choice] += said.text
                pair = Pair(*texts, pair.layers)
                if said.choice == 1 and said.tally is not None:
                    pair = replace(pair, layers=Steering(edits, []).report(said.tally)["layers"])
                yield pair

    async def write(self, concept: str) -> AsyncGenerator[str]:
        """The steering prompt that the model writes for a concept, as it comes.

        Raises:
            ValueError: As for `compare`; also where nothing usable was written.
        """
        request = PromptWriter(prompts_file=None).request(self.model, concept)
        params = request["params"]
        chat = ChatFormat(use_chat_template=params["use_chat_template"])
        wish = Wish(question="", max_new_tokens=params["max_new_tokens"])
        stops = tuple(params["stop_strings"])
        text = ""
        asked = self._asked(wish, chat, request["instruction"], [], stops)
        async with aclosing(self._ask([asked])) as pieces:
            async for said in pieces:
                text += said.text
                yield text
        yield cleaned(text)

    def _asked(
        self,
        wish: Wish,
        chat: ChatFormat,
        text: str,
        edits: Sequence[EditLayer],
        stops: tuple[str, ...] = (),
    ) -> Asked:
        prompt = chat.encode(self.model.tokenizer, chat.text(self.model.tokenizer, text))
        window = self._engine.window
        if window is not None and len(prompt) + wish.max_new_tokens > window:
            raise ValueError(
                f"the model sees {window} tokens: the text has {len(prompt)}, and "
                f"{wish.max_new_tokens} are asked for; shorten the text, or ask for fewer"
            )
        return Asked(
            prompt=prompt,
            edits=edits,
            limit=wish.max_new_tokens,
            temperature=wish.temperature,
            top_p=wish.top_p,
            # As the scripts seed the first answer to the first row.
            seed=(wish.seed, 0, 0),
            stops=stops,
        )

    async def _ask(self, asked: Sequence[Asked]) -> AsyncGenerator[Said]:
        if not self._started:
            self._started = True
            await self._engine.start()
        if self._engine.waiting > self.options.max_waiting:
            raise ValueError(
                f"{self._engine.waiting} answers wait already, the most there may be: try again "
                "in a minute"
            )
        async with aclosing(self._engine.ask(asked)) as pieces:
            async for said in pieces:
                yield said
