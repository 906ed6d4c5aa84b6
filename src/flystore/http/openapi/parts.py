"""What descriptions of routes are put together from."""

from collections.abc import Iterable, Mapping
from typing import Any

from flystore.model.errors import FlystoreError

Schema = dict[str, Any]

JSON = "application/json"
MSGPACK = "application/x-msgpack"
OCTETS = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.file"
ZIP = "application/zip"

REFUSALS: dict[int, tuple[str, str]] = {
    400: ("BadRequest", "The question makes no sense, or asks for more than a limit that the answer names."),
    401: ("Unauthenticated", "No API key, a wrong one, or one that may not do this."),
    403: ("NotPermitted", "A file lies outside the directories that the operator named."),
    404: ("NotFound", "There is no such node, or it is of a family that this route does not serve."),
    405: ("NotPossible", "What is at this path cannot be written this way."),
    406: ("NotAcceptable", "The node has no such format, or the shape of its data does not suit it."),
    408: ("TooSlow", "The body stopped arriving."),
    409: ("Conflict", "What is stored contradicts the request; read again, then decide."),
    410: ("Gone", "What a link or an opened array led to is there no more."),
    415: ("UnsupportedBody", "The body is of a type that this route does not take, or is compressed."),
    416: ("OutOfRange", "None of the ranges lies in the file."),
    422: ("Invalid", "A parameter or the body is not as described, or a file cannot be read as announced."),
    500: ("Damaged", "Stored bytes are wrong, or the service has a defect; its log has the details."),
    503: ("NotReady", "Try again: data are still being written, or the service has no room for this now."),
    507: ("DiskFull", "The service's disk is full; nothing was stored."),
}
"""Name and meaning of each status that is an error."""

ASKED = (400, 401, 404, 422, 500, 503)
"""What every question to a node can be refused with."""

SENT = (400, 401, 404, 405, 408, 409, 415, 422, 500, 503, 507)
"""What every change to a node can be refused with."""


def refusal_components() -> dict[str, Any]:
    """Return the error answers that operations refer to by name."""
    found = {}
    for status, (name, text) in REFUSALS.items():
        answer: dict[str, Any] = {"description": text, "content": {JSON: {"schema": ref("Error")}}}
        if status == 503:
            answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
        if status == 401:
            answer["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
        found[name] = answer
    return found


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def listed(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def fixed(properties: Mapping[str, Schema], *optional: str, extra: bool = False) -> Schema:
    """Return the schema of an object that has all `properties` but those named in `optional`."""
    schema: Schema = {"type": "object", "properties": dict(properties)}
    required = [name for name in properties if name not in optional]
    if required:
        schema["required"] = required
    if not extra:
        schema["additionalProperties"] = False
    return schema


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {}
OBJECT: Schema = {"type": "object"}
NULL: Schema = {"type": "null"}
NUMBER: Schema = {"type": "number"}
BYTES: Schema = {"type": "string", "format": "binary"}


def whole(least: int | None = 0, most: int | None = None) -> Schema:
    schema: Schema = {"type": "integer"}
    if least is not None:
        schema["minimum"] = least
    if most is not None:
        schema["maximum"] = most
    return schema


def query(name: str, schema: Schema, description: str = "", *, required: bool = False) -> dict[str, Any]:
    """Return the description of a query parameter; a list is the parameter repeated."""
    found: dict[str, Any] = {"name": name, "in": "query", "required": required, "schema": schema}
    if description:
        found["description"] = description
    if schema.get("type") == "array":
        found |= {"style": "form", "explode": True}
    return found


def header(name: str, schema: Schema, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def in_path(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": TEXT, "description": description}


PATH = in_path("path", "Keys of the node and of those above it, joined by `/`; empty for the root.")
RUN = in_path("path", "The run's key, which is its uid.")


def content(schema: Schema, *media_types: str) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type in media_types}


def record(schema: Schema, description: str) -> dict[str, Any]:
    """Return the description of an answer that is JSON or msgpack, whichever Accept names first."""
    return {"description": description, "content": content(schema, JSON, MSGPACK)}


def data(media_types: Iterable[str], description: str, **headers: str) -> dict[str, Any]:
    """Return the description of an answer that is data in one of several formats."""
    found: dict[str, Any] = {"description": description, "content": {name: {} for name in media_types}}
    if headers:
        found["headers"] = {
            name.replace("_", "-"): {"description": text, "schema": TEXT} for name, text in headers.items()
        }
    return found


def body(schema: Schema, *media_types: str, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": content(schema, *media_types)}


NOTHING = record(NULL, "Done.")
UNCHANGED: dict[int, dict[str, Any]] = {304: {"description": "The caller's copy is still good (If-None-Match)."}}


def operation(
    name: str,
    summary: str,
    answers: Mapping[int, dict[str, Any]],
    *,
    scopes: Iterable[str] = (),
    parameters: Iterable[dict[str, Any]] = (),
    takes: dict[str, Any] | None = None,
    refusals: Iterable[int] = (),
    description: str = "",
) -> dict[str, Any]:
    """Return the description of one method of a path.

    Parameters
    ----------
    name : str
        Unique among all operations.
    answers : mapping
        By status; those that are no errors.
    scopes : iterable of str
        What the caller's key must allow; none: anyone may ask.
    refusals : iterable of int
        Statuses of `REFUSALS`.
    """
    needed = list(scopes)
    found: dict[str, Any] = {"operationId": name, "summary": summary}
    if needed:
        description = f"{description} Needs the scopes {', '.join(f'`{scope}`' for scope in needed)}.".strip()
    if description:
        found["description"] = description
    if parameters:
        found["parameters"] = list(parameters)
    if takes is not None:
        found["requestBody"] = takes
    found["responses"] = {str(status): answer for status, answer in sorted(answers.items())} | {
        str(status): {"$ref": f"#/components/responses/{REFUSALS[status][0]}"} for status in sorted(set(refusals))
    }
    found["security"] = [{"header": []}, {"query": []}, {"cookie": []}] if needed else []
    return found


def kinds_of_errors() -> list[str]:
    """Return every kind that an error can have, and those of the router and of defects."""

    def below(cls: type[FlystoreError]) -> Iterable[str]:
        yield cls.kind
        for child in cls.__subclasses__():
            if child.__module__ == FlystoreError.__module__:
                yield from below(child)

    return sorted({*below(FlystoreError), "method-not-allowed", "defect"})
