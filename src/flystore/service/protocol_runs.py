"""What is kept of runs that came node by node, by the Tiled protocol, beyond their nodes."""

from typing import Self

import msgspec

from flystore.catalog import Run


class ProtocolState(msgspec.Struct, frozen=True):
    """State of a run that no documents were sent of, as `Run.state` holds it.

    Attributes
    ----------
    repeats : int
        Appends that were, byte for byte, the append before them.
    repeated_rows : int
        Rows of these.
    """

    repeats: int = 0
    repeated_rows: int = 0

    @classmethod
    def of(cls, run: Run) -> Self:
        return msgspec.msgpack.decode(run.state, type=cls) if run.state else cls()

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def repeated(self, rows: int) -> Self:
        return msgspec.structs.replace(self, repeats=self.repeats + 1, repeated_rows=self.repeated_rows + rows)

    @property
    def notes(self) -> list[str]:
        """What a person should know, in sentences."""
        if not self.repeats:
            return []
        return [
            f"possible repeat: {self.repeated_rows} rows in {self.repeats} appends are, byte for byte, the append "
            "before them; they are kept. Writers of this protocol send again what they did not hear of."
        ]
