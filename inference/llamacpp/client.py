"""The llama.cpp engine as the server sees it: an `Engine` over its own process.

Messages are handed on as they arrive, on the event loop, without a task in between.
Each sequence has a channel of its own: a consumer that falls behind parks its own
sequence and nobody else's.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncGenerator, Sequence

import msgspec

from inference.errors import EngineDied, EngineError, EngineUnavailable
from inference.events import Embeddings, Event, Finished, Scores
from inference.llamacpp.calls import Calls
from inference.llamacpp.embeddings.calls import EmbeddingCalls
from inference.llamacpp.messages import (
    ApplyTemplate,
    CountTokens,
    Detokenize,
    Embedded,
    Refused,
    Reply,
    Report,
    Tokenize,
    WorkerConfig,
)
from inference.llamacpp.sequences import Sequences
from inference.requests import (
    ChatPrompt,
    EmbeddingRequest,
    GenerationRequest,
    Prompt,
    RerankRequest,
)
from inference.status import EngineHealth, EngineStats, ModelInfo
from inference.supervisor import RestartPolicy, Supervisor

# -P: a folder `models` or `server` where the server was started is not ours to import.
WORKER_COMMAND = (sys.executable, "-P", "-m", "inference.llamacpp.worker")
SEEDS = 0xFFFF_FFFF


class LlamaCppEngine:
    """One model in one supervised process; `inference.engine` says what methods promise.

    `high_events` waiting for a consumer park its sequence, `low_events` resume it; where
    tokens are gathered, an event is a few of them.
    `call_seconds` is how long a call (`tokenize` and its like) may take, `replay_seconds`
    how long running sequences are held for another process when theirs is gone. `_info`
    and `_stats` are what the process said last; one event loop owns everything here.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        policy: RestartPolicy | None = None,
        high_events: int = 256,
        low_events: int = 64,
        call_seconds: float = 30.0,
        replay_seconds: float = 60.0,
    ) -> None:
        self._supervisor = Supervisor(command, config, self, policy)
        self._sequences = Sequences(
            self._supervisor.send,
            high_events=high_events,
            low_events=low_events,
            replay_seconds=replay_seconds,
        )
        self._embeddings = EmbeddingCalls(self._supervisor.send, replay_seconds=replay_seconds)
        self._calls = Calls(self._supervisor.send, answer_seconds=call_seconds)
        self._info: ModelInfo | None = None
        self._stats = EngineStats()

    async def start(self) -> None:
        """Start the process and wait until the model is loaded. Raises `ModelLoadError`."""
        await self._supervisor.start()

    async def close(self) -> None:
        """End every sequence with `EngineUnavailable`, then the process."""
        await self._supervisor.close()

    @property
    def info(self) -> ModelInfo:
        """The model loaded last. Raises `EngineUnavailable` before the first READY."""
        if self._info is None:
            raise EngineUnavailable("The engine is starting.")
        return self._info

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Run one sequence; closing the iterator aborts it.

        When the process ends on the way another takes it up where it stands. Raises, after
        all events that had arrived, `EngineDied` when none is there in time and
        `RequestQuarantined` when this request was the cause; `InvalidRequest` for an id
        that is running.
        """
        self._supervisor.check()
        # Nothing is registered before the first step: a generator that is closed
        # before that never runs its `finally`.
        sequence = self._sequences.open(_with_seed(request))
        try:
            while True:
                event = await sequence.channel.get()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._sequences.leave(sequence)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Vectors for the inputs of a request. Raises as `generate`, where it is refused too."""
        self._supervisor.check()
        value = await self._embeddings.ask(request)
        if not isinstance(value, Embeddings):
            raise EngineError("The engine gave an answer of the wrong kind.")
        return value

    async def rerank(self, request: RerankRequest) -> Scores:
        """Scores for the documents of a request. Raises as `embed`."""
        self._supervisor.check()
        value = await self._embeddings.ask(request)
        if not isinstance(value, Scores):
            raise EngineError("The engine gave an answer of the wrong kind.")
        return value

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`."""
        self._supervisor.check()
        tokens = await self._calls.ask(
            lambda call: Tokenize(
                call=call, text=text, add_special=add_special, parse_special=parse_special
            ),
            tuple,
        )
        return list(tokens)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of token ids. Raises `InvalidRequest` for an id outside the vocabulary."""
        self._supervisor.check()
        ids = tuple(tokens)
        return await self._calls.ask(lambda call: Detokenize(call=call, tokens=ids), str)

    async def apply_template(self, prompt: ChatPrompt) -> str:
        """The prompt text the model would see. Raises `TemplateError`."""
        self._supervisor.check()
        return await self._calls.ask(lambda call: ApplyTemplate(call=call, prompt=prompt), str)

    async def count_tokens(self, prompt: Prompt) -> int:
        """Prompt tokens a generation of `prompt` would use."""
        self._supervisor.check()
        return await self._calls.ask(lambda call: CountTokens(call=call, prompt=prompt), int)

    def stats(self) -> EngineStats:
        """The snapshot after the last step; zeros after a restart, counters included."""
        return self._stats

    def health(self) -> EngineHealth:
        """The engine's state, without asking the process."""
        sequences, embeddings = self._sequences, self._embeddings
        return msgspec.structs.replace(
            self._supervisor.health(),
            replays=sequences.replays + embeddings.replays,
            quarantined=sequences.quarantined + embeddings.quarantined,
        )

    async def state_changed(self) -> None:
        """Return after the next change of `health().state`; nothing follows CLOSED."""
        await self._supervisor.state_changed()

    @property
    def pid(self) -> int | None:
        """The engine process, None while there is none: for operators and fault tests."""
        return self._supervisor.pid

    def on_ready(self, info: ModelInfo) -> None:
        """The supervisor calls it: a process is ready."""
        self._info = info
        self._sequences.on_ready()
        self._embeddings.on_ready()

    def on_message(self, message: Report | Embedded | Reply | Refused) -> None:
        """The supervisor calls it: the process said something."""
        if isinstance(message, Report):
            self._stats = message.stats
            for item in message.events:
                self._sequences.dispatch(item)
                self._embeddings.dispatch(item)
            self._sequences.stepped(message.stats.steps)
            self._embeddings.stepped(message.stats.steps)
        elif isinstance(message, Embedded):
            self._embeddings.answered(message)
        else:
            self._calls.answer(message)

    def on_down(self) -> None:
        """The supervisor calls it: the process is gone, with all that was in it."""
        self._stats = EngineStats()
        self._sequences.on_down()
        self._embeddings.on_down()
        self._calls.end_all(_restarting)

    def on_ended(self, *, killed: bool) -> None:
        """The supervisor calls it: how the process ended."""
        self._sequences.on_ended(killed=killed)
        self._embeddings.on_ended(killed=killed)

    def on_over(self, *, closed: bool) -> None:
        """The supervisor calls it: there will be no further process."""
        self._stats = EngineStats()
        self._sequences.end_all(_closed if closed else _died)
        self._embeddings.end_all(_closed if closed else _died)
        self._calls.end_all(_closed if closed else _died)

    @property
    def owes_steps(self) -> bool:
        """The supervisor reads it: whether the process has work that should get on."""
        return self._sequences.owes_steps or self._embeddings.owes_steps


def _with_seed(request: GenerationRequest) -> GenerationRequest:
    """The request with a seed, so that its random stream can be taken up again."""
    if request.sampling.seed is not None:
        return request
    sampling = msgspec.structs.replace(request.sampling, seed=secrets.randbelow(SEEDS))
    return msgspec.structs.replace(request, sampling=sampling)


def _closed() -> EngineError:
    return EngineUnavailable("The engine is closed.")


def _restarting() -> EngineError:
    return EngineUnavailable("The engine is restarting.")


def _died() -> EngineError:
    return EngineDied("The engine ended while this request was running.")
