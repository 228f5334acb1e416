"""What a constraint may cost, to compile and to follow.

llguidance counts work in "fuel": about 50,000 a millisecond while it builds the lexer, and
14,000 a millisecond while it computes a mask (its own figures, in `LLParserLimits`).
"""

from __future__ import annotations

from llguidance import LLParserLimits

CONSTRAINT_MAX_CHARS = 512 * 1024
"""The longest schema, pattern, grammar or list of options, all in all.

Twice what the server takes in a request, for the grammar that a dialect makes of it.
"""
COMPILE_CPU_SECONDS = 2.0
"""The most processor time that one may take in the process that tries it out."""
COMPILE_WALL_SECONDS = 15.0
"""The same by the clock: that process has a low priority."""
QUEUE_SECONDS = 20.0
"""Who waits longer than this for others' constraints to be tried is told to come later."""
QUEUE_MAX = 256
"""Different constraints that wait; `ASKERS_MAX` are the requests that wait for them."""
ASKERS_MAX = 4096
MEMORY_MAX_BYTES = 768 * 1024 * 1024
"""What the process that tries may take beyond what it takes at rest."""
GRAMMAR_MAX_BYTES = 128 * 1024 * 1024
"""What one grammar may hold of that when it is compiled."""
CACHE_MAX_BYTES = 256 * 1024 * 1024
CACHE_MAX_ENTRIES = 256
PLACE_CPU_SECONDS = 1.0
"""How long the place of an error is looked for."""

REHEARSAL_TOKENS = 48
MASK_MEAN_SECONDS = 0.004
"""What a mask may take on average, over those of the rehearsal."""


def parser_limits() -> LLParserLimits:
    """The bounds of llguidance itself.

    A mask that would exceed them ends its sequence: about 10 ms. The states of a lexer
    take 1 to 2 kB each, and every sequence has its own.
    """
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=30_000,
        max_lexer_states=20_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )
