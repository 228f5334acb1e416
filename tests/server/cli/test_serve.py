import asyncio
import io
import json
import signal
import socket
import subprocess
from pathlib import Path

import httpx2
import pytest

from inference.status import EngineHealth, EngineState
from server.cli import hosting, main
from server.systemd import Notifier
from tests.server.cli.processes import environment, serving, started

CHAT = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "x"}]}
HANGS = '[[rules]]\nreply = "one two three"\nfault = { kind = "hang", after_tokens = 2 }\n'


def events(response: httpx2.Response) -> list[str]:
    return [event.data for event in httpx2.EventSource(response)]


def test_it_serves_and_ends_at_sigterm(tmp_path: Path) -> None:
    with serving("--model", "tiny", home=tmp_path) as server:
        assert "tiny" in server.banner
        assert "loopback only" in server.banner
        with httpx2.Client(base_url=server.url) as client:
            models = client.get("/v1/models")
            assert models.json()["data"][0]["id"] == "tiny"
            assert "server" not in models.headers
            assert client.get("/health/ready").status_code == 200
            with client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
                assert events(response)[-1] == "[DONE]"
        server.process.send_signal(signal.SIGTERM)
        code, err = server.end()
    assert code == 0
    assert "stopping" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("with_key", [False, True])
def test_the_curl_line_can_be_pasted(tmp_path: Path, with_key: bool) -> None:
    keys = tmp_path / "the keys"
    keys.write_text("# ours\nsk-one\n")
    options = ("--api-key-file", str(keys)) if with_key else ()
    with serving(*options, home=tmp_path) as server:
        line = server.banner.splitlines()[-1]
        pasted = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=True, timeout=30
        )
        assert pasted.stdout.rstrip().endswith("data: [DONE]")
        if with_key:
            refused = httpx2.post(f"{server.url}/v1/chat/completions", json=CHAT)
            assert refused.status_code == 401
        server.process.send_signal(signal.SIGINT)
        assert server.end()[0] == 0


def test_streams_finish_while_it_drains(tmp_path: Path) -> None:
    script = '[[rules]]\nreply = "a b c d e f g h"\ntoken_seconds = 0.05\n'
    with serving(home=tmp_path, script=script) as server:
        with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=CHAT) as response:
            got: list[str] = []
            for event in httpx2.EventSource(response):
                if not got:
                    server.process.send_signal(signal.SIGTERM)
                got.append(event.data)
        assert got[-1] == "[DONE]"
        texts = [json.loads(data)["choices"][0]["delta"].get("content", "") for data in got[:-1]]
        assert "".join(texts) == "a b c d e f g h"
        assert server.end()[0] == 0


def test_streams_that_outlast_the_drain_end_with_an_error_event(tmp_path: Path) -> None:
    with serving("--drain-seconds", "0.1", home=tmp_path, script=HANGS) as server:
        with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=CHAT) as response:
            stream = iter(httpx2.EventSource(response))
            next(stream)
            server.process.send_signal(signal.SIGTERM)
            rest = [event.data for event in stream]
        error = json.loads(rest[-2])["error"]
        assert error["code"] == "server_stopping"
        assert "Send the request again." in error["message"]
        assert server.end()[0] == 0


def test_while_it_drains_health_says_so_and_new_work_is_refused(tmp_path: Path) -> None:
    with (
        serving(home=tmp_path, script=HANGS) as server,
        httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=CHAT) as response,
    ):
        stream = iter(httpx2.EventSource(response))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        server.next_log_line("stopping")
        with httpx2.Client(base_url=server.url) as other:
            ready = other.get("/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert other.get("/health/live").status_code == 200
            refused = other.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "server_stopping"
            assert refused.headers["retry-after"]
        server.process.send_signal(signal.SIGTERM)
        assert [event.data for event in stream][-1] == "[DONE]"
        assert server.end()[0] == 0


def test_the_second_signal_ends_streams_at_once_with_an_error_event(tmp_path: Path) -> None:
    with (
        serving(home=tmp_path, script=HANGS) as server,
        httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=CHAT) as response,
    ):
        stream = iter(httpx2.EventSource(response))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        server.next_log_line("stopping")
        server.process.send_signal(signal.SIGINT)
        *_, error, done = [event.data for event in stream]
        assert json.loads(error)["error"]["code"] == "server_stopping"
        assert done == "[DONE]"
        code, err = server.end()
    assert code == 0
    assert "Traceback" not in err


