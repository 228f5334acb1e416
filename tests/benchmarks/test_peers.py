"""How servers are started: the plans, the processes, the build."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import build_peer
from benchmarks.cache import PeerCache, llama_cpp_python_version
from benchmarks.peers import Launch, PeerError, Setting, find_peer
from benchmarks.servers import first_model, free_port, running, tree_cpu_seconds
from benchmarks.workloads import WORKLOADS


def make_setting(tmp_path: Path, workload: str = "short", **changes: object) -> Setting:
    """Two threads, eight lanes, and a program that surely exists."""
    values: dict[str, object] = {
        "model": "m.gguf",
        "threads": 2,
        "lanes": 8,
        "workload": WORKLOADS[workload],
        "port": 1234,
        "scratch": tmp_path,
        "cache": PeerCache(directory=tmp_path),
        "program": sys.executable,
        **changes,
    }
    return Setting(**values)  # type: ignore[arg-type]


def test_headrace_and_llama_server_get_equal_terms(tmp_path: Path) -> None:
    ours, theirs = (
        " ".join(find_peer(name)(make_setting(tmp_path)).argv)
        for name in ("headrace", "llama-server")
    )
    assert "--model m.gguf" in ours
    assert "--model m.gguf" in theirs
    assert "--threads 2" in ours
    assert "--threads 2" in theirs
    assert "--lanes 8 --context 512 --cache-tokens 4096" in ours
    assert "--parallel 8 --kv-unified --ctx-size 4096" in theirs


def test_headrace_keeps_nothing_in_the_users_directories(tmp_path: Path) -> None:
    launch = find_peer("headrace")(make_setting(tmp_path))
    assert Path(launch.env["HEADRACE_DATA_DIR"]).parent == tmp_path


def test_llama_server_gets_the_layout_that_suits_the_work(tmp_path: Path) -> None:
    layouts = {
        name: "--no-kv-unified" in find_peer("llama-server")(make_setting(tmp_path, name)).argv
        for name in ("short", "long-distinct", "shared-prefix")
    }
    assert layouts == {"short": False, "long-distinct": True, "shared-prefix": False}


@pytest.mark.parametrize("name", ["headrace", "llama-server", "vllm"])
def test_flags_of_the_user_come_last(tmp_path: Path, name: str) -> None:
    launch = find_peer(name)(make_setting(tmp_path, flags=("--lanes", "3")))
    assert launch.argv[-2:] == ("--lanes", "3")


def test_the_batching_example_gets_a_configuration(tmp_path: Path) -> None:
    cache = PeerCache(directory=tmp_path)
    with pytest.raises(PeerError, match="build_peer"):
        find_peer("llama-cpp-python")(make_setting(tmp_path))
    cache.example_server.parent.mkdir(parents=True)
    cache.example_server.touch()
    launch = find_peer("llama-cpp-python")(make_setting(tmp_path))
    config = Path(launch.argv[-1]).read_text()
    assert '"n_seq_max": 8' in config
    assert '"path": "m.gguf"' in config


@pytest.mark.parametrize("address", ["http://host:1/v1", "http://host:1", "http://host:1/v1/"])
def test_a_url_is_a_peer(tmp_path: Path, address: str) -> None:
    launch = find_peer(address)(make_setting(tmp_path, url=address))
    assert (launch.base_url, launch.argv, launch.model) == ("http://host:1", (), None)


def test_a_peer_of_ones_own(tmp_path: Path) -> None:
    peer = find_peer("tests.benchmarks.test_peers:own_peer")
    assert peer(make_setting(tmp_path)).note == "mine"


def own_peer(setting: Setting) -> Launch:
    return Launch(base_url=setting.base_url, note="mine")


@pytest.mark.parametrize("name", ["nosuch", "no.such.module:peer", "benchmarks.peers:nosuch"])
def test_unknown_peers_are_named(name: str) -> None:
    with pytest.raises(PeerError, match=r"nosuch|no\.such"):
        find_peer(name)


def test_a_missing_program_comes_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"benchmarks\.build_peer"):
        find_peer("llama-server")(make_setting(tmp_path, program=str(tmp_path / "none")))


SERVER = """
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b'{"data":[{"id":"the-model"}]}')
# It must still be there when its parent has gone: only force ends it.
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
    start_new_session=True)
open(sys.argv[2], "w").write(str(child.pid))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def _alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_is_started_asked_for_its_model_and_stopped_with_its_children(
    tmp_path: Path,
) -> None:
    port, child_file = free_port(), tmp_path / "child"
    launch = Launch(
        base_url=f"http://127.0.0.1:{port}",
        argv=(sys.executable, "-c", SERVER, str(port), str(child_file)),
        model=None,
    )

    async def run() -> int:
        async with running(launch, log=tmp_path / "log", start_seconds=60) as server:
            assert server.model == "the-model"
            spent = server.cpu_seconds()
            assert spent is not None
            assert spent >= 0
            child = int(child_file.read_text())
            assert _alive(child)
            return child

    child = asyncio.run(run())
    while _alive(child):  # killed, and gone as soon as the kernel has come to it
        os.sched_yield()


