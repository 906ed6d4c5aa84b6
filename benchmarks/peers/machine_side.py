"""The floors: the same bytes with h5py, and over a socket without any service."""

import os
import socket
import time
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from .tasks import expect, expect_frames, slices_of, touch


class Tasks:
    """What needs no service."""

    def make_frames(self, file: str, name: str, frames: int, shape: list[int], compressed: bool) -> int:
        """Write frames of a detector, one a chunk, noise with a bright spot; return the bytes of the file.

        Pixels [0, 0] and [100, 100] of frame k are k.
        """
        drawn = np.random.default_rng(1)
        y, x = np.ogrid[: shape[0], : shape[1]]
        spot = 200 * np.exp(-((y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2) / (2 * (shape[0] / 16) ** 2))
        # A few patterns in turn: drawing a gigabyte would take longer than measuring it.
        patterns = [drawn.poisson(10 + spot).astype(np.uint16) for _ in range(min(frames, 32))]
        how: Any = hdf5plugin.Blosc(cname="lz4") if compressed else {}
        with h5py.File(file, "w", libver="latest") as opened:
            data = opened.create_dataset(name, (frames, *shape), np.uint16, chunks=(1, *shape), **how)
            for number in range(frames):
                frame = patterns[number % len(patterns)]
                frame[0, 0] = frame[100, 100] = number
                data[number] = frame
        return os.path.getsize(file)

    def make_small_frames(self, file: str, names: list[str], frames: int, shape: list[int]) -> None:
        """Write datasets of small frames."""
        values = np.arange(frames * int(np.prod(shape))).reshape(frames, *shape).astype(np.uint16)
        with h5py.File(file, "w") as opened:
            for name in names:
                opened.create_dataset(name, data=values, chunks=(frames, *shape))

    def touch(self, nbytes: int) -> None:
        touch(nbytes)

    def bring_in(self, file: str) -> None:
        """Read a file through, so that it is in the page cache, which virtual machines may take back as well."""
        piece = bytearray(1 << 20)
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(piece):
                pass

    def read_file(self, file: str, name: str, cut: list[list[int | None]]) -> dict[str, float]:
        """Open a file and read part of a dataset with h5py."""
        slices = slices_of(cut)
        began = time.perf_counter()
        with h5py.File(file) as opened:
            found = opened[name][slices]
            frames = opened[name].shape[0]
        seconds = time.perf_counter() - began
        expect_frames(found, frames, slices)
        return {"seconds": seconds, "bytes": found.nbytes}

    def read_file_frames(self, file: str, name: str, numbers: list[int]) -> dict[str, list[float]]:
        """Read single frames with h5py from a file that stays open."""
        took = []
        with h5py.File(file) as opened:
            data = opened[name]
            for number in numbers:
                began = time.perf_counter()
                frame = data[number]
                took.append(time.perf_counter() - began)
                expect(int(frame[0, 0]) == number, f"frame {number}")
        return {"took": took}

    def print_table(self, rows: int, columns: int) -> dict[str, float]:
        """Print the table of a long run with Arrow: its numbers, and a time for each, the same in all of a row."""
        import pyarrow as pa
        import pyarrow.csv

        number, now = np.arange(1, rows + 1), time.time() + np.arange(rows) * 1.237e-5
        found: dict[str, Any] = {"seq_num": number, "time": now}
        for column in range(columns):
            found |= {f"c{column}": number + column * 0.25, f"ts_c{column}": now}
        table, sink = pa.table(found), pa.BufferOutputStream()
        began = time.perf_counter()
        pyarrow.csv.write_csv(table, sink)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "bytes": sink.getvalue().size}

    def send_file(self, file: str) -> dict[str, float]:
        """Send a file through a TCP connection of this host into a new buffer: sendfile and recv_into."""
        listener = socket.create_server(("127.0.0.1", 0))
        size = os.path.getsize(file)
        sender = os.fork()
        if sender == 0:
            with socket.create_connection(listener.getsockname()) as link, open(file, "rb") as source:
                link.recv(1)
                link.sendfile(source)
            os._exit(0)
        connection, _ = listener.accept()
        with listener, connection:
            began = time.perf_counter()
            connection.sendall(b"g")
            view = memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]
            done = 0
            while done < size:
                got = connection.recv_into(view[done:])
                if not got:
                    raise RuntimeError("the sender ended early")
                done += got
            seconds = time.perf_counter() - began
        os.waitpid(sender, 0)
        return {"seconds": seconds, "bytes": size}
