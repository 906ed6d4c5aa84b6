"""From a path to its route in a few look-ups, however many routes there are."""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

from .compression import Endpoint


class Dispatch:
    """Calls the endpoint of a request. What it does not find, the router redirects or refuses.

    Parameters
    ----------
    router : Router
        Of routes whose paths are fixed, or fixed up to one parameter ``{name:path}`` at their end.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._whole, self._begins = _by_path(router.routes)
        self._depths = sorted({prefix.count("/") for _, prefix in self._begins}, reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoint(scope) if scope["type"] == "http" else None
        if endpoint is None:
            await self._router(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

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


_Whole = dict[tuple[str, str], Endpoint]
_Begins = dict[tuple[str, str], tuple[Endpoint, str]]


def _by_path(routes: Iterable[BaseRoute]) -> tuple[_Whole, _Begins]:
    """Return endpoints by method and path, and with the name of their parameter by method and what is before it."""
    whole: _Whole = {}
    begins: _Begins = {}
    for route in routes:
        if not isinstance(route, Route):
            continue  # WebSockets are few, and left to the router
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
