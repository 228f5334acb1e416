"""The process that tries constraints out: `python -m inference.llamacpp.constraints.trial`.

Compiling a small schema may take for ever, or all memory, or overflow a stack: no limit of
llguidance bounds it (a `multipleOf` of six digits takes half a minute). So it is done
here first, where a timer of the kernel ends the process when the time is over, whatever
it is doing, and the allocator fails when the memory is. What passes is compiled again in
the engine process, in about the same time.

A grammar is also followed for some tokens, chosen by chance: what is too ambiguous shows
only then.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from inference.llamacpp.constraints.errors import NOTHING, UNCLEAR, Unusable, readable
from inference.llamacpp.constraints.grammar import grammars, json_grammar, schema_blocks
from inference.llamacpp.constraints.limits import (
    COMPILE_CPU_SECONDS,
    COMPILE_WALL_SECONDS,
    GRAMMAR_MAX_BYTES,
    MASK_MEAN_SECONDS,
    MEMORY_MAX_BYTES,
    PLACE_CPU_SECONDS,
    REHEARSAL_TOKENS,
    parser_limits,
)
from inference.llamacpp.constraints.messages import (
    Failing,
    Known,
    Line,
    Passed,
    Refused,
    Trial,
    Vocabulary,
)
from inference.llamacpp.constraints.places import place_of
from inference.llamacpp.constraints.schema import Document, parse, prepared
from inference.requests import Constraint, Grammar, JsonSchema

NICENESS = 5
"""A third of the decoding threads' share, once it is ready: with less it might take for ever."""
_TIMERS = ((signal.ITIMER_PROF, signal.SIGPROF), (signal.ITIMER_REAL, signal.SIGALRM))


def main() -> None:
    """Answer trials from one socket until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    line = Line(socket.socket(fileno=parser.parse_args().fd))
    for _, number in _TIMERS:  # whatever was inherited: each ends the process
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number for _, number in _TIMERS})
    vocabulary = line.heard()
    if not isinstance(vocabulary, Vocabulary):
        return
    tests = Tests(tokenizer_of(vocabulary))
    _bound_memory()
    os.nice(NICENESS)
    with suppress(BrokenPipeError):
        line.send(Known())
        while isinstance(trial := line.heard(), Trial):
            with _limited(COMPILE_CPU_SECONDS, COMPILE_WALL_SECONDS):
                answer = tests.run(trial.constraint)
            if isinstance(answer, Failing):
                line.send(answer)
                with _limited(2 * PLACE_CPU_SECONDS, COMPILE_WALL_SECONDS):
                    answer = tests.explained(trial.constraint, answer)
            line.send(answer)


class Tests:
    """Compiles constraints for one vocabulary. Mutable: the last reasons, in words."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = frozenset(tokenizer.eos_tokens)

    def run(self, constraint: Constraint) -> Passed | Failing | Refused:
        """Compile `constraint` and follow it for some tokens."""
        before = _memory_bytes()
        chosen: str | None = None
        kept: LLMatcher | None = None
        try:
            for grammar in grammars(constraint):
                matcher = self._matcher(grammar)
                if matcher.is_error():
                    if kept is not None:
                        break
                    return Failing(reason=readable(matcher.get_error()))
                chosen, kept = grammar, matcher
            if chosen is None or kept is None:
                return Refused(reason=UNCLEAR)
            self._rehearse(kept)
        except Unusable as error:
            return Failing(reason=NOTHING) if error.reason == NOTHING else _refused(error)
        held = max(0, _memory_bytes() - before)
        if held > GRAMMAR_MAX_BYTES:
            return Refused(reason="The constraint takes too much memory.")
        return Passed(grammar=chosen, memory_bytes=held)

    def explained(self, constraint: Constraint, failing: Failing) -> Refused:
        """Say where it fails, if that can be found in time."""
        error = Unusable(failing.reason)
        with suppress(Unusable):
            match constraint:
                case JsonSchema(schema=text):
                    error = self._placed(parse(text), failing.reason)
                case Grammar(syntax="lark", text=text):
                    error = self._in_block(schema_blocks(text), failing.reason)
        return _refused(error)

    def _in_block(self, blocks: Sequence[Document], reason: str) -> Unusable:
        """The schema of a grammar that does not compile, and the place in it."""
        for number, document in enumerate(blocks):
            if (own := self._problem(document)) is not None:
                found = self._placed(document, readable(own))
                return Unusable(found.reason, place=found.place, schema=number)
        return Unusable(reason)

    def _placed(self, document: Document, reason: str) -> Unusable:
        until = time.process_time() + PLACE_CPU_SECONDS
        place, found = place_of(
            document, self._problem, patience=lambda: time.process_time() < until
        )
        return Unusable(reason if found is None else readable(found), place=place)

    def _problem(self, document: Document) -> str | None:
        matcher = self._matcher(json_grammar(prepared(document)))
        satisfiable = not matcher.is_error() and any(matcher.compute_bitmask())
        if matcher.is_error():
            return matcher.get_error()
        return None if satisfiable else NOTHING

    def _matcher(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=parser_limits())

    def _rehearse(self, matcher: LLMatcher) -> None:
        """Follow a copy of `matcher`. Raises `Unusable` for what cannot be followed."""
        matcher = matcher.deep_copy()
        chance = random.Random(0)  # noqa: S311 - no secret, and the same every time
        began, masks = time.thread_time(), 0
        while masks < REHEARSAL_TOKENS and not matcher.is_stopped():
            masks += 1
            mask = matcher.compute_bitmask()
            if matcher.is_error():
                raise Unusable(readable(matcher.get_error()))
            token = _some_token(mask, chance)
            if token is None:
                raise Unusable(NOTHING)
            if token in self._end_tokens:
                break
            matcher.consume_token(token)
            if matcher.is_error():
                raise Unusable(readable(matcher.get_error()))
        if (time.thread_time() - began) / max(1, masks) > MASK_MEAN_SECONDS:
            raise Unusable("The constraint takes too long to check for each token.")


