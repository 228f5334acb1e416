"""What is fuzzed: functions of bytes that return, whatever the bytes are.

Each raises only when the code under it has a fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from benchmarks.sse import data_events
from server.cli.streamlines import Data, Remark, lines
from server.errors import ApiError
from server.sse import Framing
from server.streams.events import Completed, Entry
from server.wire import responses, responses_input, unbuilt
from server.wire.chat import ChatFields, asked_of, logprobs_of, max_tokens_given
from server.wire.common import Limits, check_counts, max_tokens_of, sampling_of, stop_of
from server.wire.completions import CompletionFields, check_echo, prompts_of
from server.wire.constraints import constraint_of
from server.wire.decoding import MSGPACK, decode
from server.wire.native import DeltaEvent
from server.wire.responses_query import ItemsQuery, RetrieveQuery, decode_query
from server.wire.text import DetokenizeFields, TemplateFields, TokenizeFields
from server.wire.websocket import FORMATS, Unreadable
from tests.fuzz import connections

LIMITS = Limits(max_n=16, max_tokens=0, context_length=8192, vocab_size=32_000)


def request(data: bytes) -> None:
    """A request's body, through all that is checked before the engine."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    _chat(text)
    _completion(text)
    with contextlib.suppress(ApiError):
        responses_input.refuse_unbuilt_types(text)
        answer = decode(text, responses.ResponseFields, responses.UNBUILT)
        responses.asked_of(answer, responses_input.input_of(answer.input), None)
        sampling_of(answer, {}, LIMITS)
    for kind in (TokenizeFields, DetokenizeFields, TemplateFields):
        with contextlib.suppress(ApiError):
            decode(text, kind, unbuilt.NONE)
    pairs = [part.partition("=")[::2] for part in text.split("&")]
    for query in (RetrieveQuery, ItemsQuery):
        with contextlib.suppress(ApiError):
            decode_query(pairs, query)


def _chat(text: str) -> None:
    with contextlib.suppress(ApiError):
        fields = decode(text, ChatFields, unbuilt.CHAT)
        check_counts(fields, prompts=1, limits=LIMITS)
        given, param = max_tokens_given(fields)
        max_tokens_of(given, param, fields.min_tokens or 0, LIMITS)
        logprobs_of(fields)
        for marks in (None, ("<think>", "</think>")):
            asked_of(fields, marks)
        sampling_of(fields, {}, LIMITS)
        stop_of(fields)


def _completion(text: str) -> None:
    with contextlib.suppress(ApiError):
        fields = decode(text, CompletionFields, unbuilt.COMPLETIONS)
        check_echo(fields)
        constraint_of(fields)
        check_counts(fields, prompts=len(prompts_of(fields, LIMITS)), limits=LIMITS)


def message(data: bytes) -> None:
    """A message of a WebSocket, in both formats, and the request in it."""
    json, msgpack = FORMATS
    with contextlib.suppress(Unreadable, UnicodeDecodeError):
        json.parse(data.decode())
    with contextlib.suppress(Unreadable):
        msgpack.parse(data)
    with contextlib.suppress(ApiError):
        asked_of(decode(data, ChatFields, unbuilt.CHAT, form=MSGPACK), None)


def stream(data: bytes) -> None:
    """An event stream as our own two readers take it, however it is cut into pieces."""
    size = data[0] + 1 if data else 1
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    whole, cut = list(lines([data])), list(lines(pieces))
    assert whole == cut
    timed = ((float(number), piece) for number, piece in enumerate(pieces))
    assert [text for _, text in data_events(timed)] == [
        text for _, text in data_events([(0.0, data)])
    ]


def frame(data: bytes) -> None:
    """Our own frames, with any text in them: read back, they are what was written."""
    text = data.decode(errors="replace")
    events = [
        DeltaEvent(number=number, sequence=0, text=part, tokens=(number,))
        for number, part in enumerate(text.split("\0"))
    ]
    framing = Framing(numbered=True, after=0)
    sent = b"".join(framing.frame(entry_of(event.number), [event]) for event in events)
    found = list(lines([sent]))
    assert not any(isinstance(line, Remark) for line in found)
    back = [msgspec.json.decode(line.text) for line in found if isinstance(line, Data)]
    assert [each["text"] for each in back] == [event.text for event in events[1:]]


def entry_of(number: int) -> Entry:
    """An entry of that number; what it holds is not looked at."""
    return Entry(number=number, event=Completed())


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "request": request,
    "message": message,
    "stream": stream,
    "frame": frame,
    "http": connections.http,
    "websocket": connections.websocket,
}

SEEDS: Final[Mapping[str, Iterable[bytes]]] = {
    "request": (
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],'
        b'"stop":["x"],"logit_bias":{"7":-1},"n":2,"seed":1,"stream_options":{}}',
        b'{"model":"m","prompt":[[1,2],[3]],"echo":true,"logprobs":1,"max_tokens":4}',
        b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}],'
        b'"instructions":"b","metadata":{"a":"b"},"include":["message.output_text.logprobs"]}',
        b"stream=true&starting_after=3&include[]=a&limit=2&order=asc",
        b'{"model":"\\ud83d\\ude00","messages":[],"tools":[],"temperature":1e400}',
    ),
    "message": (
        b'{"type":"create","tag":"a","resumable":true,"body":{"model":"m","messages":[]}}',
        b'{"type":"resume","tag":"a","id":"resp_0","after":-1}',
        b'{"type":"stop","tag":"a"}{"type":"ping"}',
        msgspec.msgpack.encode({"type": "create", "tag": "a", "body": {"model": "m"}}),
        msgspec.msgpack.encode({"model": "m", "messages": [{"role": "user", "content": "a"}]}),
    ),
    "stream": (
        b'id: 3\nevent: x\ndata: {"a": 1}\n\n: queued position=3\n\ndata: [DONE]\n\n',
        b"\x01data: a\r\ndata: b\r\n\r\n\xe2\x80\xa8data:\n\nretry: 1000\n\n",
    ),
    "frame": ("a\0b\n\ndata: c\0\u2028\x85 \r\n: d".encode(),),
    "http": (
        b"\x07GET /a HTTP/1.1\r\nhost: a\r\n\r\nPOST /b HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc",
        b"\x30POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
        b"3\r\nabc\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"\xff" + connections.HANDSHAKE,
    ),
    "websocket": (
        b"\x03" + bytes.fromhex("818537fa213d7f9f4d5158"),  # "Hello" (RFC 6455, 5.7)
        b"\xff" + bytes.fromhex("010337fa213d7f9f4d8002000000006c6f"),
        b"\xff" + bytes.fromhex("89050000000048656c6c6f8a0000000000888200000000"),
        # Text that is none, and a close frame in the same piece: found by the fuzzer.
        b"\xff" + bytes.fromhex("818100000000ff88820000000003e8"),
    ),
}
"""What a search begins from."""