def test_a_server_that_ends_at_once_shows_its_last_words(tmp_path: Path) -> None:
    launch = Launch(
        base_url=f"http://127.0.0.1:{free_port()}",
        argv=(sys.executable, "-c", "print('no such flag'); raise SystemExit(3)"),
    )

    async def run() -> None:
        async with running(launch, log=tmp_path / "log"):
            pass

    with pytest.raises(PeerError, match=r"exited: 3\n  no such flag"):
        asyncio.run(run())


def test_a_url_without_a_model_is_refused() -> None:
    with pytest.raises(PeerError, match="did not name a model"):
        first_model(f"http://127.0.0.1:{free_port()}", "")


def test_processor_time_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    lines = {
        "10": "10 (a b) S 1 10 10 0 0 0 0 0 0 0 300 100 50 50 0 0 0 0 7",
        "11": "11 (own session) S 10 11 11 0 0 0 0 0 0 0 100 0 0 0 0 0 0 0 8",
        "12": "12 (grandchild) S 11 11 11 0 0 0 0 0 0 0 20 3 0 0 0 0 0 0 9",
        "13": "13 (stranger) S 1 13 13 0 0 0 0 0 0 0 900 0 0 0 0 0 0 0 9",
    }
    for pid, text in lines.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(text)
    assert tree_cpu_seconds(10, tmp_path) * os.sysconf("SC_CLK_TCK") == 623
    assert tree_cpu_seconds(99, tmp_path) == 0


def _sdist(path: Path) -> Path:
    archive = path / "llama_cpp_python-9.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("llama_cpp_python-9/vendor/llama.cpp/CMakeLists.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"#\n\n"))
    return archive


def test_the_source_is_unpacked_once_and_whole(tmp_path: Path) -> None:
    cache = PeerCache(directory=tmp_path / "cache")
    build = build_peer.Build(version="9", cache=cache)
    build.fetch(_sdist(tmp_path))
    assert (cache.source / "vendor" / "llama.cpp" / "CMakeLists.txt").exists()
    assert [each.name for each in cache.directory.iterdir()] == ["source"]
    build.fetch(tmp_path / "not needed any more")
    assert not build.done()


def test_the_source_is_downloaded_with_the_hash_of_the_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "jinja2==1 \\\n    --hash=sha256:00\n"
        "llama-cpp-python==9 ; sys_platform == 'linux' \\\n"
        "    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via headrace\n"
        "numpy==2 \\\n    --hash=sha256:cc\n"
    )
    assert build_peer.pinned_lines("9", lock) == (
        "llama-cpp-python==9 ; sys_platform == 'linux' \\\n"
        "    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    )
    for version, where in (("9.1", lock), ("9", tmp_path / "absent.lock")):
        with pytest.raises(build_peer.BuildError, match="--sdist FILE"):
            build_peer.pinned_lines(version, where)


def test_pip_checks_what_it_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(argv: list[str]) -> None:
        assert {"--require-hashes", "--no-deps", "--build-constraint"} <= set(argv)
        assert Path(argv[argv.index("--requirement") + 1]).read_text() == "pinned"
        _sdist(Path(argv[argv.index("--dest") + 1]))

    monkeypatch.setattr(build_peer, "pinned_lines", lambda _version: "pinned")
    monkeypatch.setattr(build_peer, "_run", pip)
    cache = PeerCache(directory=tmp_path)
    build_peer.Build(version="9", cache=cache).fetch()
    assert (cache.source / "vendor" / "llama.cpp" / "CMakeLists.txt").exists()


def test_the_lock_file_pins_what_is_installed_here() -> None:
    version = llama_cpp_python_version()
    assert version is not None
    assert "--hash=sha256:" in build_peer.pinned_lines(version)


def test_a_finished_build_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(build_peer, "llama_cpp_python_version", lambda: "9")
    cache = PeerCache.of_version("9")
    for name in build_peer.PROGRAMS:
        cache.program(name).parent.mkdir(parents=True, exist_ok=True)
        cache.program(name).touch()
    assert build_peer.main([]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "llama-cpp-python-9" / "build" / "bin")


def test_a_failed_step_names_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(build_peer, "llama_cpp_python_version", lambda: "9")
    monkeypatch.setattr(build_peer, "_tool", lambda _: "false")
    assert build_peer.main(["--sdist", str(_sdist(tmp_path))]) == 1
    assert "this failed: false -G Ninja" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HEADRACE_BENCH_CACHE": "/x"}, "/x/llama-cpp-python-1"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/headrace/benchmarks/llama-cpp-python-1"),
    ],
)
def test_where_the_cache_is(environ: dict[str, str], expected: str) -> None:
    assert str(PeerCache.of_version("1", environ).directory) == expected
