import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import httpx2
import pytest

from inference.events import Queued
from server.cli.chat import Session, _printable
from server.cli.chatclient import ChatClient, ChatFailed, Message, read_key
from server.cli.errors import CommandError
from tests.server.cli.processes import HEADRACE, Serving, environment, serving, terminal

SCRIPT = """
context_length = 400
thinking = ["<think>", "</think>"]

[[rules]]
match = "river"
reply = "Rivers flow."

[[rules]]
match = "wait"
reply = "Done."
queued = [
    { position = 12, expected_seconds = 3.2, seconds = 0.2 },
    { position = 3, expected_seconds = 1.4, seconds = 0.2 },
    { position = 1, seconds = 0.2 },
]

[[rules]]
match = "slow"
reply = "one two three four five"
fault = { kind = "hang", after_tokens = 7 }

[[rules]]
match = "evil"
reply = "a\\u001b[2Jb\\u202ec"

[[rules]]
match = "think"
reply = "<think>\\nFar\\u001b[2J away.\\n</think>\\n\\nOslo."

[[rules]]
match = "ponder"
reply = "<think>\\nOn and on and on"
fault = { kind = "hang", after_tokens = 12 }

[[rules]]
match = "refuse"
fault = { kind = "template_error" }

[[rules]]
match = "break"
reply = "one two three four"
fault = { kind = "fail", after_tokens = 7 }

[[rules]]
match = "endless"
reply = "ENDLESS"
""".replace("ENDLESS", "word " * 100)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(home=tmp_path_factory.mktemp("server"), script=SCRIPT) as running:
        yield running


def running_and_waiting(server: Serving) -> float:
    text = httpx2.get(f"{server.url}/metrics").text
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(("headrace_num_requests_running", "headrace_num_requests_waiting"))
    )


def test_a_dialogue_in_a_terminal(server: Serving, tmp_path: Path) -> None:
    with terminal("chat", "--url", server.url, home=tmp_path) as screen:
        screen.expect(f"{server.url}, scripted. /help shows the commands.\n> ")
        screen.type("about a river")
        screen.expect("Rivers flow.\n> ")
        screen.type("/history")
        assert "user: about a river\nassistant: Rivers flow.\n" in screen.expect("> ")
        screen.type("/reset")
        screen.expect("[forgotten]\n> ")
        screen.type("/history")
        assert "assistant" not in screen.expect("> ")
        screen.type("/help")
        screen.expect("/reset")
        screen.type("/nope")
        screen.expect("there is no /nope")
        screen.type("/exit")
        assert screen.end() == 0


def test_ctrl_d_at_the_prompt_ends_it(server: Serving, tmp_path: Path) -> None:
    with terminal("chat", "--url", server.url, home=tmp_path) as screen:
        screen.expect("> ")
        screen.press("d")
        assert screen.end() == 0
    assert "Traceback" not in screen.seen


def test_ctrl_c_at_the_prompt_ends_it(server: Serving, tmp_path: Path) -> None:
    with terminal("chat", "--url", server.url, home=tmp_path) as screen:
        screen.expect("> ")
        assert screen.interrupt() == 0
    assert "Traceback" not in screen.seen


def test_ctrl_c_stops_the_answer_and_not_the_session(server: Serving, tmp_path: Path) -> None:
    with terminal("chat", "--url", server.url, home=tmp_path) as screen:
        screen.expect("> ")
        screen.type("a slow one")
        screen.expect("one two")
        assert running_and_waiting(server) == 1
        screen.press("c")
        screen.expect("[stopped]\n> ")
        screen.type("/history")
        assert "assistant: one two\n" in screen.expect("> ")
        screen.type("river")
        screen.expect("Rivers flow.\n> ")
        assert any(running_and_waiting(server) == 0 for _ in range(100))
        screen.press("d")
        assert screen.end() == 0


def test_a_failure_does_not_end_the_session(server: Serving, tmp_path: Path) -> None:
    with terminal("chat", "--url", server.url, "--system", "Be kind.", home=tmp_path) as screen:
        screen.expect("> ")
        screen.type("refuse")
        screen.expect("[the server refused (400): ")
        screen.expect("> ")
        screen.type("/history")
        history = screen.expect("> ")
        assert "system: Be kind." in history
        assert "user:" not in history
        screen.type("break")
        screen.expect("[the answer broke off: ")
        screen.expect("> ")
        screen.type("/history")
        screen.expect("assistant: one two\n")
        screen.type("endless")
        screen.expect("[the context is full: /reset]\n> ")
        screen.press("d")
        assert screen.end() == 0


def test_the_place_in_the_queue_is_shown_until_the_answer_comes(
    server: Serving, tmp_path: Path
) -> None:
    with terminal("chat", "--url", server.url, home=tmp_path) as screen:
        screen.expect("> ")
        screen.type("please wait")
        screen.expect("\rwaiting, 12th in line, about 4 s\r")
        screen.expect("waiting, 3rd in line, about 2 s \r")
        screen.expect("waiting, 1st in line          ")
        screen.expect("\rDone.\n> ")
        screen.press("d")
        assert screen.end() == 0
    done = piped("--url", server.url, home=tmp_path, text="wait")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Done.\n", "")


