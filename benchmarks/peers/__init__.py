"""What runs in child processes, with the Python of the side that it stands for.

Only `flystore_side` imports flystore, and only `stock_side` imports Tiled: both have the same tasks, written once in
`tasks`, and differ in how a writer and a client are made.
"""
