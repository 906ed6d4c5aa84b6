"""What a figure was measured on: enough to judge it by, and nothing that names the machine or its owner."""

import os
import platform
from typing import Any


def machine() -> dict[str, Any]:
    """Return cores, processor, memory, system and Python."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "ram_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def in_words(facts: dict[str, Any]) -> str:
    """Return the facts as a line."""
    return (
        f"{facts['cores']} cores ({facts['cpu']}), {facts['ram_gib']} GiB, {facts['kernel']}, Python {facts['python']}"
    )


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.machine()
