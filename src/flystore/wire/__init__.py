"""Transport: requests to a flystore (or Tiled) service, over sockets or inside the process.

What the room promises: one `Transport` protocol with two implementations that behave alike
(`HttpTransport`, `InProcessTransport`), failures as the classes of `flystore.model.errors` and
nothing else, array bodies landing in the caller's buffer without a stop on the way, and no retry of
anything that could change what is stored.
"""

from typing import TYPE_CHECKING, Any

from ._address import ServiceAddress, api_key_from_environment, parse_address
from ._answer import MSGPACK_MIMETYPE, Answer, Body, api_path, raise_for_error
from ._http import HttpTransport
from ._transport import Headers, Params, StreamedAnswer, Transport, Unpacking

if TYPE_CHECKING:
    from ._in_process import InProcessTransport

__all__ = [
    "MSGPACK_MIMETYPE",
    "Answer",
    "Body",
    "Headers",
    "HttpTransport",
    "InProcessTransport",
    "Params",
    "ServiceAddress",
    "StreamedAnswer",
    "Transport",
    "Unpacking",
    "api_key_from_environment",
    "api_path",
    "parse_address",
    "raise_for_error",
]


def __getattr__(name: str) -> Any:
    if name == "InProcessTransport":  # not before it is used: nobody else here needs asyncio, which takes a while
        from ._in_process import InProcessTransport

        return InProcessTransport
    raise AttributeError(f"module 'flystore.wire' has no attribute {name!r}")
