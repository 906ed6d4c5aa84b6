"""Which file system a path is on, from the system's table of mounts."""


def file_system_of(path: str, mounts: str) -> str | None:
    """Return the type of the file system that holds an absolute path; None if no mount covers it.

    Parameters
    ----------
    mounts
        Text of ``/proc/mounts``; of mounts on one point the last is on top.
    """
    best, kind = -1, None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = _unescape(fields[1]).rstrip("/")
        if (path == point or path.startswith(f"{point}/")) and len(point) >= best:
            best, kind = len(point), fields[2]
    return kind


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
