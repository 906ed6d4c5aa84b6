"""What a plain install leaves out, and the sentence that says how to get it."""

from collections.abc import Iterator
from contextlib import contextmanager

from flystore.model.errors import Misconfigured

_SERVER_PARTS = frozenset(
    ["starlette", "uvicorn", "sqlalchemy", "h5py", "numcodecs", "zarr", "tifffile", "zstandard", "jmespath"]
)


@contextmanager
def needing_server_parts(what: str) -> Iterator[None]:
    """Turn the failed import of a part that ``flystore[server]`` brings into a sentence.

    Parameters
    ----------
    what : str
        What needs it, as the subject of the sentence.

    Raises
    ------
    Misconfigured
        If a part is not installed; carries `missing`, its name.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SERVER_PARTS:
            raise
        raise Misconfigured(
            f"{what} needs parts that a plain install leaves out; get them with: pip install 'flystore[server]'",
            missing=error.name,
        ) from error
