"""How all tests draw what they try: anew each time, or, for `make test`, the same each time.

``make test`` decides whether a change lands, so it must say the same twice about the same code. A plain ``pytest``,
``make faults`` and ``make truth-full`` draw anew: they look for what nobody has thought of.
"""

from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("new-each-time", deadline=None)
settings.register_profile("same-each-time", deadline=None, derandomize=True)
settings.load_profile("new-each-time")
