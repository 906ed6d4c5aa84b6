"""What every node of a service has: a path, metadata, and a class chosen by its specs and family."""

from types import TracebackType
from typing import Any, Self

from flystore.model.structures import Family, Spec
from flystore.wire import Transport

from ._session import Item, Session, node_route


class Node:
    """A node of a service, as it was when it was looked up; `refresh` looks again.

    Nodes are cheap: they hold a description and no data. Closing one closes the connection that all
    nodes of the same service share.
    """

    def __init__(self, session: Session, item: Item) -> None:
        self._session = session
        self._item = item

    @property
    def path(self) -> tuple[str, ...]:
        """Keys from the root to this node; empty for the root."""
        return self._item.path

    @property
    def key(self) -> str:
        """The last key of `path`; empty for the root."""
        return self._item.key

    @property
    def metadata(self) -> dict[str, Any]:
        """What people and programs have said about this node."""
        return self._item.metadata

    @property
    def specs(self) -> tuple[Spec, ...]:
        """Names that tell what kind of thing this is, the most telling first."""
        return self._item.specs

    @property
    def structure_family(self) -> Family:
        return self._item.family

    @property
    def transport(self) -> Transport:
        """How the service is reached."""
        return self._session.transport

    @property
    def uri(self) -> str:
        """The node's address; `from_uri` takes it."""
        return f"{self.transport.base_url}{node_route('metadata', self.path)}"

    def refresh(self) -> Self:
        """Ask the service what this node is now, and return it."""
        self._item = self._session.item(self.path)
        return self

    def close(self) -> None:
        """Give back the connections to the service; every node of it is closed with this one."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        """Two nodes are equal if they are the same place of the same service."""
        if not isinstance(other, Node):
            return NotImplemented
        return self.path == other.path and self.transport.base_url == other.transport.base_url

    def __hash__(self) -> int:
        return hash((self.path, self.transport.base_url))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._shown_path}>"

    @property
    def _shown_path(self) -> str:
        return "/" + "/".join(self.path)


def node_of(session: Session, item: Item) -> Node:
    """Return the node that an item describes, of the class its first known spec or its family asks for."""
    from ._array import Array
    from ._catalog import CatalogOfRuns
    from ._container import Container
    from ._other import Other
    from ._ragged import Ragged
    from ._run import Run
    from ._stream import Stream
    from ._table import Table

    by_spec: dict[str, type[Node]] = {
        "CatalogOfBlueskyRuns": CatalogOfRuns,
        "BlueskyRun": Run,
        "BlueskyEventStream": Stream,
    }
    by_family: dict[Family, type[Node]] = {
        Family.ARRAY: Array,
        Family.TABLE: Table,
        Family.RAGGED: Ragged,
        Family.CONTAINER: Container,
    }
    if item.family is Family.CONTAINER:
        for spec in item.specs:
            if spec.name in by_spec:
                return by_spec[spec.name](session, item)
    return by_family.get(item.family, Other)(session, item)
