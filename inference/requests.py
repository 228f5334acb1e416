"""What goes into an engine: prompts, sampling, constraints, requests.

These are `msgspec.Struct`s because they cross the socket between the server and the
engine process as they are: one definition, checked on arrival. All are frozen. What comes
out is in `inference.events`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, assert_never

from msgspec import Meta, Struct

TOP_LOGPROBS_MAX = 20
LOGIT_BIAS_MAX_ENTRIES = 1024
STOP_MAX_STRINGS = 16
STOP_MAX_CHARS = 256


class Value(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the plain values below: immutable, compared by content."""


class ToolCall(Value, frozen=True, kw_only=True):
    """A call that the model made earlier; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class ChatMessage(Value, frozen=True, kw_only=True):
    """One message as the chat template sees it.

    An assistant's may have `tool_calls` and the `reasoning` that came before its content;
    the result of a call has the role `tool` and names the call by `tool_call_id`.
    """

    role: str
    content: str
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(Value, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


class TextPrompt(Value, frozen=True, kw_only=True, tag="text"):
    """Raw text. `add_special` lets the vocabulary add its BOS where it wants one."""

    text: str
    add_special: bool = True


class TokensPrompt(Value, frozen=True, kw_only=True, tag="tokens"):
    """Token ids, used as they are."""

    tokens: tuple[int, ...]


class ChatPrompt(Value, frozen=True, kw_only=True, tag="chat"):
    """Messages and tools for the model's own chat template.

    `add_generation_prompt` opens the assistant's turn, as a chat completion needs.
    `variables` are further names that the template may look at, such as `enable_thinking`.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    add_generation_prompt: bool = True
    variables: tuple[tuple[str, bool | int | float | str], ...] = ()


Prompt: TypeAlias = TextPrompt | TokensPrompt | ChatPrompt


class SamplingParams(Value, frozen=True, kw_only=True):
    """How the next token is drawn. The defaults are llama.cpp's.

    `temperature` 0 is greedy: the most likely token, whatever the other filters say.
    `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1, `presence_penalty` 0 and
    `frequency_penalty` 0 each switch their filter off. Penalties look back over the
    last `PENALTY_WINDOW` tokens, prompt included. `logit_bias` holds (token id, bias)
    pairs. `seed` None draws one; the engine client fills it in before sending, so the
    same random stream can be taken up again.
    """

    temperature: Annotated[float, Meta(ge=0.0, le=5.0)] = 0.8
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 40
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.95
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)] | None = None


PENALTY_WINDOW = 64


class JsonSchema(Value, frozen=True, kw_only=True, tag="json_schema"):
    """A JSON value that the schema, a JSON text, accepts."""

    schema: str


class Regex(Value, frozen=True, kw_only=True, tag="regex"):
    """The whole text matches the pattern, anchored at both ends."""

    pattern: str


class Choice(Value, frozen=True, kw_only=True, tag="choice"):
    """The whole text is one of the options."""

    options: tuple[str, ...]


class Grammar(Value, frozen=True, kw_only=True, tag="grammar"):
    """The text follows a context-free grammar: llguidance's Lark, or llama.cpp's GBNF."""

    syntax: Literal["lark", "gbnf"]
    text: str


Constraint: TypeAlias = JsonSchema | Regex | Choice | Grammar
"""What a generated text must be; no token is drawn that would make it impossible."""


def constraint_chars(constraint: Constraint) -> int:
    """How long a constraint is (characters), its options together."""
    match constraint:
        case JsonSchema(schema=text) | Regex(pattern=text) | Grammar(text=text):
            return len(text)
        case Choice(options=options):
            return sum(map(len, options))
        case _:
            assert_never(constraint)


class Thinking(Value, frozen=True, kw_only=True):
    """How a model marks its reasoning, and how many tokens it may spend on it.

    At `budget_tokens` the end mark is written for it; None leaves it its time. A constraint
    holds from behind the end mark on.
    """

    start: str
    end: str
    budget_tokens: Annotated[int, Meta(ge=0)] | None = None


StopString: TypeAlias = Annotated[str, Meta(min_length=1, max_length=STOP_MAX_CHARS)]


class GenerationRequest(Value, frozen=True, kw_only=True):
    """One sequence to generate.

    `max_tokens` None means: until the context is full. `min_tokens` and `ignore_eos`
    hold back the end-of-generation tokens (and, up to `min_tokens`, the stop strings).
    `logprobs` None sends none, 0 the chosen token's, n also the n most likely ones,
    computed from the raw logits before any filter. `client` is who asked, for fair
    shares; a higher `priority` goes first. `constraint` bounds what may be generated.
    """

    id: str
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    ignore_eos: bool = False
    stop: Annotated[tuple[StopString, ...], Meta(max_length=STOP_MAX_STRINGS)] = ()
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    constraint: Constraint | None = None
    thinking: Thinking | None = None
    client: str = ""
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0


EMBEDDING_INPUTS_MAX = 2048


class EmbeddingRequest(Value, frozen=True, kw_only=True, tag="embedding"):
    """Texts or tokens to make vectors of, one each.

    An input with more tokens than the model takes is refused, or cut after
    `truncate_tokens` where that is given (0: after as many as the model takes). `client`
    is who asked, for fair shares; a higher `priority` goes first.
    """

    id: str
    inputs: Annotated[
        tuple[TextPrompt | TokensPrompt, ...], Meta(min_length=1, max_length=EMBEDDING_INPUTS_MAX)
    ]
    truncate_tokens: Annotated[int, Meta(ge=0)] | None = None
    client: str = ""
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0


class RerankRequest(Value, frozen=True, kw_only=True, tag="rerank"):
    """Documents to score against a query; the rest is as for `EmbeddingRequest`.

    What is cut of a pair that is too long is the end of the document.
    """

    id: str
    query: str
    documents: Annotated[tuple[str, ...], Meta(min_length=1, max_length=EMBEDDING_INPUTS_MAX)]
    truncate_tokens: Annotated[int, Meta(ge=0)] | None = None
    client: str = ""
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
