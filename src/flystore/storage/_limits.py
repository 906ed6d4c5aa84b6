"""One way to refuse what would not fit, before anything is allocated."""

from flystore.model.errors import TooLarge


def human_bytes(n: int) -> str:
    """Return a size for people: ``"9.1 GiB"``."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            return f"{n} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.4g} EiB"


def require_below(nbytes: int, limit_bytes: int | None, what: str) -> None:
    """Raise `TooLarge` if `nbytes` is more than the limit; None means no limit."""
    if limit_bytes is not None and nbytes > limit_bytes:
        raise TooLarge(
            f"{what} needs {human_bytes(nbytes)} of memory; the limit is {human_bytes(limit_bytes)}. "
            f"Ask for a smaller slice, or in pieces.",
            wanted=nbytes,
            limit=limit_bytes,
        )
