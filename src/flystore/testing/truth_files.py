"""The files of a `truth.Case`, as the detectors left them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import tifffile

from .truth import DATASET, HDF5, TIFF, Camera, Case, File


def half(file: File) -> int:
    """Return how many rows a growing file has while the run is read."""
    return min(file.rows // 2, file.length)


def steady_rows(camera: Camera, file: File, rows: int) -> int:
    """Return how many of a file's first rows count while its run goes on.

    A compressed chunk of several rows moves with each row that is written into it, unless it is written by SWMR; it
    counts when it is full.
    """
    several = int(camera.storage.get("chunk", 1))
    if camera.mimetype != HDF5 or several == 1 or not camera.storage.get("compression"):
        return rows
    written = max((row + 1 for row in range(rows) if file.has(row)), default=0) * camera.frames
    if rows == file.length and file.part_of_next:
        written = rows * camera.frames + file.part_of_next
    return written // several * several // camera.frames


def write_files(case: Case, number: int, root: Path, *, only_half: bool = False) -> None:
    """Write all files of a case; those of HDF5 that are there already are written on.

    HDF5 files are dated a minute ahead, as by a file server whose clock is: so they are young for as long as anyone
    looks.

    Parameters
    ----------
    number : int
        Of the run, see `truth.values`.
    root : Path
        Made if it is not there.
    only_half : bool
        Whether HDF5 files get only the first half of their rows now.
    """
    for camera, place, file in files_of(case):
        path = root / file.name
        if not file.there:
            continue
        if camera.mimetype == HDF5:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_hdf5(camera, place, file, number, path, half(file) if only_half else file.length)
        elif not path.exists():
            path.mkdir(parents=True)
            for row in range(file.length):
                _write_row(camera, place, file, number, path, row)


def files_of(case: Case) -> Iterator[tuple[Camera, int, File]]:
    for stream in case.streams.values():
        for camera in stream.cameras.values():
            for place, file in enumerate(camera.files):
                yield camera, place, file


def _write_hdf5(camera: Camera, place: int, file: File, number: int, path: Path, rows: int) -> None:
    flat = (-1, *camera.inner)
    with h5py.File(path, "a", libver="latest") as opened:
        if DATASET not in opened:
            _create(opened, camera, file)
        dataset = opened[DATASET]
        done = len(dataset) // camera.frames
        if camera.storage.get("contiguous"):
            done = 0
        else:
            dataset.resize(rows * camera.frames + (file.part_of_next if rows == file.length else 0), axis=0)
        for row in range(done, rows):
            if row not in file.unwritten:
                at = row * camera.frames
                dataset[at : at + camera.frames] = camera.value(number, place, row).reshape(flat)
        if file.part_of_next and rows == file.length:
            begun = camera.value(number, place, rows).reshape(flat)[: file.part_of_next]
            dataset[rows * camera.frames :] = begun
    ahead = time.time() + 60
    os.utime(path, (ahead, ahead))


def _create(opened: h5py.File, camera: Camera, file: File) -> None:
    if camera.storage.get("contiguous"):
        opened.create_dataset(DATASET, (file.length * camera.frames, *camera.inner), camera.dtype)
        return
    opened.create_dataset(
        DATASET,
        (0, *camera.inner),
        camera.dtype,
        maxshape=(None, *camera.inner),
        chunks=camera.chunk_shape,
        compression=camera.storage.get("compression"),
    )


def _write_row(camera: Camera, place: int, file: File, number: int, directory: Path, row: int) -> None:
    value = camera.value(number, place, row)
    one_file = camera.mimetype != TIFF or camera.form in ("flat", "pages")
    parts = [value] if one_file else list(value.reshape(camera.frames, *camera.inner))
    for n, part in enumerate(parts):
        if row in file.unwritten and n == len(parts) - 1:
            continue
        at = row * len(parts) + n
        if camera.mimetype == TIFF:
            tifffile.imwrite(directory / f"shot_{at:05d}.tiff", part, photometric="minisblack")
        else:
            np.save(directory / f"shot_{at}.npy", part)
