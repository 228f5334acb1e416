"""A Jinja environment in which a chat template can do no harm.

A chat template comes with the model file, and a model file comes from anywhere:
templates have been used to run code (CVE-2024-34359) and to exhaust memory. Jinja's
immutable sandbox closes the way to Python's internals. This one also measures every
operator, method and filter that can give more than it got, and leaves out those that
nobody needs in a chat template.

What remains: many strings of the allowed size may be alive at once, and comparing lists
nested dozens deep is one operation that nobody measures. Both take a template made for
it; the supervisor's watchdog is the answer to those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

import markupsafe
from jinja2 import filters, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from inference.llamacpp.prompting.budget import Budget, LimitExceeded

STRFTIME_MAX_CHARS = 256
JSON_INDENT_MAX = 64
ROUND_MAX_DIGITS = 100

_PADDING_METHODS = frozenset({"ljust", "rjust", "center", "zfill"})
# What gives no more than it got; the rest of `str` is closed.
_STR_METHODS = _PADDING_METHODS | {
    *("strip", "lstrip", "rstrip", "removeprefix", "removesuffix"),
    *("split", "rsplit", "splitlines", "partition", "rpartition"),
    *("startswith", "endswith", "find", "rfind", "index", "rindex", "count"),
    *("lower", "upper", "title", "capitalize", "casefold", "swapcase"),
    *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower"),
    *("isnumeric", "isprintable", "isspace", "istitle", "isupper"),
    *("replace", "join", "format"),
}
_PLAIN_FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "first", "float"),
    *("groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min"),
    *("reject", "rejectattr", "reverse", "select", "selectattr", "sort", "title", "trim"),
    *("truncate", "unique", "upper", "wordcount"),
)
# Those of `Markup`, the string that `{% autoescape %}` makes, are written in Python.
_METHODS = (BuiltinMethodType, MethodType)


class JsonText(dict[str, Any]):
    """A JSON object that `tojson` writes as its text has it, unless a form is asked for.

    So a call that the model made is found again in the prefix cache, however it spaced it.
    """

    def __init__(self, text: str) -> None:
        """Raises `ValueError` where `text` is no JSON object."""
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        super().__init__(value)
        self.text = text


class Refusal(Exception):
    """The template called `raise_exception`."""


class _CodeGenerator(CodeGenerator):
    """Sends `~` and slices through the environment, as Jinja does not."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        sliced = isinstance(node.arg, nodes.Slice)
        self.write("environment.copied(" if sliced else "(")
        super().visit_Getitem(node, frame)
        self.write(")")


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment chat templates expect, within a budget.

    The whitespace rules, `raise_exception`, `strftime_now`, `tojson` and the loop
    controls are those of Hugging Face Transformers, for which the templates are
    written (https://huggingface.co/docs/transformers/chat_templating). `now` tells
    `strftime_now` the time.
    """

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, budget: Budget, *, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            finalize=self._printable,
        )
        self._budget = budget
        self._now = now
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = self._strftime_now
        self.filters = {name: self.filters[name] for name in _PLAIN_FILTERS} | {
            "e": self._escape,
            "escape": self._escape,
            "format": self._format,
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "round": self._round,
            "safe": budget.text,
            "string": budget.text,
            "sum": self._sum,
            "tojson": self._tojson,
        }

    def concat(self, parts: Iterable[object]) -> str:
        """The `~` operator, and what a macro or a block printed: generated code calls this."""
        return self._budget.join("", parts)

    def copied(self, value: Any) -> Any:
        """Count a slice: it is never longer than what it was taken from."""
        self._budget.spend(len(value))
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Open the methods of strings that are measured, and none of a number."""
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, (int, float, bytes)):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Fail at once: Jinja would print an unsafe attribute as nothing."""
        raise SecurityError(attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Measure, then apply `+`, `*`, `**` or `%`."""
        match operator:
            case "+":
                self._budget.check_sum(left, right)
            case "*":
                self._budget.check_product(left, right)
            case "**":
                self._budget.check_power(left, right)
            case "%" if isinstance(left, str):
                return self._budget.percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method; those of strings are measured first."""
        if isinstance(obj, _METHODS) and isinstance(obj.__self__, str):
            text, name = obj.__self__, obj.__name__
            if name == "join" and len(args) == 1:
                return self._budget.join(text, args[0])
            if name == "replace" and len(args) >= 2:
                self._budget.check_replace(text, args[0], args[1])
            elif name in _PADDING_METHODS and args:
                self._budget.spend(max(len(text), args[0]))
            else:
                self._budget.spend(len(text))
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Stand in for `str.format`; `str.format_map` stays closed."""
        if not (
            isinstance(value, _METHODS)
            and isinstance(value.__self__, str)
            and value.__name__ == "format"
        ):
            return None
        template = str(value.__self__)

        def measured_format(*args: Any, **kwargs: Any) -> str:
            self._budget.check_format(template, args, kwargs)
            return SandboxedFormatter(self).vformat(template, args, kwargs)

        return measured_format

    def _printable(self, value: object) -> object:
        """Check what `{{ }}` is about to print."""
        if not isinstance(value, str):
            self._budget.weigh(value)
        return value

    def _strftime_now(self, pattern: str) -> str:
        if len(pattern) > STRFTIME_MAX_CHARS:
            raise LimitExceeded
        return self._now().strftime(pattern)

    def _escape(self, value: object) -> str:
        text = self._budget.text(value)
        self._budget.spend(6 * len(text))
        return str(markupsafe.escape(text))

    def _format(self, value: object, *args: Any, **kwargs: Any) -> str:
        return self._budget.percent(self._budget.text(value), kwargs or args)

    def _indent(
        self, value: object, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        text = self._budget.text(value)
        step = len(width) if isinstance(width, str) else width
        self._budget.spend(len(text) + step * (len(text.splitlines()) + 2))
        return filters.do_indent(text, width, first, blank)

    def _join(
        self, value: Iterable[object], d: object = "", attribute: str | int | None = None
    ) -> str:
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        return self._budget.join(self._budget.text(d), value)

    def _replace(self, value: object, old: object, new: object, count: int | None = None) -> str:
        text, find, put = (self._budget.text(part) for part in (value, old, new))
        self._budget.check_replace(text, find, put)
        return text.replace(find, put, -1 if count is None else count)

    def _round(self, value: float, precision: int = 0, method: Any = "common") -> float:
        if abs(precision) > ROUND_MAX_DIGITS:
            raise LimitExceeded
        return filters.do_round(value, precision, method)

    def _sum(
        self, value: Iterable[Any], attribute: str | int | None = None, start: float = 0
    ) -> float:
        if not isinstance(start, (int, float)):
            raise TypeError("sum adds numbers")
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        return sum(value, start)

    def _tojson(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        step = len(indent) if isinstance(indent, str) else indent or 0
        if step > JSON_INDENT_MAX or any(len(mark) > JSON_INDENT_MAX for mark in separators or ()):
            raise LimitExceeded
        self._budget.spend(self._budget.weigh(value))
        if isinstance(value, JsonText) and not (ensure_ascii or indent or separators or sort_keys):
            return value.text
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )


def _raise_exception(message: object) -> None:
    raise Refusal(message)
