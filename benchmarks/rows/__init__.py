"""The rows: a module for each group, which measures and says what came out.

``measure(suite)`` yields the lines of the table; the first line of the module's docstring says what they are about.
"""

from collections.abc import Callable, Iterator

from benchmarks.figures import Measure
from benchmarks.suite import Suite

from . import arrays, catalogue, engine, exports, fly, live, long, recorded, requests, slices, start, tables, waits

Row = Callable[[Suite], Iterator[Measure]]

_MODULES = (engine, long, tables, exports, fly, recorded, live, waits, requests, arrays, slices, catalogue, start)

ROWS: dict[str, Row] = {module.__name__.rpartition(".")[2]: module.measure for module in _MODULES}
"""By name, in the order in which they are measured: what a row leaves behind, later ones read."""

ABOUT: dict[str, str] = {
    module.__name__.rpartition(".")[2]: (module.__doc__ or "").partition("\n")[0] for module in _MODULES
}
"""What each is about."""
