"""Print the table of a campaign: ``python -m flystore.testing.faults FILE…``, as FLYSTORE_FAULTS_REPORT wrote them."""

import json
import sys
from pathlib import Path

from .report import table

lines = [line for name in sys.argv[1:] for line in Path(name).read_text().splitlines()]
found = [each for each in map(json.loads, lines) if "control" not in each["fault"]]
sys.stdout.write(table(sorted(found, key=lambda each: each["fault"])) + "\n")
