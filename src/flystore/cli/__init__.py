"""Commands. Thin: each says what it does in its help, calls the rooms below, and explains mistakes.

What is promised: the help is quick and works in a base install; a mistake in a command or a setting is
one sentence on standard error that says what to do, and exit status 2, never a traceback.
"""

from ._app import main

__all__ = ["main"]
