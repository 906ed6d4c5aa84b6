r"""From the names in documents to path segments and columns. This is on-disk layout: it never changes.

Most names stay as they are. The others:

1. *Escaping* (`segment`), for any name. ``~``, ``/``, ``\``, ``%``, ``?``, ``#`` and control characters become
   ``~XX``, two upper-case hexadecimal digits for each byte of their UTF-8 form. So does U+10FFFF at the beginning:
   the catalogue takes no key that sorts after all others. The names ``.`` and ``..``
   become ``~2E`` and ``~2E~2E``; the empty name becomes ``~``.
2. *Reserved* data keys: ``time`` becomes ``time_`` and ``seq_num`` becomes ``seq_num_``, as TiledWriter has it.
3. *Collisions* (`claim`), among the data keys of one stream. A data key ``x`` claims the names ``x`` and
   ``ts_x``; ``seq_num``, ``time``, ``internal`` and ``internal_<n>`` are claimed from the start. Names count as
   equal if they differ only in case. Who comes later gets the suffix ``~~2``, ``~~3`` and so on.

Escaping is injective, and no escaped name contains ``~~``, so the whole mapping is injective and
`unescape` leads back from a segment.
"""

import re

RESERVED = {"time": "time_", "seq_num": "seq_num_"}
CLAIMED = frozenset({"seq_num", "time", "internal"})
_UNSAFE = re.compile(r"[~/\\%?#\x00-\x1f\x7f\ud800-\udfff]|\A\U0010ffff")
_ESCAPE = re.compile(rb"~([0-9A-F]{2})")
_TABLE_PART = re.compile(r"internal_[0-9]+")


def segment(name: str) -> str:
    """Return the path segment of a run uid, stream or data key.

    Examples
    --------
    >>> segment("det"), segment("a/b"), segment(""), segment("..")
    ('det', 'a~2Fb', '~', '~2E~2E')
    """
    if name == "":
        return "~"
    if name in (".", ".."):
        return "~2E" * len(name)
    return _UNSAFE.sub(_escaped, name)


def _escaped(found: re.Match[str]) -> str:
    # Lone surrogates cannot be stored as UTF-8; surrogatepass keeps them apart from each other.
    return "".join(f"~{byte:02X}" for byte in found.group().encode("utf-8", "surrogatepass"))


def unescape(name: str) -> str:
    """Return the name that `segment` was given; a collision suffix is taken off first.

    Examples
    --------
    >>> unescape("a~2Fb~~2")
    'a/b'
    """
    name = name.split("~~")[0]
    if name == "~":
        return ""
    raw = _ESCAPE.sub(lambda found: bytes([int(found.group(1), 16)]), name.encode())
    return raw.decode("utf-8", "surrogatepass")


def claim(key: str, taken: set[str]) -> str:
    """Return the stored name of a data key, and add what it claims to `taken` (case-folded names)."""
    wanted = segment(RESERVED.get(key, key))
    name, attempt = wanted, 1
    while not _free(name, taken):
        attempt += 1
        name = f"{wanted}~~{attempt}"
    taken.add(name.casefold())
    taken.add(f"ts_{name}".casefold())
    return name


def _free(name: str, taken: set[str]) -> bool:
    folded = name.casefold()
    if folded in CLAIMED or _TABLE_PART.fullmatch(folded):
        return False
    return folded not in taken and f"ts_{folded}" not in taken


def by_claim(keys: list[str]) -> list[str]:
    """Return `keys` in the order in which they claim: who keeps its own name first, reserved names last."""
    return sorted(keys, key=lambda key: key in RESERVED)
