"""Nodes as Zarr stores (protocol section 12)."""

from typing import Any

from .parts import ASKED, UNCHANGED, in_path, operation

_DESCRIPTION = {
    2: "Documents `.zgroup`, `.zattrs`, `.zarray` and `.zmetadata`; chunks `0.0`; anything else lists children.",
    3: "Documents `zarr.json`; chunks `c/0/0`; anything else lists children.",
}


def _get(name: str, version: int, *parameters: dict[str, Any]) -> dict[str, Any]:
    return operation(
        name,
        f"Read a node as a Zarr store of format {version}",
        {
            200: {
                "description": "JSON without a declared type, or the bytes of a chunk.",
                "headers": {"ETag": {"schema": {"type": "string"}}},
            },
            **UNCHANGED,
        },
        scopes=("read:data", "read:metadata"),
        parameters=parameters,
        refusals=(*ASKED, 403, 406, 410),
        description=f"{_DESCRIPTION[version]} 404 is only what never was; no chunk that should be there gives 404.",
    )


PATHS: dict[str, dict[str, Any]] = {
    path: {"get": _get(f"zarr_v{version}{name}", version, *parameters)}
    for version in (2, 3)
    for path, name, parameters in (
        (f"/zarr/v{version}", "_root", []),
        (
            f"/zarr/v{version}/{{path}}",
            "",
            [in_path("path", "Path of a node, and the name of a document or chunk in it.")],
        ),
    )
}
