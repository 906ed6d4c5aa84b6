"""The verdict on a run, as the service gives it."""

from typing import Any

from flystore.model.errors import Unavailable

from ._words import html_rows


class Verdict:
    """What is complete and what is missing in a run, at the time it was asked for.

    ``print(verdict)`` gives one line for people; `record` holds everything for programs. Its members are
    attributes too (``verdict.files``, ``verdict.notes``), and so are the counters that the documents
    alone give (``verdict.gaps``, ``verdict.streams``), where the documents were sent.
    """

    def __init__(self, record: Any) -> None:
        if not isinstance(record, dict) or not isinstance(record.get("line"), str):
            raise Unavailable("the service gave a verdict in a form that this client does not know")
        self.record: dict[str, Any] = record

    @property
    def line(self) -> str:
        """One line for people: ``scan 42860: 1200/1200 points, 1200/1200 frames, 0 gaps, stored``."""
        return str(self.record["line"])

    @property
    def state(self) -> str:
        """``complete``, ``running``, ``interrupted``, ``gaps``, ``retaken``, ``extra`` or ``unreadable``."""
        return str(self.record.get("state", ""))

    @property
    def is_complete(self) -> bool:
        """Whether nothing is known to be missing."""
        return self.state == "complete"

    def __getattr__(self, name: str) -> Any:
        record = self.__dict__.get("record", {})
        known = {**(record.get("documents") or {}), **record}
        if name in known:
            return known[name]
        raise AttributeError(f"the verdict has no {name!r}; it has {', '.join(known)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verdict) and self.record == other.record

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.line

    def __repr__(self) -> str:
        return f"<Verdict {self.state}: {self.line}>"

    def _repr_html_(self) -> str:
        plain = [(name, str(value)) for name, value in self.record.items() if not isinstance(value, (dict, list))]
        return html_rows(plain)
