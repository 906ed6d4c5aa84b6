"""Named places in the code at which a fault test may make something happen.

A write that can be cut short passes `reach` before and after it. In a running service that is one comparison: nothing
is installed, and no setting or variable of the environment installs anything. Only the fault tests do, through
`flystore.testing`, in processes of their own.
"""

from collections.abc import Callable

__all__ = ["install", "reach"]

_handler: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Say that the place `name` is reached, ``<room>.<before or after what>``; may not return, or raise, in a test."""
    if _handler is not None:
        _handler(name)


def install(handler: Callable[[str], None] | None) -> None:
    """Have `handler` called with the name of each place that is reached; None takes it away."""
    global _handler  # one for the process: what dies is a process
    _handler = handler
