"""Finding tool calls in text while it is being written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inference.dialects.chars import (
    Malformed,
    Reading,
    behind,
    colon,
    comma,
    json_string,
    json_value,
    literal,
    spaces,
)
from inference.dialects.marks import (
    SPACE_MAX_CHARS,
    before_space,
    beginnings_of,
    uncertain_from,
)
from inference.dialects.offer import Offer
from inference.dialects.pieces import Pieces

HELD_MAX_CHARS = 4096

_ARGUMENTS = frozenset({"arguments", "parameters"})
_OTHERS = frozenset({"type", "id"})


class Calls:
    """What a reading tells of the calls it comes by, and what the reader has of them.

    A call is out as soon as its name and the beginning of its arguments are known; from
    then on they are passed on as they come. Mutable state, owned by the one `CallFinder`
    that made it.
    """

    def __init__(self, offer: Offer, pieces: Pieces, new_id: Callable[[], str]) -> None:
        self._names = offer.names
        self._limit = offer.calls_max
        self._pieces = pieces
        self._new_id = new_id
        self._name: str | None = None
        self._id: str | None = None
        self._early: list[str] = []
        self.count = 0
        self.char = ""
        self.recording = False
        self.out = False
        self.closing = False

    def named(self, name: str, id: str | None = None) -> None:
        """The call's name is known, perhaps its id. Raises `Malformed` for none of the tools."""
        if self._name is not None or name not in self._names or self.count == self._limit:
            raise Malformed
        self._name, self._id = name, id
        if self._early:
            self._begin("".join(self._early))

    def open(self) -> None:
        """The arguments begin with the character that was sent."""
        if self.out or self._early:
            raise Malformed
        self.recording = True
        if self._name is not None:
            self._begin("")

    def shut(self) -> None:
        """The arguments ended with the character that was sent."""
        self.record()
        self.recording = False

    def end(self) -> None:
        """The call is complete. Raises `Malformed` when it had no name."""
        if self._name is None:
            raise Malformed
        if not self.out:
            self._begin("{}")
        self.drop()

    def drop(self) -> None:
        """Leave the call that was being read as it is."""
        self.count += self.out
        self._name, self._early = None, []
        self.recording = self.out = self.closing = False

    def record(self) -> None:
        """Take the character that was sent, if it is one of the arguments."""
        if self.recording and self.out:
            self._pieces.arguments(self.count, self.char)
        elif self.recording:
            self._early.append(self.char)

    def _begin(self, arguments: str) -> None:
        assert self._name is not None
        self.out = True
        self._pieces.call(self.count, self._id or self._new_id(), self._name)
        self._pieces.arguments(self.count, arguments)


def call_object(char: str, calls: Calls) -> Reading[None]:
    """Read a call as JSON, `{"name": ..., "arguments": {...}}`, from its brace `char` on.

    Llama says "parameters" for the arguments; some models add a type or an id.
    """
    if char != "{":
        raise Malformed
    char = yield from spaces()
    while True:
        key = yield from json_string(char)
        yield from colon()
        char = yield from spaces()
        if key == "name":
            calls.named((yield from json_string(char)))
            char = ""
        elif key in _ARGUMENTS:
            yield from call_arguments(char, calls)
            char = ""
        elif key in _OTHERS:
            char = yield from json_value(char)
        else:
            raise Malformed
        char = yield from behind(char)
        if char == "}":
            calls.end()
            return
        char = yield from comma(char)


def call_arguments(char: str, calls: Calls) -> Reading[None]:
    """Read the arguments, an object, from its brace `char` on."""
    if char != "{":
        raise Malformed
    calls.open()
    yield from json_value(char)
    calls.shut()


