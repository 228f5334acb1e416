"""What `POST /v1/completions` takes.

Follows OpenAI's reference (https://platform.openai.com/docs/api-reference/completions):
so `max_tokens` is 16 where the request does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from inference.requests import TOP_LOGPROBS_MAX, TextPrompt, TokensPrompt
from server.errors import invalid
from server.wire.common import Limits, TokenId
from server.wire.constraints import ConstrainedFields

DEFAULT_MAX_TOKENS = 16


class CompletionFields(ConstrainedFields, frozen=True, kw_only=True):
    """A completion's request. `prompt` is one text or one list of tokens, or several."""

    prompt: str | list[str | TokenId | list[TokenId]]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None


def prompts_of(fields: CompletionFields, limits: Limits) -> list[TextPrompt | TokensPrompt]:
    """The prompts, in the order of their choices. Raises `ApiError` 400, naming the one."""
    given = fields.prompt
    if isinstance(given, str):
        return [_text("prompt", given)]
    if not given:
        raise invalid("`prompt` must not be empty.", "prompt")
    tokens = [item for item in given if isinstance(item, int)]
    if len(tokens) == len(given):
        return [_tokens("prompt", tokens, limits)]
    prompts: list[TextPrompt | TokensPrompt] = []
    for index, item in enumerate(given):
        where = f"prompt[{index}]"
        if isinstance(item, int) or type(item) is not type(given[0]):
            raise invalid("`prompt` must not mix texts and tokens.", where, "invalid_type")
        prompts.append(
            _text(where, item) if isinstance(item, str) else _tokens(where, item, limits)
        )
    return prompts


def _text(where: str, text: str) -> TextPrompt:
    if not text:
        raise invalid(f"`{where}` must not be empty.", where)
    return TextPrompt(text=text)


def _tokens(where: str, tokens: Sequence[int], limits: Limits) -> TokensPrompt:
    if not tokens:
        raise invalid(f"`{where}` must not be empty.", where)
    for index, token in enumerate(tokens):
        if token >= limits.vocab_size:
            raise invalid(
                f"Token ids must be below {limits.vocab_size}, the size of the vocabulary.",
                f"{where}[{index}]",
            )
    return TokensPrompt(tokens=tuple(tokens))


def check_echo(fields: CompletionFields) -> None:
    """Refuse `echo` with `logprobs`: it asks for the prompt's, which nobody computes."""
    if fields.echo and fields.logprobs is not None:
        raise invalid(
            "`logprobs` together with `echo` is not supported by this server.",
            "logprobs",
            "unsupported_parameter",
        )
