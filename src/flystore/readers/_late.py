"""The libraries of file formats, loaded when the first file of one is read."""

from typing import TYPE_CHECKING

from flystore.model.late import late

__all__ = ["blosc", "h5py", "lz4", "numcodecs", "tifffile"]

if TYPE_CHECKING:
    import h5py
    import numcodecs
    import tifffile
    from numcodecs import blosc, lz4
else:
    h5py = late("h5py")
    numcodecs = late("numcodecs", "numcodecs.fletcher32", "numcodecs.jenkins")
    blosc = late("numcodecs.blosc")
    lz4 = late("numcodecs.lz4")
    tifffile = late("tifffile")
