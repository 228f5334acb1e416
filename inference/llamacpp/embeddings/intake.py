"""From a request for vectors to tokens, checked against one model. Runs on the main thread.

Everything a request can get wrong is found here, before the loop sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

import llama_cpp

from inference.errors import ContextLengthExceeded, InvalidRequest, TemplateError
from inference.llamacpp.bindings import Model
from inference.llamacpp.embeddings.queue import Job
from inference.llamacpp.embeddings.wordpiece import WordPiece, is_plain
from inference.requests import (
    ChatPrompt,
    EmbeddingRequest,
    Prompt,
    RerankRequest,
    TextPrompt,
    TokensPrompt,
)

RERANK_TEMPLATE_KEY: Final = b"tokenizer.chat_template.rerank"
QUERY, DOCUMENT = "{query}", "{document}"
NORMALISERS: Final = (
    b"tokenizer.ggml.normalizer.lowercase",
    b"tokenizer.ggml.normalizer.strip_accents",
)
"""True where a file does not say otherwise."""

CHARS_A_TOKEN: Final = 100
"""A text with more of them for each token of the context is too long, and not even read.

No text has so many, and tokenizing megabytes would keep all other requests waiting.
"""

_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL


class EmbeddingIntake:
    """Reads the inputs of requests. Immutable, but for what its tokenizer remembers."""

    def __init__(self, model: Model, *, context: int, ranks: bool) -> None:
        """`context` is the most tokens of one input; `ranks` for a model that scores pairs."""
        self._model = model
        self._context = context
        self._ranks = ranks
        self._template = model.meta(RERANK_TEMPLATE_KEY)
        self._wordpiece = _wordpiece(model)

    def job(self, request: EmbeddingRequest | RerankRequest) -> Job:
        """Tokens for all inputs. Raises `RequestError`s, which name the input."""
        match request:
            case EmbeddingRequest() if self._ranks:
                raise InvalidRequest("This model scores documents; use /v1/rerank.", param="model")
            case EmbeddingRequest():
                texts = [
                    self._input(each, f"input[{number}]", request.truncate_tokens)
                    for number, each in enumerate(request.inputs)
                ]
            case RerankRequest() if not self._ranks:
                raise InvalidRequest("This model does not score documents.", param="model")
            case RerankRequest():
                texts = self._pairs(request)
        return Job(id=request.id, client=request.client, priority=request.priority, texts=texts)

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of one input. Raises `RequestError`s; an empty input is one."""
        match prompt:
            case TokensPrompt(tokens=given):
                self._model.check_tokens(given, param="prompt")
                tokens = list(given)
            case TextPrompt(text=text, add_special=add_special):
                tokens = self.tokenize(text, add_special=add_special, parse_special=False)
            case ChatPrompt():
                self.render(prompt)
        if not tokens:
            raise InvalidRequest("The input is empty.", param="prompt")
        return tokens

    def render(self, prompt: ChatPrompt) -> NoReturn:
        """Refuse: there is nothing to chat with. Raises `TemplateError`."""
        raise TemplateError("This model makes embeddings and has no chat template.")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`, as the model was trained with them."""
        if self._wordpiece is None or is_plain(text):
            return self._model.tokenize(text, add_special=add_special, parse_special=parse_special)
        tokens = self._wordpiece.tokens(text)
        if not add_special:
            return tokens
        vocab = self._model.vocab
        return [llama_cpp.llama_vocab_bos(vocab), *tokens, llama_cpp.llama_vocab_sep(vocab)]

    def _input(self, prompt: TextPrompt | TokensPrompt, where: str, cut: int | None) -> list[int]:
        match prompt:
            case TokensPrompt(tokens=given):
                self._model.check_tokens(given, param=where)
                tokens, kept = list(given), 0
            case TextPrompt(text=text):
                # Nothing that a client writes becomes a special token.
                text = self._readable(text, where, cut)
                tokens = self.tokenize(text, add_special=True, parse_special=False)
                kept = self._special_behind()
        if not tokens:
            raise InvalidRequest(f"`{where}` is empty.", param=where)
        return self._fitting(tokens, where, cut, kept=kept)

    def _pairs(self, request: RerankRequest) -> list[list[int]]:
        """Each document with the query, which is read once."""
        query = self._readable(request.query, "query", None)
        if self._template is not None:
            head, _, tail = self._template.partition(DOCUMENT)
            before, behind = self._filled(head, query), self._filled(tail, query)
        else:
            before, behind = self._around(query)
        cut = request.truncate_tokens
        pairs = []
        for number, document in enumerate(request.documents):
            where = f"documents[{number}]"
            tokens = [*before, *self._plain(self._readable(document, where, cut)), *behind]
            pairs.append(self._fitting(tokens, where, cut, kept=len(behind), least=len(before)))
        return pairs

    def _filled(self, template: str, query: str) -> list[int]:
        """Part of the file's template; only what it says itself may be a special token."""
        tokens = []
        for number, part in enumerate(template.split(QUERY)):
            if number:
                tokens += self._plain(query)
            tokens += self.tokenize(part, add_special=False, parse_special=True)
        return tokens

    def _around(self, query: str) -> tuple[list[int], list[int]]:
        """What stands before and behind a document, of a file without a template.

        `[CLS] query [SEP] document [SEP]` for BERT, `<s> query </s></s> document </s>` for
        XLM-RoBERTa.
        """
        vocab = self._model.vocab
        sep = llama_cpp.llama_vocab_sep(vocab)
        end = llama_cpp.llama_vocab_eos(vocab)
        end = sep if end < 0 else end
        bos = [llama_cpp.llama_vocab_bos(vocab)] if llama_cpp.llama_vocab_get_add_bos(vocab) else []
        eos = [end] if llama_cpp.llama_vocab_get_add_eos(vocab) else []
        between = [sep] if llama_cpp.llama_vocab_get_add_sep(vocab) else []
        return [*bos, *self._plain(query), *eos, *between], eos or between

    def _plain(self, text: str) -> list[int]:
        """A client's text, in which nothing becomes a special token."""
        return self.tokenize(text, add_special=False, parse_special=False)

    def _readable(self, text: str, where: str, cut: int | None) -> str:
        """The text, without what is certainly cut off. Raises `ContextLengthExceeded`."""
        most = CHARS_A_TOKEN * self._context
        if len(text) > most and cut is None:
            raise ContextLengthExceeded(
                f"This model takes {self._context} tokens at once; "
                f"`{where}` has {len(text)} characters.",
                param=where,
            )
        return text[:most]

    def _fitting(
        self, tokens: list[int], where: str, cut: int | None, *, kept: int, least: int = 0
    ) -> list[int]:
        """The tokens, cut if that was asked for; the last `kept` stay, and the first `least`."""
        most = self._context if not cut else min(cut, self._context)
        if len(tokens) <= most:
            return tokens
        if cut is None or most <= kept + least:
            raise ContextLengthExceeded(
                f"This model takes {self._context} tokens at once; `{where}` has {len(tokens)}.",
                param=where,
            )
        return [*tokens[: most - kept], *tokens[len(tokens) - kept :]]

    def _special_behind(self) -> int:
        """How many special tokens end a text."""
        special = self._model.tokenize("", add_special=True, parse_special=False)
        before = llama_cpp.llama_vocab_get_add_bos(self._model.vocab)
        return max(0, len(special) - int(bool(before)))


def _wordpiece(model: Model) -> WordPiece | None:
    """The tokenizer for a vocabulary of this kind that knows no case; None for others."""
    if llama_cpp.llama_vocab_type(model.vocab) != llama_cpp.LLAMA_VOCAB_TYPE_WPM:
        return None
    if "false" in map(model.meta, NORMALISERS):
        return None
    pieces: dict[str, int] = {}
    unknown = 0
    for token, text in enumerate(_texts(model)):
        attributes = llama_cpp.llama_vocab_get_attr(model.vocab, token)
        if text == "[UNK]":
            unknown = token
        if not attributes & _CONTROL:
            pieces.setdefault(text, token)
    return WordPiece(pieces, unknown=unknown)


def _texts(model: Model) -> Sequence[str]:
    return [model.special_text(token) for token in range(model.vocab_size)]
