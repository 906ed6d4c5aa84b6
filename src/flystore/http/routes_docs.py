"""The description of all routes, for programs and for people (protocol section 14); anybody may read it."""

from functools import lru_cache

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from .negotiation import json_response
from .openapi import document
from .openapi.page import page, policy


async def openapi(request: Request) -> Response:
    return json_response(_document(_root(request)))


async def docs(request: Request) -> Response:
    return HTMLResponse(_page(_root(request)), headers={"content-security-policy": policy()})


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/")


@lru_cache(4)
def _document(root_path: str) -> dict[str, object]:
    return document(root_path)


@lru_cache(4)
def _page(root_path: str) -> str:
    return page(_document(root_path), root_path)
