"""One request's way through admission: enter, use, leave.

Whatever API asked for a generation, it holds a `Ticket` while it runs: entering it
checks all limits and takes a place, observing the engine's events charges tokens,
leaving it gives the place back and writes the audit line.
"""

from __future__ import annotations

from types import TracebackType
from typing import assert_never

from inference.events import Accepted, Delta, Event, Finished, Queued, Restarted, Started
from inference.requests import ChatPrompt, Prompt, TextPrompt, TokensPrompt
from server.access import audit
from server.access.client import Client
from server.admission import Account, Admission
from server.backlog import Entry, Stage

BYTES_PER_TOKEN = 4
"""Of English prose; what a prompt is taken to have until the engine has counted it."""

MESSAGE_TOKENS = 4
"""What a chat template adds to each message, about."""


class Ticket:
    """One request's leave to generate: a context manager, held while it does.

    Prompt tokens are charged when it is entered, from an estimate, and corrected when
    the engine has counted them; copies of a prompt share its tokens. Generated tokens
    are charged as they come.

    Mutable: what has been used, the sequences' entries in the backlog. Owner: whoever
    holds it.
    """

    def __init__(
        self,
        admission: Admission,
        client: Client,
        *,
        route: str,
        prompt_tokens: int,
        prompts: int = 1,
        copies: int = 1,
        queues: bool = True,
        model: str = "",
    ) -> None:
        """Ask for `copies` answers to each of `prompts`; nothing is taken yet.

        `prompt_tokens` is an estimate for all prompts together, `route` the path
        template for the audit log, `model` the id of the one that is asked. What does not
        generate never `queues` for a lane: it observes no events, and settles once.
        """
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.entered = False
        self._admission = admission
        self._client = client
        self._route = route
        self._prompts = prompts
        self._copies = copies
        self._queues = queues
        self.model = model
        self._backlog = admission.line(model).backlog
        self._charged: dict[int, int] = {}  # estimated tokens of prompts not yet counted
        self._entries: list[Entry] = []
        self._account: Account | None = None
        self._entered_at = 0.0

    def __enter__(self) -> None:
        """Take a place. Raises `ApiError` 429 or 503, and then nothing was taken."""
        taken = self._admission.take(
            self._client,
            prompt_tokens=self.prompt_tokens,
            queues=self._queues,
            model=self.model,
        )
        self._account, expected = taken
        self.entered = True
        now = self._entered_at = self._admission.clock()
        self._account.requests.add(1, at=now, now=now)
        self._account.tokens.add(self.prompt_tokens, at=now, now=now)
        if not self._queues:
            return
        share, rest = divmod(self.prompt_tokens, self._prompts)
        self._charged = dict.fromkeys(range(self._prompts), share)
        self._charged[0] += rest
        for number in range(self._prompts):
            for copy in range(self._copies):
                tokens = self._charged[number] if copy == 0 else 0
                self._entries.append(
                    self._backlog.enter(
                        self._client.id,
                        priority=self._client.limits.priority,
                        tokens=tokens,
                        now=now,
                        # It holds for the first one; the others come behind that.
                        expected_seconds=0.0 if self._entries else expected,
                    )
                )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Give the place back and write the audit line."""
        if self._account is None:
            return
        now = self._admission.clock()
        for entry in self._entries:
            if entry.stage is not Stage.ENDED:
                self._backlog.end(entry, now=now, complete=False)
        self._admission.give_back(self._account)
        self._account = None
        audit.generation(
            self._client,
            route=self._route,
            outcome=_outcome(error),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=now - self._entered_at,
        )

    def observe(self, index: int, event: Event) -> None:
        """Take note of the next event of sequence `index`, now."""
        if self._account is None:
            return
        entry, backlog, now = self._entries[index], self._backlog, self._admission.clock()
        match event:
            case Accepted(prompt_tokens=tokens):
                self._count_prompt(index, tokens)
                if entry.stage is Stage.SENT:  # one that another process takes up is known
                    backlog.accept(entry)
            case Queued():
                # Once it is accepted, the engine's statistics say how long that takes.
                if entry.stage is Stage.SENT:
                    backlog.disturb(entry)  # it waits for its model to be loaded
            case Restarted():
                backlog.disturb(entry)
            case Started(cached_tokens=cached):
                if entry.stage in (Stage.SENT, Stage.WAITING):  # a preempted one starts again
                    backlog.start(entry, cached_tokens=cached, now=now)
            case Delta(tokens=tokens):
                self.completion_tokens += len(tokens)
                self._account.tokens.add(len(tokens), at=now, now=now)
                if entry.expected_seconds:
                    backlog.first(entry, now=now)
            case Finished():
                if entry.stage is not Stage.ENDED:
                    backlog.end(entry, now=now, complete=True)
            case _:
                assert_never(event)

    def settle(self, tokens: int) -> None:
        """Charge `tokens` in place of the estimate, for a request without events."""
        if self._account is not None:
            correction = tokens - self.prompt_tokens
            self.prompt_tokens = tokens
            self._account.tokens.add(correction, at=self._entered_at, now=self._admission.clock())

    def _count_prompt(self, index: int, tokens: int) -> None:
        number, copy = divmod(index, self._copies)
        if copy or number not in self._charged or self._account is None:
            return
        correction = tokens - self._charged.pop(number)
        self.prompt_tokens += correction
        self._account.tokens.add(correction, at=self._entered_at, now=self._admission.clock())
        self._backlog.count(self._entries[index], tokens)


def estimate_tokens(prompt: Prompt) -> int:
    """About how many tokens a prompt has, without asking the engine; at least 1."""
    match prompt:
        case TokensPrompt(tokens=tokens):
            return max(1, len(tokens))
        case TextPrompt(text=text):
            return 1 + len(text.encode(errors="replace")) // BYTES_PER_TOKEN
        case ChatPrompt(messages=messages, tools=tools):
            texts = [message.content for message in messages]
            texts += [call.arguments for message in messages for call in message.tool_calls]
            texts += [tool.description + tool.parameters for tool in tools]
            size = sum(len(text.encode(errors="replace")) for text in texts)
            return 1 + size // BYTES_PER_TOKEN + MESSAGE_TOKENS * (len(messages) + len(tools))
        case _:
            assert_never(prompt)


def _outcome(error: BaseException | None) -> str:
    match error:
        case None:
            return "completed"
        case Exception():
            return "error"
        case _:
            return "cancelled"
