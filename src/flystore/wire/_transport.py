"""The protocol that every way of reaching a service keeps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from ._answer import Answer

Params = Mapping[str, Any] | Sequence[tuple[str, Any]]
"""Query parameters; a list value repeats the name, None leaves it out."""

Headers = Mapping[str, str]


def _nothing() -> None:
    """Do nothing: an answer that does not wait needs no end."""


class StreamedAnswer(NamedTuple):
    """An answer whose body is still arriving.

    Attributes
    ----------
    status : int
    headers : Mapping
        Names in lower case.
    chunks : iterator of bytes
        The body in pieces of any size; only valid inside the ``with`` block.
    abort : callable
        Ends a wait for the next piece, from another thread: the wait raises `Unavailable`.
    """

    status: int
    headers: Headers
    chunks: Iterator[bytes]
    abort: Callable[[], None] = _nothing


class Unpacking(Protocol):
    """Decodes a body that came encoded, as it arrives, to where its bytes belong; left, nothing of it goes on.

    Attributes
    ----------
    coding : str
        The name in Content-Encoding of what it decodes.
    """

    coding: str

    def __enter__(self) -> "Unpacking": ...

    def __exit__(self, *_: Any) -> None: ...

    def room(self) -> memoryview:
        """Return where some of the next bytes of the body are to be put; not empty."""
        ...

    def add(self, count: int) -> None:
        """Take so many that were put there. What it raises ends the request, and is not repeated."""
        ...

    def filled(self) -> int:
        """Return how many bytes are where they belong, when all that came before is."""
        ...


class Transport(Protocol):
    """Sends requests to one service, from any number of threads at once.

    Guarantees
    ----------
    errors      an answer of 400 or above is raised as an error of `flystore.model.errors`: by its
                `kind` where the body names one, else by its status. What is returned is a success.
    unreachable no answer is `Unavailable`, and one that came too late is `DeadlineExceeded`; both name
                the service and what to do.
    retries     a GET may be repeated a few times; anything else is sent at most once.
    whole       a body that ends early is never returned as if it were whole.
    """

    @property
    def where(self) -> str:
        """The service in words, for messages: its base URL, or the directory of a store."""
        ...

    @property
    def base_url(self) -> str:
        """URL in front of `path`, without a trailing slash."""
        ...

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Send a request and return its whole answer.

        Parameters
        ----------
        path : str
            From the service's root, percent-encoded: ``/api/v1/metadata/a%20b`` (see `api_path`).
        timeout : float, optional
            Seconds without any sign of the service; None takes the transport's own.
        """
        ...

    def readinto(
        self,
        method: str,
        path: str,
        into: memoryview,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
        unpacking: Callable[[memoryview], Unpacking] | None = None,
    ) -> Answer:
        """Send a request and read the answer's body straight into `into`.

        Parameters
        ----------
        into : memoryview
            Writable, contiguous, of bytes; its length is the length expected. After an error its content
            is undefined, but for what the error says of it.
        unpacking : callable, optional
            Called with `into` if the body is encoded after all, which services may then do where it costs them
            nothing. With none, and in process, it never is.

        Returns
        -------
        Answer
            With an empty body.

        Raises
        ------
        Conflict
            If the body is longer or shorter than `into`: what is there has changed since its size was
            learnt. Carries `expected` and `found`, in bytes.
        Unavailable
            If the connection broke within a long body; carries `filled`, how many bytes of `into` are right.
        """
        ...

    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
    ) -> AbstractContextManager[StreamedAnswer]:
        """Send a request and hand out its body as it arrives; nothing is repeated."""
        ...

    def close(self) -> None:
        """Give back connections, threads and loops. Closing twice is harmless."""
        ...
