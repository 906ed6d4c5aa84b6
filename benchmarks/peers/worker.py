"""``python -m benchmarks.peers.worker SIDE``: obeys lines of JSON on standard input, answers each with one."""

import importlib
import json
import os
import sys
import traceback


def main(side: str) -> None:
    """Do one task after another until standard input ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tasks = importlib.import_module(f"benchmarks.peers.{side}").Tasks()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {"result": getattr(tasks, order["task"])(**order["arguments"])}
        except Exception as error:  # noqa: BLE001 - told to the one who asked, who goes on with other rows
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
