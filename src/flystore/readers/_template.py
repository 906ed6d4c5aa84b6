"""Names of the files of a sequence: text with one field for a number, nothing else."""

import re
from dataclasses import dataclass
from typing import Self

from flystore.model.errors import Unsupported

_FIELD = re.compile(r"\{0?(?::(?P<spec>[<>^]?[+ ]?0?(?:25[0-5]|2[0-4][0-9]|1?[0-9]{0,2})d?))?\}")


@dataclass(frozen=True, slots=True)
class FileTemplate:
    """A file name template: ``img_{:06d}.tiff``. Names are at most 255 long, so fields are no wider.

    Only a plain number format is understood, so that a template can neither reach attributes nor ask for a
    name of a gigabyte. Doubled braces stand for braces.
    """

    before: str
    spec: str | None
    after: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a template; one without a field names a single file.

        Raises
        ------
        Unsupported
            If it has more than one field, or a field that is no plain integer format.
        """
        hidden = text.replace("{{", "\0").replace("}}", "\1")
        fields = list(_FIELD.finditer(hidden))
        rest = _FIELD.sub("", hidden)
        if len(fields) > 1 or "{" in rest or "}" in rest:
            raise Unsupported(f"{text[:200]!r} is not a file name template with one field like {{:06d}}")
        if not fields:
            return cls(_shown(hidden), None, "")
        field = fields[0]
        return cls(_shown(hidden[: field.start()]), field["spec"] or "", _shown(hidden[field.end() :]))

    def name(self, number: int) -> str:
        """Return the name of a file."""
        if self.spec is None:
            return self.before
        return self.before + format(number, self.spec) + self.after

    def number(self, name: str) -> int | None:
        """Return the number of the file that has this name, None if none has."""
        if self.spec is None or not (name.startswith(self.before) and name.endswith(self.after)):
            return None
        middle = name[len(self.before) : len(name) - len(self.after)]
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", middle):
            return None
        number = int(middle)
        return number if self.name(number) == name else None


def _shown(hidden: str) -> str:
    return hidden.replace("\0", "{").replace("\1", "}")
