"""Short parts of arrays, read on the event loop: handing one over to a thread and back takes longer than reading it.

It is the same reading as in `flystore.service.arrays`, with the same looks at the files, within bounds: the catalogue
is as it was when the array was looked up, the file was opened before and lies on a disk of this machine, its chunk
index is known, the bytes are in memory, few, and not packed by a slow codec. What is not certain, and whatever goes
wrong, is `NotAtOnce`: then the part is read in a thread, which says what is wrong.
"""

from flystore.catalog import NotAtOnce
from flystore.model.errors import FlystoreError
from flystore.model.structures import Family
from flystore.readers import SHORT_BYTES
from flystore.storage import NearNames, NearRoots, Roots, WouldWait, reserved_at_once

from .changed import WatchedRoots
from .parts import Index, as_bytes, planned_part
from .probing import Prober
from .sighted import Sight

_WORKING = 3  # a chunk as stored, between two filters, and decoded


class ShortReads:
    """Reads at once what can be.

    Parameters
    ----------
    near : NearNames
        Names of files that were opened before; whoever reads in threads adds to it.
    """

    def __init__(self, prober: Prober, roots: Roots, near: NearNames, response_bytes: int) -> None:
        self._prober = prober
        self._roots = roots
        self._near = near
        self._response_bytes = response_bytes

    def read(
        self,
        sight: Sight,
        wanted: tuple[Index, ...] = (),
        *,
        block: tuple[int, ...] | None = None,
        expected_shape: tuple[int, ...] | None = None,
    ) -> memoryview:
        """Return what `Arrays.read` or `Arrays.read_block` would.

        Parameters
        ----------
        sight : Sight
            Seen just now.

        Raises
        ------
        NotAtOnce
            If it is not certain that this is quick; ask `Arrays.body` in a thread.
        """
        entry = sight.entry
        if entry.family is not Family.ARRAY or entry.node is None or entry.node.external is None:
            raise NotAtOnce("it is no array, or its files were registered")
        if self._prober.is_stale(entry.node, sight.source, entry.observation, sight):
            raise NotAtOnce("its files are to be looked at first")
        try:
            planned = planned_part(entry, sight.structure, wanted, block, expected_shape)
            if not 0 < planned.nbytes <= min(SHORT_BYTES, self._response_bytes):
                raise NotAtOnce("it is long, or nothing")
            roots = _NearRoots(self._roots, self._near)
            with reserved_at_once(2 * planned.nbytes, _WORKING * SHORT_BYTES, "this part"):
                return as_bytes(sight.files.read_short(planned.picked, sight.structure.shape[0], roots))
        except (WouldWait, FlystoreError) as error:
            raise NotAtOnce(str(error)) from error


class _NearRoots(WatchedRoots, NearRoots):
    """Opens what is near, and remembers what it opened."""

    def __init__(self, roots: Roots, near: NearNames) -> None:
        super().__init__(roots)
        self.near = near
