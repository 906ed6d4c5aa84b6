"""Tiled's streams: a WebSocket that tells what is written to a node, from any number on."""

import asyncio
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect

from flystore.catalog import Node
from flystore.model.errors import FlystoreError, InvalidRequest
from flystore.model.structures import DataSource, Family
from flystore.service import Service
from flystore.service.streaming import Message, Stream, as_json
from flystore.service.waking import Follower

from .parameters import integer
from .pushing import PLACE, stop_when_gone
from .resources import data_source_to_wire, path_of, url_path
from .routes_feed import BEAT_SECONDS, BROKEN, refuse

BAD_MESSAGE = 4001
REJECTED = 4003
ENDED = "Producer ended stream"
_NEEDED = frozenset(("read:data", "read:metadata"))
_FORMATS = ("json", "msgpack")


async def stream_socket(socket: WebSocket) -> None:
    """``WS /stream/single/{path}?start=&envelope_format=``: a schema, then each update."""
    service: Service = socket.app.state.service
    try:
        held = socket.app.state.access.scopes(socket)
        form = socket.query_params.get("envelope_format", "json")
        if form not in _FORMATS:
            raise InvalidRequest(f"envelope_format={form!r} is unknown; there are {list(_FORMATS)}", status=400)
        service.following.waking.require_room()
        start = integer(socket, "start")
        stream = None
        if held:
            socket.app.state.access.require(socket, *_NEEDED)
            stream = await run_in_threadpool(service.streaming.open, path_of(socket), start)
    except FlystoreError as error:
        await refuse(socket, error)
        return
    await socket.accept()
    if stream is None:
        stream = await _introduced(socket, service, start)
        if stream is None:
            return
    send = _Sending(socket, stream.node, form)
    with service.following.waking.follower(stream.topic) as follower:
        gone = asyncio.ensure_future(stop_when_gone(follower, socket.receive, "websocket.disconnect"))
        try:
            await send.schema()
            ended = await _told(service, stream, follower, send)
            if not gone.done():
                await socket.close(*((1000, ENDED) if ended else (1012, "the service ends")))
        except FlystoreError as error:
            if not gone.done():
                await socket.close(BROKEN, f"{error.kind}; subscribe again"[:120])
        except (WebSocketDisconnect, RuntimeError):
            if not gone.done():
                raise
        finally:
            gone.cancel()


async def _told(service: Service, stream: Stream, follower: Follower, send: "_Sending") -> bool:
    """Send updates until there will be no more, which is told, or nobody is there to send them to."""
    while not follower.ended:
        mark = follower.mark
        page = await run_in_threadpool(service.streaming.page, stream)
        for message in page.found:
            await send(message)
        if page.ended:
            return True
        if not page.more:
            await follower.wait(mark, BEAT_SECONDS)  # a node that goes with its container tells of nothing
    return False


async def _introduced(socket: WebSocket, service: Service, start: int | None) -> Stream | None:
    """Return the stream once the first message brought a key; None where it did not, and the connection is closed."""
    try:
        patience = service.limits.patience_seconds
        said = await asyncio.wait_for(socket.receive(), patience)
        if said["type"] == "websocket.disconnect":
            return None
        key = _decode_introduction(said.get("text") or said.get("bytes") or b"").api_key
    except (TimeoutError, msgspec.DecodeError, RecursionError):  # the last of brackets within brackets
        await socket.close(BAD_MESSAGE, 'the first message must be {"type": "auth", "api_key": …}')
        return None
    if not socket.app.state.access.knows(key):
        await socket.close(REJECTED, "Invalid API key")
        return None
    try:
        return await run_in_threadpool(service.streaming.open, path_of(socket), start)
    except FlystoreError as error:
        await socket.close(BAD_MESSAGE, error.message[:120])
        return None


class _Introduction(msgspec.Struct, tag_field="type", tag="auth"):
    api_key: str


_decode_introduction = msgspec.json.Decoder(_Introduction).decode


class _Sending:
    """Puts messages into the envelope that the client wants."""

    def __init__(self, socket: WebSocket, node: Node, form: str) -> None:
        self._socket = socket
        self._node = node
        self._binary = form == "msgpack"
        scheme = "https" if socket.url.scheme == "wss" else "http"
        root = socket.scope.get("root_path", "")
        self._array = f"{scheme}://{socket.url.netloc}{root}/api/v1/array/full/{url_path(node.path)}"

    async def schema(self) -> None:
        node, structure = self._node, self._node.structure or {}
        body: dict[str, Any] = {"type": f"{node.family}-schema", "version": 1}
        if node.family is Family.ARRAY:
            body["data_type"] = structure["data_type"]
        elif node.family is Family.TABLE:
            body["arrow_schema"] = structure["arrow_schema"]
        await self._send(body)

    async def __call__(self, message: Message) -> None:
        body = dict(message.body)
        if "uri" in body:
            shape = (body["patch"] or body)["shape"]
            # With it, rows that are still being written are no shorter answer but one to be asked for again.
            expected = ",".join(map(str, shape)) or "scalar"
            body["uri"] = f"{self._array}?slice={body['uri']}&expected_shape={expected}"
            body["data_source"] = _source(body["data_source"])
        if "data_sources" in body:
            body["data_sources"] = [_source(source) for source in body["data_sources"]]
        if message.payload is not None:
            body["payload"] = message.payload
            if not self._binary:
                body["payload"] = msgspec.Raw(await run_in_threadpool(as_json, self._node, message))
                body["content-type"] = "application/json"
        await self._send(body)
        self._socket.scope[PLACE] = f"start={message.sequence + 1}"

    async def _send(self, body: dict[str, Any]) -> None:
        if self._binary:
            await self._socket.send_bytes(msgspec.msgpack.encode(body))
        else:
            await self._socket.send_text(msgspec.json.encode(body).decode())


def _source(source: DataSource) -> dict[str, Any]:
    """Return a data source with a number for each asset: stock clients drop a message without."""
    told = data_source_to_wire(source)
    told["assets"] = [{**asset, "num": asset["num"] or 0} for asset in told["assets"]]
    return told
