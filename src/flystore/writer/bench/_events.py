"""Documents like those of a RunEngine: a run, one stream, events of twenty columns."""

import time
import uuid
from typing import Any

COLUMNS = tuple(f"signal_{number:02d}" for number in range(20))


class RunOfEvents:
    """Makes the documents of one run, one at a time.

    Parameters
    ----------
    scan_id : int
    """

    def __init__(self, scan_id: int = 1) -> None:
        self.uid = str(uuid.uuid4())
        self.made = 0
        self._scan_id = scan_id
        self._descriptor = str(uuid.uuid4())
        self._prefix = str(uuid.uuid4())[:24]

    def begin(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the start and the descriptor."""
        now = time.time()
        start = {
            "uid": self.uid,
            "time": now,
            "scan_id": self._scan_id,
            "plan_name": "bench",
            "purpose": "flystore bench",
        }
        keys = {name: {"dtype": "number", "shape": [], "source": f"SIM:{name}"} for name in COLUMNS}
        descriptor = {
            "uid": self._descriptor,
            "run_start": self.uid,
            "time": now,
            "name": "primary",
            "data_keys": keys,
            "object_keys": {"bench": list(COLUMNS)},
            "configuration": {},
            "hints": {},
        }
        return [("start", start), ("descriptor", descriptor)]

    def event(self) -> dict[str, Any]:
        """Return the next event."""
        now = time.time()
        self.made += 1
        number = self.made
        return {
            "uid": f"{self._prefix}{number:012x}",
            "descriptor": self._descriptor,
            "seq_num": number,
            "time": now,
            "data": {name: number + column * 0.25 for column, name in enumerate(COLUMNS)},
            "timestamps": {name: now + column * 1e-6 for column, name in enumerate(COLUMNS)},
            "filled": {},
        }

    def end(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the stop."""
        stop = {
            "uid": str(uuid.uuid4()),
            "run_start": self.uid,
            "time": time.time(),
            "exit_status": "success",
            "num_events": {"primary": self.made},
        }
        return [("stop", stop)]
