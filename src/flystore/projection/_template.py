"""File name templates of image sequences: the old ``%`` style and the new ``{}`` style.

Only a running number is ever filled in. A template comes from outside, so nothing else of Python's formatting
language is honoured, and widths are limited.
"""

import re
from functools import lru_cache

_PERCENT = re.compile(r"%%|%([-+#0 ]*)(\d+)?(?:\.(\d+))?d")
_FIELD = re.compile(r"\{\{|\}\}|\{0?(?::([<>^]?[+ ]?0?\d{0,3})d?)?\}")
_WIDEST = 255  # of a file name on every file system we know


@lru_cache(maxsize=1024)
def compile_template(template: str, filename: str = "") -> str:
    """Return a template in the new style with the file name filled in.

    The first ``%s`` is replaced by `filename`, further ones by nothing.

    Examples
    --------
    >>> compile_template("%s%s_%6.6d.tiff", "shot")
    'shot_{:06d}.tiff'
    """
    head, mark, tail = template.partition("%s")
    if mark:
        verbatim = filename.replace("%", "%%").replace("{", "{{").replace("}", "}}")
        template = head + verbatim + tail.replace("%s", "")
    return _PERCENT.sub(_new_style, template)


def _new_style(found: re.Match[str]) -> str:
    if found.group() == "%%":
        return "%"
    flags, width, precision = found.groups()
    if width and precision:
        return f"{{:0{min(max(int(width), int(precision)), _WIDEST)}d}}"
    align = "<" if "-" in flags else ""
    sign = "+" if "+" in flags else " " if " " in flags else ""
    zero = "0" if "0" in flags or precision else ""
    digits = width or precision or ""
    return f"{{:{align}{sign}{zero}{min(int(digits), _WIDEST) if digits else ''}d}}"


def file_name(template: str, number: int) -> str:
    """Return the name that a compiled template gives for a number.

    Examples
    --------
    >>> file_name("_{:05d}.npy", 7)
    '_00007.npy'
    """
    return _FIELD.sub(lambda found: _filled(found, number), template)


def _filled(found: re.Match[str], number: int) -> str:
    if found.group() in ("{{", "}}"):
        return found.group()[0]
    form = found.group(1) or ""
    width = re.search(r"\d*$", form)
    if width and int(width.group() or 0) > _WIDEST:
        form = form[: width.start()] + str(_WIDEST)
    return format(number, form + "d")


def join_uri(uri: str, tail: str) -> str:
    """Return uri and file name joined verbatim, but for a doubled slash at the joint.

    Examples
    --------
    >>> join_uri("file://localhost/d/", "/a.tif"), join_uri("file://localhost/d/abc", "_0.npy")
    ('file://localhost/d/a.tif', 'file://localhost/d/abc_0.npy')
    """
    return uri + tail.lstrip("/") if uri.endswith("/") and tail.startswith("/") else uri + tail
