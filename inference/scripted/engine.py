"""The `Engine` that plays a `Script`.

The same request gives the same tokens, text and log probabilities on every machine;
at a temperature above 0 they depend on `seed` as well (None counts as 0, so that
nothing here is random). Of the sampling fields only those two have an effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import msgspec

from inference.errors import EngineUnavailable, InvalidRequest, ModelLoadError, TemplateError
from inference.events import (
    Accepted,
    Delta,
    Embeddings,
    Event,
    Finished,
    FinishReason,
    Queued,
    Scores,
    Started,
    Usage,
)
from inference.lifecycle import Lifecycle
from inference.requests import (
    ChatPrompt,
    EmbeddingRequest,
    GenerationRequest,
    Prompt,
    RerankRequest,
)
from inference.scripted import pieces, reply, vectors
from inference.scripted.faults import Faults
from inference.scripted.lanes import Lanes, Run
from inference.scripted.script import RefuseTemplate, Rule, Script
from inference.scripted.sleepers import Sleepers
from inference.status import EngineHealth, EngineState, EngineStats, ModelInfo

_DEFAULT_RULE = Rule()


class ScriptedEngine:
    """One scripted engine; `inference.engine` says what its methods promise.

    Who has to wait is told its place once; when it will start is not guessed. A request's
    constraint is taken and not looked at: the engine plays its script.
    `requests_seen` counts generations that were begun, whatever became of them.
    One event loop owns all that changes here: the counters, `_life`, `_lanes`,
    `_sleepers` and `_faults`.
    """

    def __init__(self, script: Script, *, model_id: str = "scripted") -> None:
        self.requests_seen = 0
        self._script = script
        self._model_id = model_id
        self._life = Lifecycle()
        self._load_began: float | None = None
        self._lanes = Lanes(total=script.lanes, max_waiting=script.max_waiting)
        self._sleepers = Sleepers()
        self._faults = Faults(self._life, self._lanes)
        self._prompt_tokens = 0
        self._steps = 0

    async def start(self) -> None:
        """Wait for the script's `load_seconds`. Raises its `load_error` if it has one."""
        self._load_began = asyncio.get_running_loop().time()
        await asyncio.sleep(self._script.load_seconds)
        if self._life.state is EngineState.CLOSED:
            raise EngineUnavailable("The engine is closed.")
        if self._script.load_error:
            self._life.move(EngineState.FAILED, self._script.load_error)
            raise ModelLoadError(self._script.load_error)
        self._life.move(EngineState.READY)

    async def close(self) -> None:
        """End every sequence with `EngineUnavailable`. A second call does nothing."""
        if self._life.state is EngineState.CLOSED:
            return
        self._life.move(EngineState.CLOSED)
        self._faults.close()
        self._lanes.end_all(EngineUnavailable("The engine is closed."))

    @property
    def info(self) -> ModelInfo:
        """The made-up model. Raises `EngineUnavailable` before the first READY."""
        if self._life.state in (EngineState.STARTING, EngineState.FAILED):
            self._life.require_ready()
        script = self._script
        return ModelInfo(
            id=self._model_id,
            description="scripted engine, no model",
            quantization="none",
            parameters=0,
            size_bytes=0,
            vocab_size=pieces.VOCAB_SIZE,
            context_length=script.context_length,
            train_context_length=script.context_length,
            has_chat_template=True,
            engine="scripted",
            device="none",
            layout="none",
            lanes=script.lanes,
            cache_tokens=script.lanes * script.context_length,
            threads=0,
            dialect=script.dialect,
            thinking=script.thinking,
            embedding_length=script.embedding_length,
            reranks=script.reranks,
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Play the first rule that applies; events come as `inference.events` says.

        Tokens are due at fixed times after the start: a consumer that falls behind
        finds the backlog at once, as it would behind a real engine's channel.
        """
        self.requests_seen += 1
        self._life.require_ready()
        if self._script.embedding_length or self._script.reranks:
            raise InvalidRequest("This model generates no text.", param="model")
        rule = self._rule_for(request.prompt)
        run = self._new_run(rule, request)
        answer = self._answer(rule, request, run)
        self._lanes.join(run)
        try:
            loop = asyncio.get_running_loop()
            accepted_at = loop.time()
            yield Accepted(prompt_tokens=run.prompt_tokens)
            for wait in rule.queued:
                yield Queued(position=wait.position, expected_seconds=wait.expected_seconds)
                await run.pause(loop.time() + wait.seconds)
                run.check()
            if not run.has_lane:
                yield Queued(position=self._lanes.position(run), expected_seconds=0.0)
            while not run.has_lane:
                await run.pause(None)
                run.check()
            started_at = loop.time()
            self._prompt_tokens += run.prompt_tokens
            yield Started(cached_tokens=0, queue_seconds=started_at - accepted_at)
            text = reply.Transcript(stop=request.stop, min_tokens=request.min_tokens)
            due = started_at + rule.first_token_seconds
            for number in range(answer.length):
                if run.fault is not None:
                    await self._faults.strike(run)
                await run.pause(due)
                run.check()
                if run.restarts != self._life.restarts:
                    yield await self._faults.taken_up(run)
                due += rule.token_seconds
                run.written += 1
                self._steps += 1
                token = answer.token(number)
                certain = text.feed(token, last=run.written == answer.length)
                yield Delta(text=certain, tokens=(token,), logprobs=reply.logprobs(token, request))
                if text.stop is not None:
                    break
            await self._faults.strike(run)
            yield self._finished(run, answer, text)
        finally:
            self._lanes.leave(run)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Made-up vectors. Raises `InvalidRequest` where the script makes none."""
        self._life.require_ready()
        value = await vectors.embed(request, self._script)
        self._prompt_tokens += sum(value.tokens)
        return value

    async def rerank(self, request: RerankRequest) -> Scores:
        """Made-up scores. Raises `InvalidRequest` where the script makes none."""
        self._life.require_ready()
        value = await vectors.rerank(request, self._script)
        self._prompt_tokens += sum(value.tokens)
        return value

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`; there are no special tokens to add or parse."""
        self._life.require_ready()
        return pieces.tokenize(text)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of token ids. Raises `InvalidRequest` for an id outside the vocabulary."""
        self._life.require_ready()
        if not pieces.known(tokens):
            raise InvalidRequest("A token id is outside the vocabulary.", param="tokens")
        return pieces.detokenize(tokens)

    async def apply_template(self, prompt: ChatPrompt) -> str:
        """A line `role: content` for each message. Raises `TemplateError` on that fault."""
        self._life.require_ready()
        if isinstance(self._rule_for(prompt).fault, RefuseTemplate):
            raise TemplateError("The chat template refused the messages.", param="messages")
        return reply.render(prompt)

    async def count_tokens(self, prompt: Prompt) -> int:
        """Prompt tokens of `prompt`. Raises `InvalidRequest` for unknown token ids."""
        self._life.require_ready()
        return reply.prompt_tokens(prompt)

    def stats(self) -> EngineStats:
        """The numbers now. One token is one step; counters outlive a scripted death."""
        full = self._lanes.busy >= self._lanes.total
        return EngineStats(
            running=self._lanes.busy,
            waiting=self._lanes.waiting,
            waiting_tokens=self._lanes.waiting_tokens,
            expected_wait_seconds=self._script.expected_wait_seconds if full else 0.0,
            lanes_total=self._lanes.total,
            cache_used=self._lanes.tokens,
            cache_total=self._script.lanes * self._script.context_length,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._steps,
        )

    def health(self) -> EngineHealth:
        """State and progress; the latter follows the clock over `load_seconds`."""
        progress = 0.0
        if self._life.state in (EngineState.READY, EngineState.RESTARTING):
            progress = 1.0
        elif self._load_began is not None and self._script.load_seconds > 0:
            elapsed = asyncio.get_running_loop().time() - self._load_began
            progress = min(1.0, elapsed / self._script.load_seconds)
        health = self._life.health(load_progress=progress)
        return msgspec.structs.replace(health, replays=self._faults.replays)

    async def state_changed(self) -> None:
        """Return after the next change of `health().state`; nothing follows CLOSED."""
        await self._life.changed()

    def _rule_for(self, prompt: Prompt) -> Rule:
        text = reply.last_user_text(prompt)
        return next((rule for rule in self._script.rules if rule.applies_to(text)), _DEFAULT_RULE)

    def _new_run(self, rule: Rule, request: GenerationRequest) -> Run:
        """The sequence with the fault it has to meet. Raises `TemplateError` for that fault."""
        fault = self._faults.next_of(rule)
        if isinstance(fault, RefuseTemplate):
            raise TemplateError("The chat template refused the messages.", param="messages")
        prompt_tokens = reply.prompt_tokens(request.prompt)
        return Run(
            request,
            fault,
            prompt_tokens,
            restarts=self._life.restarts,
            sleepers=self._sleepers,
        )

    def _answer(self, rule: Rule, request: GenerationRequest, run: Run) -> reply.Answer:
        """What will be said. Raises the `RequestError` of whatever cannot be accepted."""
        reply.check_bias(request)
        limit = reply.token_limit(request, run.prompt_tokens, self._script.context_length)
        return reply.Answer(rule, request, prompt_tokens=run.prompt_tokens, limit=limit)

    def _finished(self, run: Run, answer: reply.Answer, text: reply.Transcript) -> Finished:
        ended = text.stop is not None or answer.ends_by_itself
        return Finished(
            reason=FinishReason.STOP if ended else FinishReason.LENGTH,
            usage=Usage(prompt_tokens=run.prompt_tokens, completion_tokens=run.written),
            stop=text.stop,
        )
