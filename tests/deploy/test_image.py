"""Dockerfile.gpu and what goes with it: the promises that a linter does not know."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile.gpu").read_text()
SECRET = re.compile(r"(?i)\b(hf_[a-z0-9]{20,}|sk-[a-z0-9]{20,}|password\s*[=:]|token\s*=)")


def instructions() -> list[tuple[str, str]]:
    """The instructions in order, continuation lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split()[0].upper(), line.split(None, 1)[1]) for line in lines]


def last_stage() -> list[tuple[str, str]]:
    """What the image itself is made of."""
    found = instructions()
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def test_builds_in_one_stage_and_runs_in_another() -> None:
    stages = [rest for name, rest in instructions() if name == "FROM"]
    assert "-devel-" in stages[-2]
    assert "-runtime-" in stages[-1]
    assert all("latest" not in stage for stage in stages)


def test_runs_as_a_fixed_user_that_is_not_root() -> None:
    users = [rest for name, rest in last_stage() if name == "USER"]
    assert users == ["10001:10001"]


def test_is_healthy_only_when_ready() -> None:
    (check,) = [rest for name, rest in last_stage() if name == "HEALTHCHECK"]
    assert "/health/ready" in check
    assert "--start-period=" in check


def test_its_health_check_follows_the_port() -> None:
    (check,) = [rest for name, rest in last_stage() if name == "HEALTHCHECK"]
    command = json.loads(check[check.index("CMD ") + 4 :])
    with socket.create_server(("127.0.0.1", 0)) as answering:
        answering.settimeout(30.0)
        with subprocess.Popen(
            [sys.executable, *command[1:]],
            env={"HEADRACE_PORT": str(answering.getsockname()[1])},
        ) as checking:
            connection, _ = answering.accept()
            with connection:
                assert connection.recv(1024).startswith(b"GET /health/ready ")
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert checking.returncode == 0


def test_signals_reach_the_server() -> None:
    stage = dict(last_stage())
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert stage["ENTRYPOINT"].startswith("[")
    assert stage["CMD"].startswith("[")


def test_fetches_nothing_that_is_not_checked() -> None:
    assert not [rest for name, rest in instructions() if name == "ADD"]
    assert not re.search(r"\b(curl|wget)\b", TEXT)
    script = (ROOT / "deploy/docker/dependencies.sh").read_text()
    for line in script.replace("\\\n", " ").splitlines():
        if line.startswith("pip install"):
            assert "--require-hashes" in line


@pytest.mark.parametrize(
    "path", ["Dockerfile.gpu", "deploy/compose.gpu.yaml", "deploy/headrace.service"]
)
def test_holds_no_secret(path: str) -> None:
    assert not SECRET.search((ROOT / path).read_text())


def test_secrets_are_no_build_arguments() -> None:
    names = [rest.split("=")[0] for name, rest in instructions() if name in {"ARG", "ENV"}]
    assert not [name for name in names if re.search(r"(?i)key|secret|token|password", name)]


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(source == path or source.startswith(path + "/") for path in allowed), (
                    source
                )


def test_state_outlives_the_container_and_is_closed_to_others() -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())
    mounts = compose["services"]["headrace"]["volumes"]
    assert "data:/var/lib/headrace" in mounts
    assert "data" in compose["volumes"]
    made = " ".join(rest for name, rest in last_stage() if name == "RUN")
    assert "install -d -m 700 -o 10001 -g 10001 /var/lib/headrace" in made
    variables = " ".join(rest for name, rest in last_stage() if name == "ENV")
    assert "XDG_DATA_HOME=/var/lib " in variables


def test_the_unit_keeps_state_too_and_reloads_by_the_signal() -> None:
    unit = (ROOT / "deploy/headrace.service").read_text().splitlines()
    assert "Environment=XDG_DATA_HOME=/var/lib" in unit
    assert {"StateDirectory=headrace", "StateDirectoryMode=0700"} <= set(unit)
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit


def test_every_package_is_copied() -> None:
    copied = {rest.split()[0] for name, rest in instructions() if name == "COPY"}
    assert {"models", "inference", "conversation", "server"} <= copied


def test_compose_serves_with_keys_and_few_rights() -> None:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())
    service = compose["services"]["headrace"]
    assert service["environment"]["HEADRACE_API_KEY_FILE"] == "/run/secrets/headrace_keys"
    assert "HEADRACE_ALLOW_UNAUTHENTICATED" not in service["environment"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