def closing_mark(mark: str, calls: Calls) -> Reading[None]:
    """Pass over white space and `mark`; where the text ends on the way, they are no text."""
    calls.closing = True
    if (yield from spaces()) != mark[0]:
        raise Malformed
    yield from literal(mark[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How calls begin: with `mark`, behind which `read` takes the characters.

    `first`: only where the answer begins. `included`: the mark is read as well.
    """

    mark: str
    read: Callable[[Calls], Reading[None]]
    first: bool = False
    included: bool = False


class CallFinder:
    """Divides text into what is said and what is called, whatever pieces it comes in.

    What turns out to be no call is text, from its mark on. White space next to calls
    goes with them. At most `HELD_MAX_CHARS` are held back. Mutable state, owned by one
    caller: the text held back, the reading under way, whether anything was said.
    """

    def __init__(
        self,
        openings: Sequence[Opening],
        offer: Offer,
        pieces: Pieces,
        *,
        new_id: Callable[[], str],
    ) -> None:
        """Results go to `pieces`; `new_id` makes up the id of each call."""
        self._calls = Calls(offer, pieces, new_id)
        self._pieces = pieces
        self._openings = {opening.mark: opening for opening in openings}
        anywhere = [opening.mark for opening in openings if not opening.first]
        self._anywhere = _any_of(anywhere)
        self._first = _any_of([opening.mark for opening in openings if opening.first])
        self._beginnings = beginnings_of(anywhere)
        self._longest = max((len(mark) for mark in anywhere), default=1) - 1
        self._buffer = ""
        self._skip = 0
        self._held: list[str] = []
        self._retry = 0
        self._reading: Reading[None] | None = None
        self._silent = True
        self._behind_call = False
        self.broken = False

    @property
    def called(self) -> bool:
        """Whether there were calls and none broke off."""
        return self._calls.count > 0 and not self.broken

    def push(self, text: str) -> None:
        """Take more text."""
        self._buffer += text
        while self._buffer and (self._seek() if self._reading is None else self._read()):
            pass

    def flush(self) -> None:
        """The text has ended: give out what was held back."""
        while self._reading is not None:
            if self._calls.closing or self._calls.count:
                # The beginning of one more call says nothing to anybody behind whole ones.
                self._held = []
            self._give_up()
            self.push("")
        if not (self._behind_call and self._buffer.isspace()):
            self._say(self._buffer)
        self._buffer = ""

    def _seek(self) -> bool:
        """Say what is no beginning of a call; True when one begins."""
        found = self._find()
        if found is None:
            certain = max(uncertain_from(self._buffer, self._beginnings, self._longest), self._skip)
            self._say(self._buffer[:certain])
            self._buffer, self._skip = self._buffer[certain:], 0
            return False
        opening, start = found
        spoken = max(before_space(self._buffer, start), self._skip)
        self._say(self._buffer[:spoken])
        behind_mark = start + len(opening.mark)
        self._held = list(self._buffer[spoken:behind_mark])
        self._retry = start - spoken + 1
        self._buffer = self._buffer[start if opening.included else behind_mark :]
        if opening.included:
            del self._held[-len(opening.mark) :]
        self._skip = 0
        self._reading = opening.read(self._calls)
        next(self._reading)
        return True

    def _find(self) -> tuple[Opening, int] | None:
        if self._silent and not self._skip and self._first is not None:
            start = len(self._buffer) - len(self._buffer.lstrip())
            match = self._first.match(self._buffer, start)
            if match is not None and start <= SPACE_MAX_CHARS:
                return self._openings[match[0]], start
        match = None if self._anywhere is None else self._anywhere.search(self._buffer, self._skip)
        return None if match is None else (self._openings[match[0]], match.start())

    def _read(self) -> bool:
        """Let the reading under way take the text; True when some of it is left."""
        assert self._reading is not None
        calls, text = self._calls, self._buffer
        for position, char in enumerate(text):
            recording, out, count = calls.recording, calls.out, calls.count
            try:
                if len(self._held) >= HELD_MAX_CHARS:
                    raise Malformed
                calls.char = char
                self._reading.send(char)
            except StopIteration:
                self._reading = None
            except Malformed:
                self._buffer = text[position:]
                self._give_up()
                return True
            self._held.append(char)
            calls.record()
            if calls.count > count or (calls.out and (recording or calls.recording or not out)):
                self._held, self._retry = [], 0
                self._silent, self._behind_call = False, True
            if self._reading is None:
                calls.closing, self._held = False, []
                self._buffer = text[position + 1 :]
                return True
        self._buffer = ""
        return False

    def _give_up(self) -> None:
        """What is being read is no call, or none any more: back to text with what is held."""
        self.broken |= self._calls.out and self._calls.recording
        self._calls.drop()
        self._buffer = "".join(self._held) + self._buffer
        self._held, self._skip, self._retry = [], self._retry, 0
        self._reading = None

    def _say(self, text: str) -> None:
        if text:
            self._pieces.say(text)
            self._silent = self._behind_call = False


def _any_of(marks: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, marks))) if marks else None
