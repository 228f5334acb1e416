"""Find stop strings in text that arrives in pieces.

The search is the automaton of Aho and Corasick ("Efficient string matching: an aid to
bibliographic search", CACM 18(6), 1975): one state, each character of the text looked
at once, whatever the number of stop strings. The depth of the state is the length of
the longest end of the text that begins some stop string, which is exactly what must
be held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopMatcher:
    """Watches the text of one sequence for its stop strings.

    The stop string that is complete first wins; of several that are complete at the
    same character, the longest. So a stop string that begins with another one can
    never win, and the result does not depend on how the text was cut into pieces.

    Mutable state, owned by the caller's thread: `_state`, `_held`, `_matched`.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Prepare the search. Raises `ValueError` for an empty stop string."""
        if "" in stops:
            raise ValueError("a stop string is empty")
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self._depth = [0]
        self._found: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self._link()
        self._state = 0
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """Take more text; return the text that became certain and the stop that matched.

        The returned text never holds any part of the matched stop string, nor a
        possible beginning of one. With `armed` False nothing matches, but the search
        goes on: a stop string matches when its last character comes while armed, even
        if its first ones did not. After a match all further text is dropped.
        """
        if self._matched is not None:
            return "", self._matched
        if len(self._next) == 1:
            return text, None
        text = self._held + text
        state = self._state
        for position in range(len(self._held), len(text)):
            state = self._step(state, text[position])
            found = self._found[state]
            if armed and found is not None:
                self._matched, self._held = found, ""
                return text[: position + 1 - len(found)], found
        certain = len(text) - self._depth[state]
        self._state, self._held = state, text[certain:]
        return text[:certain], None

    def flush(self) -> str:
        """Return what is still held back: the text ended, so no stop string will follow."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(char, 0)

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            child = self._next[state].get(char)
            if child is None:
                child = len(self._next)
                self._next[state][char] = child
                self._next.append({})
                self._fallback.append(0)
                self._depth.append(self._depth[state] + 1)
                self._found.append(None)
            state = child
        self._found[state] = stop

    def _link(self) -> None:
        """Give each state its fallback: the longest proper end of it that is a state too."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self._next[state].items():
                self._fallback[child] = self._step(self._fallback[state], char)
                if self._found[child] is None:
                    self._found[child] = self._found[self._fallback[child]]
                queue.append(child)
