"""Print the document as it is kept in ``docs/reference/openapi.json``."""

import json
import sys

from . import document

sys.stdout.write(json.dumps(document(), indent=1, ensure_ascii=False) + "\n")
