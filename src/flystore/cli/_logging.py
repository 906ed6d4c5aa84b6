"""The log of a command: lines for people or for machines, to standard error, without a key in them."""

import datetime
import json
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

FORMATS = ("text", "json")

_HIDDEN = "…"
_SECRETS = (
    re.compile(r"((?:api|csrf)_?(?:key|token)(?:=|\"?: ?\"?|%3D))[^&\s\"',;)]+", re.IGNORECASE),
    re.compile(r"((?:Apikey|Bearer|Basic) +)[^\s\"',;)]+", re.IGNORECASE),
    re.compile(r"(://[^/\s:@]*:)[^@\s/]+(?=@)"),
)
"""What looks like a key: in a URL, a header, the address of a database."""


def log_to_stderr(
    verbose: bool,
    *,
    style: str = "text",
    secrets: tuple[str, ...] = (),
    access: bool | None = None,
    request_id: Callable[[], str] | None = None,
) -> None:
    """Send warnings, or with `verbose` also what is going on, to standard error.

    Parameters
    ----------
    style : str
        ``text``, or ``json``: one object a line.
    secrets : tuple of str
        Texts that no line shows, wherever they come from.
    access : bool, optional
        Whether each request has a line; None: if `verbose`.
    request_id : callable, optional
        Returns the id of the request on whose behalf a line is written; empty: of none.
    """
    handler = logging.StreamHandler(sys.stderr)
    hide = _Hiding(secrets)
    handler.setFormatter(_Lines(hide, request_id) if style == "json" else _Text(hide, request_id))
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("flystore.requests").setLevel(
        logging.INFO if (verbose if access is None else access) else logging.WARNING
    )


class _Hiding:
    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = [secret for secret in secrets if secret]

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, _HIDDEN)
        for pattern in _SECRETS:
            text = pattern.sub(rf"\1{_HIDDEN}", text)
        return text


class _Text(logging.Formatter):
    def __init__(self, hide: Callable[[str], str], request_id: Callable[[], str] | None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._hide = hide
        self._request_id = request_id

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        asked = _request_of(record, self._request_id)
        head, found, rest = text.partition("\n")
        return self._hide(f"{head} [{asked}]{found}{rest}" if asked else text)


class _Lines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, request; then facts and traceback."""

    def __init__(self, hide: Callable[[str], str], request_id: Callable[[], str] | None) -> None:
        super().__init__()
        self._hide = hide
        self._request_id = request_id

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        found: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._hide(record.getMessage()),
        }
        asked = _request_of(record, self._request_id)
        if asked:
            found["request"] = asked
        for name, value in getattr(record, "flystore", {}).items():
            found[name] = self._hide(value) if isinstance(value, str) else value
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            found["exception"] = type(error).__name__
            found["traceback"] = self._hide(self.formatException(record.exc_info))
        return json.dumps(found, ensure_ascii=False, default=str)


def _request_of(record: logging.LogRecord, request_id: Callable[[], str] | None) -> str:
    facts = getattr(record, "flystore", None)
    if facts and facts.get("request"):
        return str(facts["request"])
    return request_id() if request_id is not None else ""
