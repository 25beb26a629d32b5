"""A thread that decodes: answers with steering of their own come and go."""

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncGenerator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol

from steer.models import EditLayer, SteeredModel
from steer.models.continuous import NewToken
from steer.models.request import Request, request_of
from steer.models.sampling import WARPERS
from steer.serve.asked import Asked, Said
from steer.serve.text import AnswerText

log = logging.getLogger(__name__)

ENDED = "the server can answer no more"

Box = asyncio.Queue[Said | Exception]
# As OpenAI's: nothing but what the request says shapes the probabilities.
NEUTRAL = {name: neutral for name, (_, neutral) in WARPERS.items()}


@dataclass(frozen=True, eq=False)
class _Open:
    """An answer that somebody waits for."""

    choice: int
    text: AnswerText
    box: Box


class Decoder(Protocol):
    """What makes tokens: `ContinuousDecoder`, or what does as it does."""

    @property
    def waiting(self) -> Sized:
        """Requests that are not under way yet."""
        ...

    @property
    def running(self) -> Sized:
        """Requests under way."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there are any."""
        ...

    def add(self, request: Request) -> None:
        """Let a request wait; any thread may."""
        ...

    def cancel(self, key: int) -> None:
        """Forget a request; any thread may."""
        ...

    def step(self) -> Sequence[NewToken]:
        """Some more tokens."""
        ...


class Engine:
    """Answers with a decoder that a thread drives.

    Args:
        model: Its tokenizer and generation settings count.
        decoder: Makes the tokens.

    Attributes:
        counts_apart: Whether the counts of an answer are its own; else they are of all that was
            steered like it while it was made.
        fatal: Errors behind which nothing can be answered.
    """

    counts_apart = True
    fatal: tuple[type[Exception], ...] = ()

    def __init__(self, model: SteeredModel, decoder: Decoder) -> None:
        self.model, self.decoder = model, decoder
        self._open: dict[int, _Open] = {}
        self._numbers = itertools.count()
        self._work = threading.Event()
        self._closing = self._ended = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)

    @property
    def window(self) -> int | None:
        """Tokens of prompt and answer that the model can see; None where it does not say."""
        config: Any = self.model.model.config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None)

    def check(self, edits: Sequence[EditLayer]) -> None:
        """Raise a ValueError for steering that the engine cannot do."""

    @property
    def waiting(self) -> int:
        """Answers that wait for a row."""
        return len(self.decoder.waiting)

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self.decoder.running)

    @property
    def is_alive(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and not self._ended

    async def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End behind the step that is made; what is under way fails."""
        self._closing = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)

    async def ask(self, asked: Sequence[Asked]) -> AsyncGenerator[Said]:
        """Answers, piece by piece; whoever stops early frees their rows.

        Raises:
            RuntimeError: The model failed.
        """
        box: Box = asyncio.Queue()
        keys = [next(self._numbers) for _ in asked]
        try:
            for choice, (key, one) in enumerate(zip(keys, asked, strict=True)):
                request, text = self._request(key, one)
                self._open[key] = _Open(choice, text, box)
                self.decoder.add(request)
            self._work.set()
            if self._ended:
                raise RuntimeError(ENDED)
            left = len(keys)
            while left:
                said = await box.get()
                if isinstance(said, Exception):
                    raise said
                left -= said.finish is not None
                yield said
        finally:
            for key in keys:
                if self._open.pop(key, None) is not None:
                    self.decoder.cancel(key)

    def _request(self, key: int, asked: Asked) -> tuple[Request, AnswerText]:
        params: dict[str, Any] = {"max_new_tokens": asked.limit, "do_sample": False}
        if asked.temperature:
            own = {"temperature": asked.temperature, "top_p": asked.top_p}
            params |= {**NEUTRAL, **own, "do_sample": True}
        request = request_of(
            self.model, key, asked.prompt, params, interventions=asked.edits, seed=asked.seed
        )
        manner = request.manner
        text = AnswerText(self.model.tokenizer, manner.ends.tokens, asked.stops)
        return replace(request, manner=replace(manner, ends=text)), text

    def _run(self) -> None:
        try:
            while not self._closing:
                self._work.wait()
                self._work.clear()
                while self.decoder.busy and not self._closing:
                    self._step()
        except self.fatal as error:
            log.error("the engine has ended", exc_info=error)
        finally:
            # In this order: who asks from now on sees it, who asked before is told.
            self._ended = True
            self._fail(RuntimeError(ENDED))

    def _step(self) -> None:
        try:
            new = self.decoder.step()
        except self.fatal:
            raise
        except Exception as error:
            # Whatever it is goes to those who wait; the next ones may be answered.
            log.error("the model failed", exc_info=error)
            self._fail(RuntimeError(f"the model failed: {type(error).__name__}"))
        else:
            self._hand_out(new)

    def _hand_out(self, new: Sequence[NewToken]) -> None:
        pieces: list[tuple[Box, Said | Exception]] = []
        for one in new:
            found = self._open.get(one.key)  # type: ignore[arg-type]
            if found is not None:
                pieces.append((found.box, _said(found, one)))
                if one.answer is not None:
                    self._open.pop(one.key, None)  # type: ignore[arg-type]
        self._deliver(pieces)

    def _fail(self, error: Exception) -> None:
        pieces: list[tuple[Box, Said | Exception]] = []
        for key in list(self._open):
            found = self._open.pop(key, None)
            self.decoder.cancel(key)
            if found is not None:
                pieces.append((found.box, error))
        self._deliver(pieces)

    def _deliver(self, pieces: Sequence[tuple[Box, Said | Exception]]) -> None:
        def put() -> None:
            for box, piece in pieces:
                box.put_nowait(piece)

        self._loop.call_soon_threadsafe(put)


def _said(found: _Open, new: NewToken) -> Said:
    if new.answer is None:
        return Said(found.choice, found.text.taken(over=False), 1)
    finish = found.text.finish or "length"
    return Said(found.choice, found.text.taken(over=True), 1, finish, new.tally)