def test_the_third_signal_ends_the_process(tmp_path: Path) -> None:
    script = "context_length = 1000000\n"
    variables = {"HEADRACE_SEND_BUFFER_BYTES": "4096", "HEADRACE_WRITE_BUFFER_BYTES": "1024"}
    with (
        serving(home=tmp_path, script=script, variables=variables) as server,
        socket.socket() as deaf,
    ):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        body = b'{"model":"default","prompt":"x","max_tokens":900000,"stream":true}'
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        deaf.sendall(head.encode() + body)
        assert deaf.recv(100).startswith(b"HTTP/1.1 200")
        # Its reader stands still, so its last words cannot be written.
        for word in ("stopping", "drain_expired"):
            server.process.send_signal(signal.SIGTERM)
            server.next_log_line(word)
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == -signal.SIGTERM


def test_a_signal_while_loading_ends_it(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text("load_seconds = 600\n")
    options = ("--engine", "scripted", "--script", str(script), "--port", "0")
    with started("serve", *options, "--log-level", "debug", home=tmp_path) as process:
        assert process.stderr is not None
        assert any("startup complete" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in err


def test_a_model_that_does_not_load_is_exit_code_1(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text('load_error = "the file is cut short"\n')
    options = ("--engine", "scripted", "--script", str(script), "--port", "0")
    with started("serve", *options, home=tmp_path) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == ("headrace: the model cannot be loaded: the file is cut short")


def test_an_engine_that_fails_for_good_ends_the_server_with_exit_code_1(tmp_path: Path) -> None:
    script = (
        '[[rules]]\nreply = "one two three"\n'
        'fault = { kind = "die", after_tokens = 2, restart_seconds = 0.0, '
        'restart_error = "the memory is gone" }\n'
    )
    with serving(home=tmp_path, script=script) as server:
        got = events(httpx2.post(f"{server.url}/v1/chat/completions", json=CHAT))
        code, err = server.end()
    assert got[-1] == "[DONE]"
    assert json.loads(got[-2])["error"]["code"] == "engine_died"
    assert code == 1
    assert "Traceback" not in err
    last = "headrace: the engine has failed for good: the memory is gone"
    assert err.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--port 70000", "flag --port: expected int <= 65535"),
        ("--engine both", "flag --engine: expected llamacpp or scripted"),
        ("--config missing.toml", "file missing.toml: cannot be read"),
        ("--config wrong.toml", "wrong.toml: unknown key prot, did you mean port"),
        ("--host 0.0.0.0", "add --api-key-file FILE, or --allow-unauthenticated"),
        ("--host no.such.name.invalid", "has no address here"),
        ("--api-key-file missing", "--api-key-file missing: cannot be read"),
        ("--api-key-file empty", "--api-key-file empty: holds no key"),
        ("--api-key-file .", "--api-key-file .: cannot be read"),
        ("--engine scripted --script missing.toml", "--script missing.toml"),
        ("--engine scripted --script wrong.toml", "--script wrong.toml"),
        ("--script wrong.toml", "only --engine scripted plays a script"),
        ("--model no-such-model", "no model is called 'no-such-model'"),
        ("--model ./missing.gguf", "missing.gguf"),
        ("--model empty.gguf", "empty.gguf"),
        ("--offline", "smollm2-135m-instruct"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(
    arguments: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("empty", "empty.gguf"):
        (tmp_path / name).write_text("")
    (tmp_path / "wrong.toml").write_text("prot = 1")
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    port = () if "--port" in arguments else ("--port", "0")
    assert main(["serve", *port, *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("headrace: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_a_taken_port_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--engine", "scripted", "--port", port]) == 2
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err


def test_the_environment_of_the_tests_has_no_settings(tmp_path: Path) -> None:
    assert not any(name.startswith("HEADRACE_") for name in environment(tmp_path))


class FakeEngine:
    """Only its health: one step further at each look."""

    def __init__(self, *progress: float) -> None:
        self._healths = [
            EngineHealth(state=EngineState.STARTING, load_progress=p) for p in progress
        ]
        self._healths.append(EngineHealth(state=EngineState.READY, load_progress=1.0))

    def health(self) -> EngineHealth:
        return self._healths.pop(0) if len(self._healths) > 1 else self._healths[0]


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("after_seconds", "shown"), [(0.0, True), (60.0, False)])
def test_a_long_load_shows_a_bar(
    after_seconds: float, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load() -> EngineState:
        serving = asyncio.create_task(asyncio.Event().wait())
        try:
            return await hosting._loaded(FakeEngine(0.0, 0.4, 0.8), serving, Notifier(None))  # type: ignore[arg-type]
        finally:
            serving.cancel()

    monkeypatch.setattr(hosting, "BAR_AFTER_SECONDS", after_seconds)
    monkeypatch.setattr(hosting, "POLL_SECONDS", 0.11)  # tqdm draws ten times a second at most
    stderr = FakeTerminal()
    monkeypatch.setattr("sys.stderr", stderr)
    assert asyncio.run(load()) is EngineState.READY
    assert ("loading the model" in stderr.getvalue()) is shown
    assert ("80%" in stderr.getvalue()) is shown
