"""Modules that are loaded when something of them is first used.

Some libraries take longer to load, and more memory, than all of flystore, and most processes need few of them: a
client that looks for runs no columns, a service that nobody asks for files no HDF5.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["arrow_csv", "late", "pa", "pc", "pq"]


def late(name: str, *parts: str) -> Any:
    """Return what stands for the module `name` and loads it when one of its names is asked for.

    Parameters
    ----------
    parts : str
        Names of modules within it to be loaded as well.

    Raises
    ------
    ImportError
        Not here, but when a name is asked for.
    """
    return _Late(name, parts)


class _Late(ModuleType):
    _loaded: ModuleType | None

    def __init__(self, name: str, parts: tuple[str, ...]) -> None:
        super().__init__(name)
        self._parts = parts
        self._loaded = None

    def __getattr__(self, attribute: str) -> Any:
        if self._loaded is None:
            loaded = import_module(self.__name__)
            for part in self._parts:
                import_module(part)
            self._loaded = loaded
        found = getattr(self._loaded, attribute)
        self.__dict__[attribute] = found  # the next time it is an attribute like any other
        return found


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as arrow_csv
    import pyarrow.parquet as pq
else:
    pa = late("pyarrow")
    pc = late("pyarrow.compute")
    arrow_csv = late("pyarrow.csv")
    pq = late("pyarrow.parquet")
