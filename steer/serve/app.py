"""The routes of the server."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from steer.serve.asked import Asked, Said
from steer.serve.engine import Engine
from steer.serve.errors import Refusal, on_fault, on_http, on_refusal
from steer.serve.gate import OPEN, Gate
from steer.serve.keys import Keys
from steer.serve.metrics import Metrics
from steer.serve.reading import Reader, body_of
from steer.serve.registry import Registry
from steer.serve.replies import Reply, event
from steer.serve.schema import ChatRequest, CompletionRequest, Generation, LoadRequest
from steer.serve.settings import ServeSettings
from steer.serve.steering import steering_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Server:
    """One model behind HTTP.

    Attributes:
        name: The model's.
        settings: Limits.
        engine: Answers.
        registry: The vectors that requests may name.
        reader: Reads requests.
        metrics: Counts.
    """

    name: str
    settings: ServeSettings
    engine: Engine
    registry: Registry
    reader: Reader
    metrics: Metrics

    def app(self, keys: Keys) -> Starlette:
        """The ASGI app that lets those in who have one of `keys`."""
        vectors = "/v1/steering/vectors"
        routes = [
            Route(OPEN, self.health, methods=["GET"]),
            Route("/metrics", self.prometheus, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route(vectors, self.vectors, methods=["GET"]),
            Route(vectors, self.load, methods=["POST"]),
            Route(f"{vectors}/{{name:path}}", self.unload, methods=["DELETE"]),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(Gate, keys=keys, metrics=self.metrics)],
            exception_handlers={
                Refusal: on_refusal,
                HTTPException: on_http,
                Exception: on_fault,
            },
            lifespan=self._running,
        )

    @asynccontextmanager
    async def _running(self, _: Starlette) -> AsyncIterator[None]:
        await self.engine.start()
        try:
            yield
        finally:
            await self.engine.close()

    async def health(self, _: Request) -> Response:
        """Whether the server can answer."""
        if self.engine.is_alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the engine has ended"}, 503)

    async def prometheus(self, _: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self, _: Request) -> Response:
        """The one model."""
        entry = {"id": self.name, "object": "model", "created": 0, "owned_by": "steer"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def vectors(self, _: Request) -> Response:
        """Vectors loaded, and names of those that could be."""
        loaded = dict(self.registry.loaded)
        names = await run_in_threadpool(self.registry.available)
        told = [one.told() for one in loaded.values()]
        waiting = [name for name in names if name not in loaded]
        return JSONResponse({"object": "list", "data": told, "available": waiting})

    async def load(self, request: Request) -> Response:
        """Load a vector, or load it anew."""
        body = await body_of(request, LoadRequest, self.settings.max_body_kb)
        loaded = await run_in_threadpool(self.registry.load, body.name)
        log.info("vector %s is loaded", loaded.name)
        return JSONResponse(loaded.told())

    async def unload(self, request: Request) -> Response:
        """Forget a vector."""
        name = request.path_params["name"]
        self.registry.unload(name)
        log.info("vector %s is unloaded", name)
        return JSONResponse({"id": name, "object": "steering.vector", "deleted": True})

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = await body_of(request, ChatRequest, self.settings.max_body_kb)
        return await self._answer(request, body, lambda: [self.reader.chat(body)])

    async def complete(self, request: Request) -> Response:
        """Go on with a text."""
        body = await body_of(request, CompletionRequest, self.settings.max_body_kb)
        return await self._answer(request, body, lambda: self.reader.plain(body))

    async def _answer(
        self,
        request: Request,
        body: Generation,
        prompts_of: Callable[[], list[list[int]]],
    ) -> Response:
        if body.model != self.name:
            message = f"model: there is no model {body.model!r}, this server has {self.name!r}"
            raise Refusal(404, message, param="model", code="model_not_found")
        steering = steering_of(body.steering, self.registry, self.reader.model, self.settings)
        try:
            self.engine.check(steering.edits)
        except ValueError as error:
            raise Refusal(400, f"steering: {error}", param="steering") from error
        prompts = await run_in_threadpool(prompts_of)
        asked = self.reader.asked(prompts, body, steering)
        if self.engine.waiting + len(asked) > self.settings.max_waiting:
            raise Refusal(429, "too many answers wait already: ask again later", code="queue_full")
        read = sum(map(len, prompts))
        self.metrics.prompt_tokens.inc(read)
        self.metrics.steered.inc(bool(steering.edits))
        chat = isinstance(body, ChatRequest)
        apart = self.engine.counts_apart
        reply = Reply(chat, self.name, steering, apart, read, len(asked))
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._events(reply, asked, usage=usage)
            return StreamingResponse(events, media_type="text/event-stream")
        return await unless_gone(request, self._whole(reply, asked))

    async def _whole(self, reply: Reply, asked: list[Asked]) -> Response:
        try:
            async with aclosing(self._said(asked)) as answers:
                async for said in answers:
                    reply.add(said)
            return JSONResponse(reply.whole())
        except RuntimeError as error:
            raise Refusal(500, str(error)) from error

    async def _events(self, reply: Reply, asked: list[Asked], *, usage: bool) -> AsyncIterator[str]:
        for one in reply.opening():
            yield one
        try:
            async with aclosing(self._said(asked)) as answers:
                async for said in answers:
                    reply.add(said)
                    if said.text or said.finish:
                        yield reply.chunk(said)
        except RuntimeError as error:
            # Too late for a status: OpenAI's clients raise this one.
            yield event(Refusal(500, str(error)).body())
            return
        for one in reply.closing(with_usage=usage):
            yield one

    async def _said(self, asked: list[Asked]) -> AsyncGenerator[Said]:
        """The engine's answers, counted."""
        start = time.perf_counter()
        first = True
        async with aclosing(self.engine.ask(asked)) as answers:
            async for said in answers:
                if first:
                    self.metrics.first.observe(time.perf_counter() - start)
                    first = False
                self.metrics.answer_tokens.inc(said.tokens)
                yield said
        self.metrics.whole.observe(time.perf_counter() - start)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """What `work` gives; it is broken off when the client leaves."""
    answer, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else Response(status_code=499)
    finally:
        answer.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
