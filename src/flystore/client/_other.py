"""Nodes of families that this client does not read: awkward, sparse, bytes."""

from typing import Any, NoReturn

from flystore.model.errors import Unsupported

from ._node import Node


class Other(Node):
    """A node whose metadata can be read, and whose data cannot be read by this client."""

    @property
    def structure(self) -> dict[str, Any] | None:
        """What the service says about the data's form."""
        return self._item.structure

    def read(self) -> NoReturn:
        """Refuse.

        Raises
        ------
        Unsupported
            Always.
        """
        raise Unsupported(
            f"{self._shown_path} is of the family {self.structure_family}, which this client does not read; "
            "the client of Tiled may",
            family=str(self.structure_family),
        )

    def __repr__(self) -> str:
        return f"<{self.structure_family} {self._shown_path}, not readable by this client>"
