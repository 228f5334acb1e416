"""Structured logs on standard error: one event a line, for people or as JSON.

Everything goes through here, the standard library's loggers (uvicorn's among them)
too. Whatever a client sent may turn up as a value, so nothing is written raw: what a
terminal or a log reader could take for an instruction is escaped, long values are cut,
and fields that hold prompt or answer text are left out unless asked for.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import msgspec
import structlog

VALUE_MAX_CHARS = 2_000
TRACEBACK_MAX_CHARS = 20_000
NESTING_MAX = 4

CONTENT_KEYS = frozenset(
    {"prompt", "messages", "message_text", "text", "content", "answer", "completion", "body"}
)
"""Fields by these names hold what users wrote or read."""

EventDict = MutableMapping[str, Any]
Processor = Callable[[Any, str, EventDict], EventDict]

# They report each request, each step of a start or a shutdown; ours say it once, with fields.
_QUIET = (
    "alembic",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "httpx2",
    "httpcore2",
    "filelock",
)


def configure_logging(
    *,
    format: Literal["console", "json"],
    level: str,
    log_prompts: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Send all logging of this process to `stream`, standard error by default.

    `level` is the lowest that is written. `log_prompts` keeps the fields named in
    `CONTENT_KEYS`. May be called again; the last call counts.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if log_prompts else [without_content]),
                escape_values,
                render_json if format == "json" else render_line,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level.upper() if level == "debug" else "WARNING")


def escape(text: str) -> str:
    """Spell out what is not printable: controls, line ends, bidirectional marks, surrogates.

    `str.isprintable` draws the line: of white space it lets only the space pass.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def without_content(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace users' text by its length, whoever logged it by mistake."""
    for key in CONTENT_KEYS & event.keys():
        value = event[key]
        event[key] = f"<{len(value)} left out>" if hasattr(value, "__len__") else "<left out>"
    return event


def escape_values(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Make every key and value plain and printable; tracebacks keep their lines, indented."""
    traceback = event.pop("exception", None)
    plain: EventDict = {
        escape(str(key)): _plain(value, NESTING_MAX) for key, value in event.items()
    }
    if traceback is not None:
        lines = str(traceback)[-TRACEBACK_MAX_CHARS:].splitlines()
        plain["exception"] = "\n".join("    " + escape(line) for line in lines)
    return plain


def _plain(value: object, nesting: int) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping) and nesting:
        return {escape(str(key)): _plain(item, nesting - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and nesting:
        return [_plain(item, nesting - 1) for item in value]
    text = value if isinstance(value, str) else str(value)
    if len(text) > VALUE_MAX_CHARS:
        text = f"{text[:VALUE_MAX_CHARS]}… {len(text) - VALUE_MAX_CHARS} more"
    return escape(text)


def render_json(_logger: object, _method: str, event: EventDict) -> str:
    """One JSON object on one line."""
    return msgspec.json.encode(event).decode()


def render_line(_logger: object, _method: str, event: EventDict) -> str:
    """Time, level and event, then `key=value` pairs, then an indented traceback."""
    traceback = event.pop("exception", None)
    time, level, name = (event.pop(key, "") for key in ("timestamp", "level", "event"))
    event.pop("logger", None)
    pairs = "".join(f" {key}={_quoted(value)}" for key, value in event.items())
    tail = f"\n{traceback}" if traceback else ""
    return f"{time} {level:<7} {name}{pairs}{tail}"


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    bare = text and not any(char in text for char in ' "=')
    return text if bare else msgspec.json.encode(text).decode()
