"""How the garbage collector is set for a server.

What is made for a token is freed as it is sent, by its reference count. The collector is
there for what hangs together in circles, such as tasks and the errors they ended with,
and each of its rounds stops every stream: so it seldom looks at the young, and never
again at what the program itself consists of (`gc.freeze`).
"""

from __future__ import annotations

import gc

YOUNG = 20_000
"""Objects made and not freed before the young are looked through."""

ROUNDS = 20
"""Rounds of one generation before the next older one."""


def settle() -> None:
    """Set the collector, once, when everything that stays is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, ROUNDS, ROUNDS)
