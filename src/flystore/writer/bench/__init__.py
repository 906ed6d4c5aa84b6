"""What keeping documents costs the plan, measured on the host and the disk where it matters.

A `RunWriter` gets events of twenty columns while the service is up, slow, comes and goes, or is not there, and each
call is timed. Between the events, at the same pace and under the same load, two other calls are timed: one that does
nothing and one that only writes the same bytes to a file. So a figure can be told from what the machine does by itself.

The service and the link to it are processes of their own, as they would be on other machines.
"""

from ._scenarios import SCENARIOS, BenchOptions, Row, measure
from ._timing import Figures

__all__ = ["SCENARIOS", "BenchOptions", "Figures", "Row", "measure"]