def _refused(error: Unusable) -> Refused:
    return Refused(reason=error.sentence, schema=error.schema)


def tokenizer_of(vocabulary: Vocabulary) -> LLTokenizer:
    """llguidance's tokenizer for a vocabulary, without the model."""
    wrapped: Any = _Wrapped(vocabulary)
    return LLTokenizer(wrapped, eos_token=list(vocabulary.end_tokens))


class _Wrapped:
    """What `LLTokenizer` reads a vocabulary from (`llguidance.TokenizerWrapper`)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.pieces
        self.eos_token_id = vocabulary.end_tokens[0]
        self.special_token_ids = [
            token for token, piece in enumerate(vocabulary.pieces) if piece.startswith(b"\xff")
        ]
        self._by_byte = {piece: token for token, piece in enumerate(vocabulary.pieces)}

    def __call__(self, text: bytes | str) -> list[int]:
        """Any tokens that make up `text`: nothing that is tried depends on which."""
        raw = text.encode() if isinstance(text, str) else text
        return [self._by_byte[bytes((byte,))] for byte in raw if bytes((byte,)) in self._by_byte]


def _some_token(mask: bytes, chance: random.Random) -> int | None:
    """One of the allowed tokens, from anywhere in the vocabulary; None without one."""
    offset = chance.randrange(len(mask))
    turned = mask[offset:] + mask[:offset]
    rest = turned.lstrip(b"\0")
    if not rest:
        return None
    byte = (offset + len(turned) - len(rest)) % len(mask)
    return 8 * byte + chance.choice([bit for bit in range(8) if rest[0] >> bit & 1])


@contextmanager
def _limited(cpu_seconds: float, wall_seconds: float) -> Iterator[None]:
    """End the process when one of the times is over: no handler, so nothing holds it up."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
    try:
        yield
    finally:
        for timer, _ in _TIMERS:
            signal.setitimer(timer, 0)


def _bound_memory() -> None:
    bound = _pages(0) + MEMORY_MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _memory_bytes() -> int:
    """What is resident now."""
    return _pages(1)


def _pages(column: int) -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[column]) * resource.getpagesize()


if __name__ == "__main__":
    main()
