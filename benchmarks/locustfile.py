"""The same workloads for people who know locust; `docs/benchmarks.md` says how to run it.

TTFT, inter-token latency and end to end are three separate entries in locust's tables;
tokens per second are printed when a test ends. Locust keeps one request in flight for
each user, so this is a closed loop. It needs only locust and this repository on
`PYTHONPATH`, not the server's environment.
"""

# Locust lives in an environment of its own, so the type checker cannot see it.
# mypy: disable-error-code="import-not-found,misc,untyped-decorator"

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from locust import FastHttpUser, LoadTestShape, events, task
from locust.exception import StopUser

from benchmarks.workloads import WORKLOADS, Conversation

KIND = "stream"


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options of this file; locust's page shows them as fields."""
    group = parser.add_argument_group("headrace")
    group.add_argument("--workload", choices=sorted(WORKLOADS), default="short")
    group.add_argument("--model-name", default="default", help="sent as `model`")
    group.add_argument("--seed", type=int, default=1, help="of the texts")
    group.add_argument(
        "--stages", default="20:1,20:4,20:16", help="seconds:users, comma-separated, in order"
    )
    group.add_argument("--key-env", default="", help="environment variable that holds the API key")
    group.add_argument(
        "--conversations", type=int, default=0, help="so many in all, then stop; 0: endless"
    )
    group.add_argument("--round", type=int, default=0, help="of the texts, with --conversations")


class Work:
    """The conversations to hold, and what came of them.

    Mutable: who is next, how many are over, tokens and times. Users are greenlets of one
    thread, so each conversation is given once.
    """

    def __init__(self, options: Any) -> None:
        self._waiting = _endless(options) if options.conversations == 0 else _counted(options)
        self._left = options.conversations or None
        self.tokens = 0
        self._began: float | None = None
        self._ended = 0.0

    @property
    def over(self) -> bool:
        """Whether all of a limited number of conversations are over."""
        return self._left == 0

    def take(self) -> Conversation | None:
        """The next conversation; None when there is none left."""
        if self._began is None:
            self._began = time.perf_counter()
        return next(self._waiting, None)

    def finish(self) -> None:
        """A conversation is over, well or not."""
        self._ended = time.perf_counter()
        if self._left is not None:
            self._left -= 1

    def sentence(self) -> str:
        """Tokens per second: locust's tables have no place for it."""
        seconds = self._ended - (self._began or 0.0)
        rate = self.tokens / seconds if self._ended else 0.0
        return f"tokens: {self.tokens} in {max(seconds, 0.0):.3f} s, {rate:.2f} a second"


def _counted(options: Any) -> Iterator[Conversation]:
    workload, number = WORKLOADS[options.workload], options.conversations
    return iter(workload.conversations(number, seed=options.seed, round_=options.round))


def _endless(options: Any) -> Iterator[Conversation]:
    workload = WORKLOADS[options.workload]
    return (workload.conversations(1, seed=options.seed, round_=n)[0] for n in count())


@events.init.add_listener
def prepare(environment: Any, **_: Any) -> None:
    """The shape is asked before the first test begins."""
    environment.work = None


@events.test_start.add_listener
def begin(environment: Any, **_: Any) -> None:
    """Each test has work of its own: on locust's page the options may have changed."""
    environment.work = Work(environment.parsed_options)


@events.test_stop.add_listener
def end(environment: Any, **_: Any) -> None:
    """Say what locust does not count."""
    print(environment.work.sentence(), flush=True)
    environment.work = None


class Stages(LoadTestShape):
    """Users by stage: `--stages 20:1,20:16` is 20 s of one user, then 20 s of sixteen."""

    def tick(self) -> tuple[int, float] | None:
        """Users now, and how many to start per second; None ends the test."""
        remaining = self.get_run_time()
        work = self.runner.environment.work
        if work is not None and work.over:
            return None
        for stage in self.runner.environment.parsed_options.stages.split(","):
            seconds, users = stage.split(":")
            if remaining < float(seconds):
                return int(users), float(users)
            remaining -= float(seconds)
        return None


class Reader(FastHttpUser):
    """Somebody who holds one conversation after another and reads every token."""

    # The first token of a long queue may take minutes.
    network_timeout = 600.0
    connection_timeout = 30.0

    @task
    def converse(self) -> None:
        """One conversation of the chosen workload."""
        work = self.environment.work
        if (conversation := work.take()) is None:
            raise StopUser
        try:
            self._hold(conversation)
        finally:
            work.finish()

    def _hold(self, conversation: Conversation) -> None:
        messages: list[dict[str, str]] = []
        if conversation.system is not None:
            messages.append({"role": "system", "content": conversation.system})
        for turn in conversation.turns:
            messages.append({"role": "user", "content": turn})
            text = self._ask(messages, conversation.max_tokens)
            messages.append({"role": "assistant", "content": text})

    def _ask(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        options = self.environment.parsed_options
        headers = {"Accept-Encoding": "identity", "Accept": "text/event-stream"}
        if options.key_env:
            if not (key := os.environ.get(options.key_env)):
                raise StopUser(f"{options.key_env} is not set")
            headers["Authorization"] = f"Bearer {key}"
        body = {
            "model": options.model_name,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.perf_counter()
        with self.client.post(
            "/v1/chat/completions",
            json=body,
            headers=headers,
            stream=True,
            catch_response=True,
            name="end to end",
        ) as response:
            # Locust would count up to the headers; the request ends with its stream.
            meta = response.request_meta
            meta["request_type"] = KIND
            if response.status_code != 200:
                response.failure(f"HTTP {response.status_code}")
                return ""
            text, problem = self._read(response, start)
            meta["response_time"] = (time.perf_counter() - start) * 1000
            meta["response_length"] = len(text)
            if problem:
                response.failure(problem)
        return text

    def _read(self, response: Any, start: float) -> tuple[str, str]:
        """Follow the stream; returns the text, and what was wrong with it or ""."""
        pieces: list[str] = []
        last = start
        while line := response.stream.readline(b"\n"):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return "".join(pieces), ""
            now = time.perf_counter()
            chunk = json.loads(data)
            if "error" in chunk:
                return "".join(pieces), "stream reported an error"
            if usage := chunk.get("usage"):
                self.environment.work.tokens += usage["completion_tokens"]
            for choice in chunk["choices"]:
                if piece := choice["delta"].get("content"):
                    self._fire("ITL" if pieces else "TTFT", now - last)
                    pieces.append(piece)
                    last = now
        return "".join(pieces), "stream ended without [DONE]"

    def _fire(self, name: str, seconds: float) -> None:
        self.environment.events.request.fire(
            request_type=KIND,
            name=name,
            response_time=seconds * 1000,
            response_length=0,
            exception=None,
            context={},
        )
