"""What one request, one connection and all of them together may cost: named settings with their defaults."""

import re
from collections.abc import Iterable
from typing import Any, Self

import msgspec

from flystore.model.errors import Misconfigured
from flystore.storage import memory_of_this_machine

MIB = 1 << 20
SPARE_DESCRIPTORS = 500
"""Open files of a process beside its connections."""

_MOST_BUDGET = 4096 * MIB
_FACTORS = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_MAY_BE_ZERO = frozenset({"memory_bytes", "silence_seconds", "compress_bytes"})
_VALUE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request may cost; set with ``flystore serve --limit NAME=VALUE``.

    A request that exceeds a size is refused with a 4xx of kind ``too-large`` before anything is read or allocated.

    Attributes
    ----------
    response_bytes : int
        Decoded size of an array or table in one answer. Stock clients stay below 100 MiB.
    body_bytes : int
        Size of a posted body of data or documents.
    json_bytes : int
        Size of a posted body of metadata.
    inflated_bytes : int
        Size of a posted Arrow body after decompression.
    memory_bytes : int
        What all requests under way may hold together. 0: a third of the memory of the machine or container,
        at most 4 GiB.
    batch_documents : int
        Documents in one ingest batch.
    query_terms : int
        Filters, words, spec names, sort keys and keys to list the values of, in one request.
    query_values : int
        Values in all lists of the filters of one request.
    selection_steps : int
        Steps of evaluating ``select_metadata`` and values it may give, in one request.
    head_bytes : int
        URL and headers of a request.
    head_seconds : float
        From the connection, or the first byte of a further request, to the last header.
    patience_seconds : float
        How long a body, or the taking of an answer, may stand still at first.
    slowest_rate : int
        Bytes/s that a body must arrive with, and an answer be taken with, on the whole; beyond `patience_seconds`.
    connections : int
        Open at once; further ones are answered 503.
    followers : int
        Of these, who follow what happens and stay for it; further ones are answered 503, so that writers and readers
        find room beside them.
    silence_seconds : float
        An open run not heard of for so long is shown as interrupted. Nothing is refused.
    compress_bytes : int
        Answers from this size on are compressed for callers that take it; arrays and tables not for those to whom the
        network is faster than the compression. 0: none is. Nothing is refused.
    """

    response_bytes: int = 300 * MIB
    body_bytes: int = 256 * MIB
    json_bytes: int = 64 * MIB
    inflated_bytes: int = 512 * MIB
    memory_bytes: int = 0
    batch_documents: int = 100_000
    query_terms: int = 100
    query_values: int = 20_000
    selection_steps: int = 200_000
    head_bytes: int = 64 << 10
    head_seconds: float = 20.0
    patience_seconds: float = 30.0
    slowest_rate: int = 1024
    connections: int = 4000
    followers: int = 2000
    silence_seconds: float = 600.0
    compress_bytes: int = 1000

    @property
    def budget_bytes(self) -> int:
        """`memory_bytes`, worked out where it is 0."""
        return self.memory_bytes or min(memory_of_this_machine() // 3, _MOST_BUDGET)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Read settings such as ``response_bytes=32MiB``; those not named keep their defaults.

        Raises
        ------
        Misconfigured
            If there is no such limit, or the value is none; says which there are.
        """
        given: dict[str, Any] = {}
        for text in texts:
            name = text.partition("=")[0]
            if name not in cls.__struct_fields__:
                raise Misconfigured(
                    f"--limit {text!r}: there is no limit {name!r}; there are {', '.join(cls.__struct_fields__)}"
                )
            given[name] = _number(text, cls.__annotations__[name])
        return cls(**given)


def _number(text: str, kind: type) -> int | float:
    name, _, value = text.partition("=")
    match = _VALUE.fullmatch(value.strip())
    factor = _FACTORS.get(match[2].lower()) if match is not None else None
    if match is None or factor is None or (kind is float and match[2]):
        example = "20.5" if kind is float else "32MiB or 1000"
        raise Misconfigured(f"--limit {text!r} is not NAME=NUMBER; for example {name}={example}")
    number = float(match[1]) * factor
    if number == 0 and name not in _MAY_BE_ZERO:
        raise Misconfigured(f"--limit {text!r}: with 0 nothing could be done")
    return number if kind is float else int(number)
