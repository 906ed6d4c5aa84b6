"""flystore: storage and management of the data of Bluesky experiments.

    from flystore import RunWriter, from_uri

    RE.subscribe(RunWriter("http://localhost:8000", api_key="secret"))
    from_uri("http://localhost:8000", api_key="secret")[-1]["primary"].read()

Names are imported when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flystore.client import (
        AccessTags,
        Array,
        CatalogOfRuns,
        Comparison,
        Container,
        Contains,
        DoubtfulTimes,
        Eq,
        FullText,
        In,
        Key,
        KeyPresent,
        KeysFilter,
        Like,
        MissingRows,
        NotEq,
        NotIn,
        PandaCapture,
        Ragged,
        Run,
        Specs,
        Stream,
        StructureFamily,
        Table,
        Verdict,
        from_uri,
    )
    from flystore.embedded import open_store
    from flystore.model.errors import (
        Conflict,
        ContentClash,
        Damaged,
        DeadlineExceeded,
        FlystoreError,
        InvalidRequest,
        JournalFull,
        MadeFromDocuments,
        Misconfigured,
        MissingAsset,
        NotFound,
        NotPermitted,
        NotReady,
        OutOfBounds,
        OutsideRoots,
        SequenceGap,
        StaleEpoch,
        TooLarge,
        Truncated,
        Unauthenticated,
        Unavailable,
        Unreadable,
        Unsupported,
    )
    from flystore.writer import RunWriter

    __version__: str

__all__ = [
    "AccessTags",
    "Array",
    "CatalogOfRuns",
    "Comparison",
    "Conflict",
    "Container",
    "Contains",
    "ContentClash",
    "Damaged",
    "DeadlineExceeded",
    "DoubtfulTimes",
    "Eq",
    "FlystoreError",
    "FullText",
    "In",
    "InvalidRequest",
    "JournalFull",
    "Key",
    "KeyPresent",
    "KeysFilter",
    "Like",
    "MadeFromDocuments",
    "Misconfigured",
    "MissingAsset",
    "MissingRows",
    "NotEq",
    "NotFound",
    "NotIn",
    "NotPermitted",
    "NotReady",
    "OutOfBounds",
    "OutsideRoots",
    "PandaCapture",
    "Ragged",
    "Run",
    "RunWriter",
    "SequenceGap",
    "Specs",
    "StaleEpoch",
    "Stream",
    "StructureFamily",
    "Table",
    "TooLarge",
    "Truncated",
    "Unauthenticated",
    "Unavailable",
    "Unreadable",
    "Unsupported",
    "Verdict",
    "__version__",
    "from_uri",
    "open_store",
]

_HOMES = {"RunWriter": "flystore.writer", "open_store": "flystore.embedded"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("flystore")
    elif name in __all__:
        # Errors are tried first: handlers that only name one need not load the client.
        errors = import_module("flystore.model.errors")
        home = errors if hasattr(errors, name) else import_module(_HOMES.get(name, "flystore.client"))
        value = getattr(home, name)
    else:
        raise AttributeError(f"module 'flystore' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
