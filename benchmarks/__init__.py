"""How fast flystore is, beside stock Tiled and beside what the machine can do: ``python -m benchmarks``.

All parties of a row are measured in the same run, one after another and again, so that their ratios hold even where the
machine is busy. Nothing here fails for being slow.
"""