def test_an_answer_that_has_to_wait_again_is_not_covered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Waiting(ChatClient):
        def answer(self, *_: object, **__: object) -> Generator[str | Queued, None, None]:
            yield Queued(position=1, expected_seconds=2.0)
            yield "one "
            yield Queued(position=2, expected_seconds=3.0)
            yield "two"

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with Waiting("http://127.0.0.1:1", key=None) as client:
        Session(client, "default", None, None).ask("go")
    place = "waiting, 1st in line, about 2 s"
    assert capsys.readouterr().out == f"\r{place}\r{' ' * len(place)}\rone two\n"


def test_reasoning_is_shown_and_not_remembered(server: Serving, tmp_path: Path) -> None:
    with terminal("chat", "--url", server.url, home=tmp_path) as screen:
        screen.expect("> ")
        screen.type("think first")
        screen.expect("[thinking]\nFar[2J away.\n[answer]\nOslo.\n> ")
        screen.type("/history")
        assert screen.expect("> ").endswith("user: think first\nassistant: Oslo.\n")
        screen.type("ponder")
        screen.expect("[thinking]\nOn")
        screen.press("c")
        screen.expect("\n[stopped]\n> ")
        screen.press("d")
        assert screen.end() == 0
    done = piped("--url", server.url, home=tmp_path, text="think")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Oslo.\n", "")


def test_a_model_cannot_drive_the_terminal(server: Serving, tmp_path: Path) -> None:
    with terminal("chat", "--url", server.url, home=tmp_path) as screen:
        screen.expect("> ")
        screen.type("evil")
        screen.expect("a[2Jbc\n> ")
        screen.press("d")
        screen.end()
    assert _printable("a\x9bb\r\u2066c\nd\te\u00a0f 👩\u200d🌾") == "abc\nd\te\u00a0f 👩\u200d🌾"


def piped(*arguments: str, home: Path, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HEADRACE, "chat", *arguments],
        input=text,
        capture_output=True,
        text=True,
        env=environment(home),
        check=False,
        timeout=30,
    )


def test_a_pipe_gets_one_answer_and_nothing_else(server: Serving, tmp_path: Path) -> None:
    done = piped("--url", f"{server.url}/v1/", home=tmp_path, text="the\nriver\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Rivers flow.\n", "")


@pytest.mark.parametrize(
    ("arguments", "text", "code", "words"),
    [
        ("", "", 2, "standard input is empty"),
        ("", "break", 1, "the answer broke off"),
        ("", "refuse", 1, "the server refused (400)"),
        ("--model nope", "x", 1, "the server refused (404)"),
        ("--temperature 99", "x", 1, "the server refused (400)"),
        ("--api-key-file missing", "x", 2, "--api-key-file missing: cannot be read"),
    ],
)
def test_a_pipe_gets_one_line_of_error(
    server: Serving, tmp_path: Path, arguments: str, text: str, code: int, words: str
) -> None:
    done = piped("--url", server.url, *arguments.split(), home=tmp_path, text=text)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("http://127.0.0.1:1", 1, "no server answers at http://127.0.0.1:1; `headrace serve`"),
        ("ftp://127.0.0.1", 2, "expected http://HOST:PORT"),
        ("127.0.0.1:8080", 2, "expected http://HOST:PORT"),
        ("http://127.0.0.1:y", 2, "--url http://127.0.0.1:y: "),
        ("http://127.0.0.1:99999", 1, "no server answers at http://127.0.0.1:99999"),
    ],
)
def test_no_server_there_is_said_plainly(tmp_path: Path, url: str, code: int, words: str) -> None:
    done = piped("--url", url, home=tmp_path, text="x")
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\n\n  sk-ünï  \nsk-two\n")
    with serving("--api-key-file", str(keys), home=tmp_path) as server:
        refused = piped("--url", server.url, home=tmp_path, text="x")
        assert refused.returncode == 1
        assert "(401)" in refused.stderr
        assert "--api-key-file FILE" in refused.stderr
        allowed = piped("--url", server.url, "--api-key-file", str(keys), home=tmp_path, text="x")
        assert allowed.returncode == 0
    keys.write_text("# none\n")
    with pytest.raises(CommandError, match="holds no key"):
        read_key(keys)


def answering(body: bytes, *, status: int = 200, kind: str = "text/event-stream") -> ChatClient:
    """A client of a server that answers everything with this."""
    client = ChatClient("http://127.0.0.1:1")
    client._client = httpx2.Client(
        transport=httpx2.MockTransport(
            lambda _request: httpx2.Response(status, content=body, headers={"content-type": kind})
        )
    )
    return client


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the connection ended before the answer did"),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', "ended before the answer did"),
        (b'data: {"error":{"message":"engine died"}}\n\n', "the answer broke off: engine died"),
        (b"data: nonsense\n\n", "cannot be read"),
        (b'data: {"choices": 5}\n\n', "cannot be read"),
    ],
)
def test_a_stream_without_a_proper_end_is_a_failure(body: bytes, words: str) -> None:
    with answering(body) as client, pytest.raises(ChatFailed, match=words):
        list(client.answer([Message("user", "x")], model="m", temperature=None))


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (200, "text/html", "text/event-stream"),
        (502, "text/html", "status 502, not like a Headrace server"),
    ],
)
def test_something_else_behind_the_url_is_said_so(status: int, kind: str, words: str) -> None:
    with (
        answering(b"<html>" * 100_000, status=status, kind=kind) as client,
        pytest.raises(ChatFailed, match=words),
    ):
        list(client.answer([Message("user", "x")], model="m", temperature=0.5))
    with answering(b"<html>", kind=kind, status=status) as client, pytest.raises(ChatFailed):
        client.first_model()
