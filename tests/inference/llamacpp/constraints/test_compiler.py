"""The cache of what was compiled, and whose turn it is."""

from __future__ import annotations

import signal
import time

import pytest
from llguidance import LLMatcher

from inference.errors import EngineError, EngineOverloaded, InvalidRequest
from inference.llamacpp.constraints.compiler import Cache, Compiled, Order, Queue
from inference.llamacpp.constraints.helper import Helper
from inference.llamacpp.constraints.trial import tokenizer_of
from inference.llamacpp.messages import Message
from inference.requests import Regex
from tests.inference.llamacpp.constraints.letters import VOCABULARY, schema


def compiled(size: int) -> Compiled:
    matcher = LLMatcher(tokenizer_of(VOCABULARY), LLMatcher.grammar_from_regex("a"))
    return Compiled(matcher=matcher, memory_bytes=size)


def test_the_cache_forgets_what_was_longest_unused() -> None:
    cache = Cache(entries=3, size=100)
    for number in range(3):
        cache.put(bytes((number,)), InvalidRequest("no"))
    assert cache.get(b"\0") is not None
    cache.put(b"\3", InvalidRequest("no"))
    assert cache.get(b"\1") is None
    assert cache.get(b"\0") is not None
    cache.put(b"\4", compiled(60))
    cache.put(b"\5", compiled(60))
    assert cache.get(b"\4") is None
    assert cache.get(b"\5") is not None
    assert len(cache) == 1
    cache.put(b"\5", compiled(50))
    cache.put(b"\6", compiled(50))
    assert len(cache) == 2


def order(name: str) -> Order:
    return Order(
        key=name.encode(),
        constraint=Regex(pattern=name),
        since=time.monotonic(),
        askers=[],
    )


def test_clients_take_turns() -> None:
    queue = Queue()
    for number in range(4):
        queue.put("busy", order(f"busy {number}"))
    queue.put("other", order("other"))
    served = [queue.pop().key.decode() for _ in range(len(queue))]
    assert served == ["busy 0", "other", "busy 1", "busy 2", "busy 3"]
    with pytest.raises(KeyError):
        queue.pop()


def test_what_takes_too_long_ends_the_process_that_tries_and_the_next_goes_on() -> None:
    helper = Helper(VOCABULARY)
    try:
        assert helper.try_out(schema({"type": "integer"})).grammar
        endless = schema({"type": "integer", "multipleOf": 9_999_991})
        # On a machine that is busy otherwise the clock comes before the processor's time.
        with pytest.raises(EngineError, match="to compile"):
            helper.try_out(endless)
        assert helper.try_out(schema({"type": "boolean"})).grammar
    finally:
        helper.end()


def test_a_process_that_was_killed_is_no_constraints_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    helper = Helper(VOCABULARY)
    try:
        assert helper.try_out(schema({"type": "integer"})).grammar
        helper.kill()
        assert helper._process is not None
        helper._process.wait()
        assert helper.try_out(schema({"type": "null"})).grammar
        process, line = helper._process, helper._line
        assert process is not None
        assert line is not None
        sent = line.send

        def send_and_kill(message: Message) -> None:
            process.send_signal(signal.SIGSTOP)
            sent(message)
            helper.kill()

        monkeypatch.setattr(line, "send", send_and_kill)
        with pytest.raises(EngineOverloaded):
            helper.try_out(schema({"type": "string"}))
        assert helper.try_out(schema({"type": "string"})).grammar
    finally:
        helper.end()


def test_large_and_deep_ones_are_answered() -> None:
    deep = '{"const":' + "[" * 50_000 + "]" * 50_000 + "}"
    wide = schema({"type": "object", "properties": {f"property {n}": {} for n in range(8_000)}})
    helper = Helper(VOCABULARY)
    try:
        for constraint in (type(wide)(schema=deep), wide):
            with pytest.raises(InvalidRequest):
                helper.try_out(constraint)
    finally:
        helper.end()
