"""Arrays as pictures: PNG for eyes, TIFF for values."""

from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from flystore.model.errors import Unsupported
from flystore.model.late import late

from .pieces import through_a_file
from .sources import ArraySource

tifffile = late("tifffile")

_COLOURS = (3, 4)
_FAINTEST, _BRIGHTEST = 1, 99  # percentiles that become black and white


def is_picture(source: ArraySource) -> bool:
    """Return whether an array is one grey or coloured picture."""
    return source.dtype.kind in "biuf" and _flat_shape(source.shape) is not None and 0 not in source.shape


def _flat_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of the picture in an array: its leading axes of length 1 do not count."""
    shape = (1,) * (2 - len(shape)) + tuple(shape)
    while len(shape) > 2 and shape[0] == 1 and not (len(shape) == 3 and shape[-1] in _COLOURS and shape[1] > 1):
        shape = shape[1:]
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] in _COLOURS):
        return shape
    return None


def _unfit(source: ArraySource, format_: str) -> Unsupported:
    return Unsupported(
        f"The shape of this data {source.shape} or its type {source.dtype} is incompatible with the requested format "
        f"({format_}). Slice it or choose a different format.",
        shape=list(source.shape),
    )


def png(source: ArraySource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield an 8-bit picture: grey from black at the 1st percentile to white at the 99th, NaN black.

    Colours in 8 bits are left as they are; other colours are scaled as grey is.

    Raises
    ------
    Unsupported
        If the array has not the shape of one picture, or no numbers.
    """
    if not is_picture(source):
        raise _unfit(source, "image/png")
    return through_a_file(lambda file: _write_png(source, file))


def _write_png(source: ArraySource, file: IO[bytes]) -> None:
    from PIL import Image  # not before the first picture: it takes a while

    shape = _flat_shape(source.shape)
    assert shape is not None
    values = source.whole().reshape(shape)
    shown = values if len(shape) == 3 and values.dtype == np.uint8 else _scaled(values)
    Image.fromarray(np.ascontiguousarray(shown)).save(file, format="png")


def _scaled(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(finite, (_FAINTEST, _BRIGHTEST))
    if not high > low:
        low, high = float(finite.min()), float(finite.max())
    span = np.float32(high) - np.float32(low)
    if not span > 0:
        return np.zeros(values.shape, np.uint8)
    shown = np.clip((np.nan_to_num(values, nan=low) - np.float32(low)) / span, 0, 1)
    return np.rint(shown * 255).astype(np.uint8)


def tiff(source: ArraySource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the values as they are: a picture, or a stack of them; truth values as 0 and 1 of 8 bits.

    Raises
    ------
    Unsupported
        With more than four axes, without values, or if its items are no numbers.
    """
    if len(source.shape) > 4 or 0 in source.shape or source.dtype.kind not in "biufc" or source.dtype.itemsize > 16:
        raise _unfit(source, "image/tiff")
    return through_a_file(lambda file: _write_tiff(source, file))


def _write_tiff(source: ArraySource, file: IO[bytes]) -> None:
    shape = (1,) * (2 - len(source.shape)) + tuple(source.shape)
    coloured = len(shape) > 2 and shape[-1] in _COLOURS and source.dtype in (np.uint8, np.uint16)
    settings: dict[str, Any] = {"photometric": "rgb" if coloured else "minisblack"}
    dtype = np.dtype(np.uint8) if source.dtype.kind == "b" else source.dtype.newbyteorder("=")
    with tifffile.TiffWriter(tifffile.FileHandle(file, mode="wb", name="export.tif")) as writer:
        if len(source.shape) < 3 or coloured:
            writer.write(source.whole().reshape(shape).astype(dtype, copy=False), **settings)
            return
        pages = (frame.astype(dtype, copy=False) for piece in source.read() for frame in _frames(piece))
        writer.write(pages, shape=shape, dtype=dtype, **settings)


def _frames(piece: np.ndarray) -> Iterator[np.ndarray]:
    yield from piece.reshape(-1, *piece.shape[-2:])
