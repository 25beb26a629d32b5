"""What every request passes: its key is looked at, its status is counted."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steer.serve.errors import Refusal
from steer.serve.keys import Keys
from steer.serve.metrics import Metrics
from steer.serve.settings import is_loopback

OPEN = "/health"


class Gate:
    """ASGI middleware around the whole app.

    Args:
        app: What is behind it.
        keys: Who may come in.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics) -> None:
        self.app, self.keys, self.metrics = app, keys, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # the client left before anything was said

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, counted)
            else:
                await refusal.response()(scope, receive, counted)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.requests.labels(_route(scope), status).inc()

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if scope["path"] == OPEN:
            return None
        if self.keys.anonymous:
            # A page of the web whose name was made to lead here is not this machine.
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            local = is_loopback(name)
            return None if local else Refusal(403, f"the host {host!r} is not this machine")
        if self.keys.fit(headers.get("authorization", "")):
            return None
        return Refusal(
            401, "no valid API key: send it as Authorization: Bearer KEY", code="invalid_api_key"
        )


def _route(scope: Scope) -> str:
    """The route's name: paths of clients' own making would fill the memory."""
    return getattr(scope.get("endpoint"), "__name__", "none")
