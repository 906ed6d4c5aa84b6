"""Connections: how long and how large a request's head may be, and how slowly an answer may be taken.

uvicorn closes connections that idle between requests; it waits for ever for the rest of a head, lets headers grow
without end, and for ever for a client that takes no answer. Each of those holds a descriptor, and the last one memory.
"""

from asyncio import Transport
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flystore.service import Limits

from .file_runs import can_send_files, offering

_SAID_BYTES = 64 << 10
"""Of a message that a subscriber sends; none has much to say."""

_LOOK_SECONDS = 1.0
"""How often a client that is behind in taking an answer is looked at, at most."""


def server_settings(limits: Limits) -> dict[str, Any]:
    """Return the settings of `uvicorn.Config` that keep connections within `limits`."""
    protocol = type("LimitedProtocol", (_Limited,), {"limits": limits})
    return {
        "http": protocol,
        "ws": partial(_socket, limits),
        "ws_max_size": _SAID_BYTES,
        "ws_per_message_deflate": False,  # a state for each subscriber, for messages of a hundred bytes
        "limit_concurrency": limits.connections,
    }


def _socket(limits: Limits, **settings: Any) -> Any:
    """Return the protocol of a WebSocket; loaded for the first one."""
    from .sockets import limited_socket

    return limited_socket(limits, **settings)


class _Limited(HttpToolsProtocol):
    limits: Limits
    _head_timer: Any = None
    _rest_timer: Any = None
    _slow_timer: Any = None
    _head_bytes = 0
    _in_head = True
    _in_message = False
    _begun = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if can_send_files(transport):
            self.app = offering(self.app, self)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    # --- the head: URL and headers

    def data_received(self, data: bytes) -> None:
        between, begun = not self._in_head and not self._in_message, self._begun
        super().data_received(data)
        if self.transport.is_closing():
            return
        if between and self._begun == begun:  # empty lines before a request, which uvicorn takes for a sign of life
            self._begin_head()
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(431, f"URL and headers exceed {self.limits.head_bytes} bytes", "too-large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = True
        self._begun += 1
        if not self._in_head:  # the time of a first head runs since the connection
            self._begin_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._cancel("_head_timer")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        self._cancel("_rest_timer")
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not an HTTP request that can be understood here", "invalid-request")

    def _begin_head(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._cancel("_head_timer")
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._begin_head()  # a request sent ahead, which is not read on while another is answered
        elif self._head_bytes:
            self._refuse(408, f"URL and headers took more than {self.limits.head_seconds} s", "invalid-request")
        else:
            self.transport.abort()

    def _refuse(self, status: int, why: str, kind: str) -> None:
        """Answer a request that never came to the application, and end the connection."""
        self._stop_timers()
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # an answer here would be taken for bytes of the one that is being sent
            self._watch_closing()
            return
        error = {"detail": why, "error": {"kind": kind, "message": why, "facts": {}}}
        body = msgspec.json.encode(error)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()
        self._watch_closing()

    # --- the rest: of a body that was not wanted, of an answer that is not taken

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message:
            self._cancel("_rest_timer")
            self._rest_timer = self.loop.call_later(self.limits.patience_seconds, self.transport.abort)
        self._watch_closing()

    def _watch_closing(self) -> None:
        # Less than would pause the application, but closing waits for it all the same.
        if self._slow_timer is None and self.transport.get_write_buffer_size():
            self._watch_from_now()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_from_now()

    def resume_writing(self) -> None:
        self._cancel("_slow_timer")
        super().resume_writing()

    def _watch_from_now(self) -> None:
        self._watch(self.transport.get_write_buffer_size(), self.loop.time() + self.limits.patience_seconds)

    def _watch(self, before: int, deadline: float) -> None:
        """Look again soon; bytes taken since put the deadline off by the time they may take."""
        self._cancel("_slow_timer")
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            return
        now = self.loop.time()
        # Somebody who was quick for long has not earned hours of standing still.
        earned = max(0, before - waiting) / self.limits.slowest_rate
        deadline = min(deadline + earned, now + self.limits.patience_seconds)
        if now >= deadline:
            self.transport.abort()  # closing would wait for the client as well
            return
        self._slow_timer = self.loop.call_later(min(_LOOK_SECONDS, deadline - now), self._watch, waiting, deadline)

    def _stop_timers(self) -> None:
        for name in ("_head_timer", "_rest_timer", "_slow_timer"):
            self._cancel(name)

    def _cancel(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)
