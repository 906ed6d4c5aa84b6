"""How all tests draw what they try: anew each time, or, for `make test`, the same each time.

``make test`` decides whether a change lands, so it must say the same twice about the same code. A plain ``pytest``,
``make faults`` and ``make truth-full`` draw anew: they look for what nobody has thought of.
"""

from hypothesis import settings

settings.register_profile("same-each-time", derandomize=True)
