import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from server.logs import VALUE_MAX_CHARS, configure_logging, escape

HOSTILE = "a\x1b[2J\r\nb\u202ec\x00\x9bd\u2028e\ud800"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(format: Any = "json", level: str = "info", log_prompts: bool = False) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(format=format, level=level, log_prompts=log_prompts, stream=stream)
    return stream


def test_json_is_one_object_a_line_with_fields_and_context() -> None:
    stream = lines()
    structlog.contextvars.bind_contextvars(request_id="r1")
    structlog.get_logger("headrace.test").info("request", status=200, seconds=0.5, none=None)
    event = json.loads(stream.getvalue())
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "request",
        "level": "info",
        "logger": "headrace.test",
        "request_id": "r1",
        "status": 200,
        "seconds": 0.5,
        "none": None,
    }


def test_console_is_one_readable_line() -> None:
    stream = lines("console")
    structlog.get_logger().warning("slow client", client="a b", count=3, empty="")
    assert stream.getvalue().endswith(' warning slow client client="a b" count=3 empty=""\n')


@pytest.mark.parametrize("format", ["console", "json"])
@pytest.mark.parametrize("where", ["event", "key", "value", "nested", "object", "stdlib"])
def test_nothing_a_client_sent_is_written_raw(format: str, where: str) -> None:
    class Odd:
        def __str__(self) -> str:
            return HOSTILE

    stream = lines(format)
    log = structlog.get_logger("headrace.test")
    match where:
        case "event":
            log.info(HOSTILE)
        case "key":
            log.info("x", **{HOSTILE: 1})
        case "value":
            log.info("x", path=HOSTILE)
        case "nested":
            log.info("x", headers={HOSTILE: [(HOSTILE,)]})
        case "object":
            log.info("x", thing=Odd())
        case "stdlib":
            logging.getLogger("uvicorn.error").warning("bad request: %s", HOSTILE)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    if format == "json":
        assert "\x1b" not in str(json.loads(text))


def test_a_message_cannot_forge_a_line_in_a_traceback() -> None:
    stream = lines("console")
    try:
        raise ValueError("x\n2026-01-01T00:00:00Z error   forged \x1b[2J")
    except ValueError:
        structlog.get_logger().exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error   failed")
    assert all(line.startswith("    ") for line in rest)
    assert any("forged \\x1b[2J" in line for line in rest)


def test_the_standard_library_goes_through_with_its_traceback() -> None:
    stream = lines()
    try:
        raise RuntimeError("why")
    except RuntimeError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    event = json.loads(stream.getvalue())
    assert event["logger"] == "uvicorn.error"
    assert "RuntimeError: why" in event["exception"]


def test_users_text_is_left_out_unless_asked_for() -> None:
    stream = lines()
    structlog.get_logger().info("x", prompt="the secret", messages=[1, 2], content=None)
    assert "secret" not in stream.getvalue()
    event = json.loads(stream.getvalue())
    assert (event["prompt"], event["messages"]) == ("<10 left out>", "<2 left out>")
    assert event["content"] == "<left out>"
    stream = lines(log_prompts=True)
    structlog.get_logger().info("x", prompt="the secret")
    assert "the secret" in stream.getvalue()


def test_long_values_are_cut() -> None:
    stream = lines()
    structlog.get_logger().info("x", path="a" * 10 * VALUE_MAX_CHARS)
    assert len(stream.getvalue()) < VALUE_MAX_CHARS + 300
    assert "more" in json.loads(stream.getvalue())["path"]


def test_levels_hold_for_both_kinds_of_loggers_and_libraries_are_quiet() -> None:
    stream = lines(level="info")
    structlog.get_logger().debug("no")
    logging.getLogger("some_library").debug("no")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("httpx2").info("HTTP Request")
    logging.getLogger("alembic.runtime.migration").info("Context impl SQLiteImpl.")
    assert stream.getvalue() == ""
    stream = lines(level="debug")
    logging.getLogger("uvicorn.error").info("Started server process")
    assert "Started" in stream.getvalue()


def test_the_last_configuration_counts() -> None:
    log = structlog.get_logger()
    first = lines()
    log.info("one")
    second = lines()
    log.info("two")
    assert "two" not in first.getvalue()
    assert "two" in second.getvalue()


def test_escape_lets_printable_text_through() -> None:
    assert escape("Grüße, 世界 🌍") == "Grüße, 世界 🌍"
    assert escape("\t") == "\\t"
