"""From a path to its route in a few look-ups, however many routes there are."""

from collections.abc import Awaitable, Callable, Iterable, Mapping

from starlette.requests import Request
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from flystore.model.errors import NotFound, NotPermitted

from .compression import Endpoint
from .failures import answer

SocketEndpoint = Callable[[WebSocket], Awaitable[None]]


class Dispatch:
    """Calls the endpoint of a request. What it does not find, the router redirects or refuses.

    Parameters
    ----------
    router : Router
        Of routes whose paths are fixed, or fixed up to one parameter ``{name:path}`` at their end.
    sockets : mapping of str to endpoint
        What answers WebSockets, by what their paths begin with; what follows is the parameter ``path``.
    """

    def __init__(self, router: Router, sockets: Mapping[str, SocketEndpoint] | None = None) -> None:
        self._router = router
        self._sockets = sockets or {}
        self._whole, self._begins = _by_path(router.routes)
        self._depths = sorted({prefix.count("/") for _, prefix in self._begins}, reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._answer_socket(WebSocket(scope, receive, send))
            return
        endpoint = self._endpoint(scope) if scope["type"] == "http" else None
        if endpoint is None:
            await self._router(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer_socket(self, socket: WebSocket) -> None:
        if not _is_welcome(socket):
            await socket.send_denial_response(answer(_foreign(socket.headers["origin"])))
            return
        path = socket.scope["path"].removeprefix(socket.scope.get("root_path") or "")
        for prefix, endpoint in self._sockets.items():
            if path.startswith(prefix):
                socket.scope["path_params"] = {"path": path.removeprefix(prefix)}
                await endpoint(socket)
                return
        await socket.send_denial_response(answer(NotFound(f"there is no WebSocket at {path}")))

    def _endpoint(self, scope: Scope) -> Endpoint | None:
        if scope.get("root_path"):
            return None  # the router knows what of the path is before it
        path, method = scope["path"], scope["method"]
        endpoint = self._whole.get((method, path))
        if endpoint is not None:
            scope["path_params"] = {}
            return endpoint
        parts = path.split("/", self._depths[0])
        for depth in self._depths:
            if len(parts) <= depth:
                continue
            prefix = "/".join(parts[:depth]) + "/"
            found = self._begins.get((method, prefix))
            if found is not None:
                endpoint, name = found
                scope["path_params"] = {name: path[len(prefix) :]}
                return endpoint
        return None


def _is_welcome(socket: WebSocket) -> bool:
    """Return whether a WebSocket is asked for by a program, by a page of this service, or by one that is allowed.

    What keeps answers from pages of other origins does not keep messages from them, and cookies come along.
    """
    origin = socket.headers.get("origin")
    if origin is None or origin in socket.app.state.origins:
        return True
    return origin.partition("://")[2].lower() == socket.headers.get("host", "").lower()


def _foreign(origin: str) -> NotPermitted:
    return NotPermitted(
        f"pages of {origin[:200]} may not open a WebSocket here. Start the service with --allow-origin {origin[:200]}",
        origin=origin[:200],
    )


_Whole = dict[tuple[str, str], Endpoint]
_Begins = dict[tuple[str, str], tuple[Endpoint, str]]


def _by_path(routes: Iterable[BaseRoute]) -> tuple[_Whole, _Begins]:
    """Return endpoints by method and path, and with the name of their parameter by method and what is before it."""
    whole: _Whole = {}
    begins: _Begins = {}
    for route in routes:
        assert isinstance(route, Route)
        prefix, parameter, rest = route.path.partition("{")
        name, _, kind = rest.partition(":")
        assert not parameter or (kind == "path}" and prefix.endswith("/"))
        for method in route.methods or ():
            # The first one is taken, as a router does.
            if parameter:
                begins.setdefault((method, prefix), (route.endpoint, name))
            else:
                whole.setdefault((method, prefix), route.endpoint)
    return whole, begins
