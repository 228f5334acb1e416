"""The protocol between the server and whatever generates tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from inference.events import Embeddings, Event, Scores
from inference.requests import (
    ChatPrompt,
    EmbeddingRequest,
    GenerationRequest,
    Prompt,
    RerankRequest,
)
from inference.status import EngineHealth, EngineStats, ModelInfo


class Engine(Protocol):
    """One loaded model. All methods belong to the event loop that called `start`."""

    async def start(self) -> None:
        """Begin loading and return once the engine is ready.

        Raises `ModelLoadError` when it never will be. `health()` answers meanwhile.
        """

    async def close(self) -> None:
        """Stop everything and free the model. Running generations raise `EngineUnavailable`."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model. Raises `EngineUnavailable` before the first READY."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Run one sequence; the order of events is in `inference.events`.

        Closing the iterator (`aclosing`) aborts the sequence: its lane is free from
        the engine's next step on. Raises any `EngineError` except `ModelLoadError`;
        request errors come before `Accepted`.
        """

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Vectors for the inputs of a request. Cancelling it stops the work.

        Raises any `EngineError` except `ModelLoadError`: `InvalidRequest` for a model that
        makes none, `ContextLengthExceeded` naming the first input that is too long.
        """

    async def rerank(self, request: RerankRequest) -> Scores:
        """Scores for the documents of a request; else as `embed`."""

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`."""

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises `InvalidRequest` for an id outside the vocabulary.
        """

    async def apply_template(self, prompt: ChatPrompt) -> str:
        """The prompt text the model would see. Raises `TemplateError`."""

    async def count_tokens(self, prompt: Prompt) -> int:
        """Prompt tokens a generation of `prompt` would use."""

    def stats(self) -> EngineStats:
        """The latest snapshot; zeros before the first."""

    def health(self) -> EngineHealth:
        """The engine's state, without asking the engine: it answers while it hangs."""

    async def state_changed(self) -> None:
        """Return after the next change of `health().state`; nothing follows CLOSED."""
