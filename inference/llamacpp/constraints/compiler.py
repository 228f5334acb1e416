"""Compiles constraints beside the step loop, and keeps what was compiled."""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from llguidance import LLMatcher, LLTokenizer

from inference.errors import EngineError, EngineOverloaded, EngineUnavailable, InvalidRequest
from inference.llamacpp.bindings import Model
from inference.llamacpp.constraints.guide import Guide
from inference.llamacpp.constraints.helper import PARAM, Helper
from inference.llamacpp.constraints.limits import (
    ASKERS_MAX,
    CACHE_MAX_BYTES,
    CACHE_MAX_ENTRIES,
    CONSTRAINT_MAX_CHARS,
    QUEUE_MAX,
    QUEUE_SECONDS,
    parser_limits,
)
from inference.llamacpp.constraints.vocabulary import tokenizer_of, vocabulary_of
from inference.llamacpp.messages import encoder
from inference.requests import Constraint, constraint_chars

CLOSE_SECONDS = 5.0

Outcome: TypeAlias = Guide | EngineError
Then: TypeAlias = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A grammar that can be copied for each sequence, and the memory it holds."""

    matcher: LLMatcher
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Somebody who wants a guide: whom to tell, and whether that is still so.

    `wanted` is called under the compiler's lock and must not come back to it. Who is
    `patient` is neither sent away nor hurried: it was taken once already.
    """

    then: Then
    wanted: Callable[[], bool]
    patient: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A constraint to compile, for those who ask; since when it waits (monotonic seconds)."""

    key: bytes
    constraint: Constraint
    since: float
    askers: list[Asker]


class Cache:
    """What became of constraints, good or bad, by their digest; the longest unused goes first.

    Bounded by number and by memory. Mutable; the owner holds a lock around it.
    """

    def __init__(self, *, entries: int = CACHE_MAX_ENTRIES, size: int = CACHE_MAX_BYTES) -> None:
        """At most so many `entries`, of `size` bytes together."""
        self._entries = entries
        self._size = size
        self._held = 0
        self._known: OrderedDict[bytes, Compiled | InvalidRequest] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes) -> Compiled | InvalidRequest | None:
        """What is known; it counts as used."""
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def put(self, key: bytes, known: Compiled | InvalidRequest) -> None:
        """Keep this as well as there is room."""
        self._held += _bytes(known) - _bytes(self._known.get(key))
        self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > self._entries or (self._held > self._size and len(self) > 1):
            _, gone = self._known.popitem(last=False)
            self._held -= _bytes(gone)


class Queue:
    """Orders of clients, who take turns: one client's many do not keep others waiting.

    Mutable; the owner holds a lock around it.
    """

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[Order]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, client: str, order: Order) -> None:
        """Queue an order behind those of the same client."""
        self._by_client.setdefault(client, deque()).append(order)
        self._length += 1

    def pop(self) -> Order:
        """The next order of the client whose turn it is. Raises `KeyError` without one."""
        client, orders = self._by_client.popitem(last=False)
        order = orders.popleft()
        if orders:
            self._by_client[client] = orders
        self._length -= 1
        return order


class Compiler:
    """Makes guides for one model.

    A thread of its own asks the process that tries constraints out, and compiles what
    passed; both begin with the first order. llguidance lets go of the GIL meanwhile, so
    the step loop does not wait. Mutable, behind `_lock`: the cache, the queue, the orders in
    it and in work by key, how many ask, whether it is closing. The tokenizer and the helper
    are the thread's.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._ordered = threading.Condition(self._lock)
        self._cache = Cache()
        self._queue = Queue()
        self._orders: dict[bytes, Order] = {}
        self._asking = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        self._tokenizer: LLTokenizer | None = None
        self._helper: Helper | None = None

    def ask(
        self,
        constraint: Constraint,
        *,
        client: str,
        then: Then,
        wanted: Callable[[], bool],
        patient: bool = False,
    ) -> None:
        """Call `then` with a guide for a sequence of `client`, or with what is wrong.

        At once where it is known; else later, on the compiler's thread, if it is still
        `wanted` when its turn comes. The queue has no bounds for who is `patient`.
        """
        if (size := constraint_chars(constraint)) > CONSTRAINT_MAX_CHARS:
            text = f"The constraint has {size} characters; at most {CONSTRAINT_MAX_CHARS} may be."
            then(InvalidRequest(text, param=PARAM))
            return
        key = hashlib.blake2b(encoder.encode(constraint), digest_size=32).digest()
        asker = Asker(then=then, wanted=wanted, patient=patient)
        with self._lock:
            known: Compiled | EngineError | None = self._cache.get(key)
            if known is None:
                known = self._order(key, constraint, client, asker)
        if known is not None:
            then(self._guide(known))

    def close(self) -> None:
        """End the process and the thread. Nobody hears of orders that wait: the engine ends."""
        with self._lock:
            self._closing = True
            self._ordered.notify_all()
        if self._helper is not None:
            self._helper.kill()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _order(
        self, key: bytes, constraint: Constraint, client: str, asker: Asker
    ) -> EngineError | None:
        """Queue an order, or join one for the same; returns why that cannot be."""
        if self._closing:
            return EngineUnavailable("The engine is closing.")
        if self._asking >= ASKERS_MAX and not asker.patient:
            return EngineOverloaded(f"{ASKERS_MAX} requests wait for a constraint already.")
        order = self._orders.get(key)
        if order is None:
            if len(self._queue) >= QUEUE_MAX and not asker.patient:
                return EngineOverloaded(f"{QUEUE_MAX} constraints wait to be compiled already.")
            order = Order(key=key, constraint=constraint, since=time.monotonic(), askers=[])
            self._orders[key] = order
            self._queue.put(client, order)
        order.askers.append(asker)
        self._asking += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="constraints", daemon=True)
            self._thread.start()
        self._ordered.notify()
        return None

    def _run(self) -> None:
        # The chat template's time limit is a signal for the main thread alone.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        while (order := self._next()) is not None:
            known = self._settled(order)
            with self._lock:
                if isinstance(known, Compiled | InvalidRequest) and not self._closing:
                    self._cache.put(order.key, known)
                self._forget(order)
            for asker in order.askers:
                asker.then(self._guide(known))
        if self._helper is not None:
            self._helper.end()

    def _next(self) -> Order | None:
        """Wait for an order that somebody still waits for; None once it is closing."""
        with self._lock:
            while not self._closing:
                if not len(self._queue):
                    self._ordered.wait()
                    continue
                order = self._queue.pop()
                if any(asker.wanted() for asker in order.askers):
                    return order
                self._forget(order)
            return None

    def _forget(self, order: Order) -> None:
        """From here on nobody joins it. Under the lock."""
        del self._orders[order.key]
        self._asking -= len(order.askers)

    def _settled(self, order: Order) -> Compiled | EngineError:
        late = time.monotonic() - order.since > QUEUE_SECONDS
        if late and not any(asker.patient for asker in tuple(order.askers)):
            return EngineOverloaded("Too many constraints wait to be compiled.")
        try:
            return self._compiled(order.constraint)
        except EngineError as error:
            return error
        except Exception as error:
            # This thread serves everybody: what nobody foresaw may cost this request alone.
            # Where it happened is told, not its text, which may quote the request.
            print(f"compiling a constraint: {type(error).__name__}", file=sys.stderr)
            traceback.print_tb(error.__traceback__)
            return EngineError("The engine could not compile this constraint.")

    def _compiled(self, constraint: Constraint) -> Compiled:
        if self._helper is None or self._tokenizer is None:
            vocabulary = vocabulary_of(self._model)
            self._tokenizer = tokenizer_of(self._model, vocabulary)
            self._helper = Helper(vocabulary)
        passed = self._helper.try_out(constraint)
        matcher = LLMatcher(self._tokenizer, passed.grammar, log_level=0, limits=parser_limits())
        if matcher.is_error():
            raise InvalidRequest("The constraint cannot be compiled.", param=PARAM)
        return Compiled(matcher=matcher, memory_bytes=len(passed.grammar) + passed.memory_bytes)

    def _guide(self, known: Compiled | EngineError) -> Outcome:
        if isinstance(known, EngineError):
            return known
        return Guide(known.matcher.deep_copy(), self._model.vocab_size)


def _bytes(known: Compiled | InvalidRequest | None) -> int:
    return known.memory_bytes if isinstance(known, Compiled) else 0
