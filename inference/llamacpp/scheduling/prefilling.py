"""How many prompt tokens a step takes, and whose: chunks, tiles and turns.

Pure: what a token costs comes from `steptime`.
"""

from __future__ import annotations

from collections import abc

from inference.llamacpp.scheduling.queueview import Pace
from inference.llamacpp.scheduling.sequence import Sequence
from inference.llamacpp.scheduling.steptime import StepTime

FIRST_CHUNK = 64  # prefill tokens beside decoding sequences until their price is known
ATTENTION_ROWS = 64  # llama.cpp's flash attention on a processor works on tiles of so many tokens
LEAST_CHUNK = 8  # so that a prompt always advances, however tight the target
IDLE_STRETCH = 3  # times the target a step may take while nobody is decoding


class Prefill:
    """Divides a step's prefill tokens among the prompts.

    Mutable: whose turn it is. Owner: the scheduler.
    """

    def __init__(
        self, time: StepTime, *, batch_tokens: int, target_seconds: float, in_parts: bool
    ) -> None:
        """Steps hold `batch_tokens` and should take `target_seconds` beside decoding ones.

        `in_parts` where a batch of unequal chunks is computed in parts (`Lanes.ordered`).
        """
        self._time = time
        self._batch_tokens = batch_tokens
        self._target = target_seconds
        self._in_parts = in_parts
        self._oldest_first = False

    def turns(self, prompts: list[Sequence]) -> list[Sequence]:
        """The order in which `prompts`, the oldest first, get tokens in this step.

        By turns the oldest comes first, so that a long prompt always advances, and the
        one nearest its first token, so that short prompts do not queue behind it. Not
        halves of each step: attention is slower on two small chunks than on one, and
        where unequal chunks are computed in parts, only whole prompts join the first.
        """
        turns = sorted(prompts, key=lambda s: (-s.priority, s.missing, s.order))
        if self._oldest_first:
            turns = [prompts[0], *(s for s in turns if s is not prompts[0])]
        if len(prompts) > 1:
            self._oldest_first = not self._oldest_first
        return turns

    def budget(self, *, decoding: int, start: int) -> int:
        """Prefill tokens, from position `start`, this step may hold beside `decoding` sequences."""
        room = self._batch_tokens - decoding
        target = self._target if decoding else self._target * IDLE_STRETCH
        first = FIRST_CHUNK if decoding else room
        fits = self._time.prefill_tokens(
            decoding=decoding, target_seconds=target, first=first, start=start
        )
        return min(room, max(self._whole_tiles(fits, decoding), LEAST_CHUNK))

    def chunks(self, turns: abc.Sequence[Sequence], budget: int) -> list[tuple[Sequence, int]]:
        """How many of at most `budget` tokens each gets, one after the other."""
        chunks: list[tuple[Sequence, int]] = []
        for sequence in turns:
            size = min(sequence.missing, budget)
            if size == 0 or (chunks and size < sequence.missing and self._in_parts):
                continue
            budget -= size
            chunks.append((sequence, size))
        return chunks

    def pace(self, lanes: int) -> Pace:
        """What steps cost while `lanes` sequences run, most of them decoding."""
        chunk = self._time.prefill_tokens(
            decoding=max(0, lanes - 1), target_seconds=self._target, first=FIRST_CHUNK
        )
        return Pace(
            decode_seconds=self._time.decode_seconds(lanes),
            prefill_seconds=self._time.told_prefill_seconds,
            chunk_tokens=max(LEAST_CHUNK, chunk),
        )

    def _whole_tiles(self, tokens: int, decoding: int) -> int:
        """`tokens` without the few that would need a tile of attention for themselves."""
        apart = 1 if self._in_parts and decoding else 0  # computed with the decodes
        tiles, rest = divmod(tokens - apart, ATTENTION_ROWS)
        return tokens - rest if tiles > 0 and rest < ATTENTION_ROWS // 4 else tokens
