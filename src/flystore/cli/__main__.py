"""``python -m flystore.cli``: the same as ``flystore``."""

from . import main

main()
