"""From a config to a server that listens."""

import logging
from socket import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette

from steer.engines.of_run import model_for
from steer.models import SteeredModel
from steer.models.facts import model_facts
from steer.serve.app import Server
from steer.serve.decoders import engine_of
from steer.serve.keys import Keys
from steer.serve.metrics import Metrics
from steer.serve.reading import Reader
from steer.serve.registry import Registry
from steer.serve.settings import ServeSettings

log = logging.getLogger(__name__)


def app_of(settings: ServeSettings, model: SteeredModel | None = None) -> Starlette:
    """The ASGI app of a config, with its vectors loaded.

    Args:
        settings: All of it.
        model: Instead of the one that they name.

    Raises:
        ValueError: No keys, or what the config names cannot be served.
    """
    keys = Keys.of(settings)
    model = model or model_for(settings, settings.source, weights=False)
    registry = Registry(settings, model)
    registry.load_first()
    engine = engine_of(settings, model)
    metrics = Metrics(lambda: engine.waiting, lambda: engine.running, lambda: len(registry.loaded))
    reader = Reader(model, settings, engine.window)
    name = model_facts(model)["id"]
    return Server(name, settings, engine, registry, reader, metrics).app(keys)


class LoudServer(uvicorn.Server):
    """Says where it listens: with `port: 0` nobody else knows."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        for server in self.servers:
            host, port = server.sockets[0].getsockname()[:2]
            log.info("serving at http://%s:%d/v1", f"[{host}]" if ":" in host else host, port)


def server_of(settings: ServeSettings, model: SteeredModel | None = None) -> uvicorn.Server:
    """A server that is ready to run; see `app_of`."""
    app = app_of(settings, model)
    return LoudServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            # Clients keep a connection for 5 s: one that closes just then would break a request.
            timeout_keep_alive=60,
            timeout_graceful_shutdown=30,
        )
    )


def serve(cfg: Any) -> None:
    """Serve until interrupted.

    Raises:
        ValueError: As `app_of`, or the config is wrong.
    """
    server_of(ServeSettings.of(cfg)).run()
