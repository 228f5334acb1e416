"""What one template rendering may build, measured before it is built.

A time limit acts between operations of the interpreter, and `'x' * 10**12` is a single
one: it has to be refused beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter

from jinja2.runtime import Undefined

INTEGER_MAX_BITS = 4096
TOTAL_FACTOR = 64
FORMAT_WIDTH_MAX = 9_999

# A width beyond FORMAT_WIDTH_MAX, or one that is taken from the arguments.
_WIDE_PERCENT = re.compile(r"\d{5,}|%[^%a-zA-Z]*\*")
_WIDE_SPEC = re.compile(r"\d{5,}|\{")


class LimitExceeded(Exception):
    """The template wants to build more than it may."""


class Budget:
    """Counts the characters of the strings that a rendering builds.

    One string may have `max_chars`, all together `TOTAL_FACTOR` times as many. Every
    method raises `LimitExceeded`. Mutable state: `_spent`, owned by the one thread
    that renders.
    """

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._spent = 0

    def renew(self) -> None:
        """Begin the next rendering."""
        self._spent = 0

    def spend(self, chars: int) -> None:
        """Count a string that is about to be built."""
        self._spent += max(chars, 0)
        if chars > self._max_chars or self._spent > TOTAL_FACTOR * self._max_chars:
            raise LimitExceeded

    def weigh(self, value: object) -> int:
        """About how long `str(value)` is (characters).

        Raises `TypeError` for what has no business in a prompt: the text of a function
        or a generator is its address.
        """
        total, todo = 0, [value]
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, int):
                total += 1 + item.bit_length() // 3
            elif item is None or isinstance(item, (float, Undefined)):
                total += 24
            elif isinstance(item, (list, tuple, dict)):
                total += 2 + 4 * len(item)
            else:
                raise TypeError("the template prints something that has no text")
            if total > self._max_chars:
                raise LimitExceeded
            if isinstance(item, (list, tuple)):
                todo.extend(item)
            elif isinstance(item, dict):
                todo.extend(item)
                todo.extend(item.values())
        return total

    def text(self, value: object) -> str:
        """`str(value)`. Raises as `weigh` does."""
        if isinstance(value, str):
            return str(value)
        self.spend(self.weigh(value))
        return str(value)

    def join(self, separator: str, parts: Iterable[object]) -> str:
        """Join the texts of `parts`."""
        texts: list[str] = []
        size = 0
        for part in parts:
            texts.append(self.text(part))
            size += len(texts[-1]) + len(separator)
            if size > self._max_chars + len(separator):
                raise LimitExceeded
        self.spend(size - len(separator))
        return separator.join(texts)

    def percent(self, template: str, values: object) -> str:
        """`template % values`."""
        if _WIDE_PERCENT.search(template):
            raise LimitExceeded
        each = self.weigh(values) + FORMAT_WIDTH_MAX
        self.spend(len(template) + template.count("%") * each)
        return str(template % values)

    def check_format(
        self, template: str, args: Sequence[object], named: Mapping[str, object]
    ) -> None:
        """Measure `template.format(*args, **named)`."""
        fields = list(Formatter().parse(template))
        if any(spec and _WIDE_SPEC.search(spec) for _, _, spec, _ in fields):
            raise LimitExceeded
        each = self.weigh([*args, *named.values()]) + FORMAT_WIDTH_MAX
        self.spend(len(template) + len(fields) * each)

    def check_sum(self, left: object, right: object) -> None:
        """Measure `left + right`; sums of numbers are free."""
        for kind in (str, list, tuple):
            if isinstance(left, kind) and isinstance(right, kind):
                self.spend(len(left) + len(right))

    def check_product(self, left: object, right: object) -> None:
        """Measure `left * right`."""
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > INTEGER_MAX_BITS:
                raise LimitExceeded
            return
        for many, times in ((left, right), (right, left)):
            if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                self.spend(len(many) * times)

    def check_power(self, base: object, exponent: object) -> None:
        """Measure `base ** exponent`; powers of floats are of one size."""
        if (
            isinstance(base, int)
            and isinstance(exponent, int)
            and base.bit_length() * exponent > INTEGER_MAX_BITS
        ):
            raise LimitExceeded

    def check_replace(self, text: str, old: str, new: str) -> None:
        """Measure `text.replace(old, new)`."""
        self.spend(len(text) + text.count(old) * max(len(new) - len(old), 0))
