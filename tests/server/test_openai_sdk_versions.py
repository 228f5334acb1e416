"""The same program under the SDK's two living major versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference.scripted import Rule, Script
from server.auth import ApiKeys
from server.settings import Settings
from tests.server.harness import in_thread

ROOT = Path(__file__).parents[2]
SESSION = Path(__file__).with_name("sdk_session.py")
# `make test` makes this environment from its own lock file.
OLDER = os.environ.get("HEADRACE_TEST_OPENAI2_PYTHON", str(ROOT / ".venv-openai2/bin/python"))
SCRIPT = Script(
    rules=(
        Rule(match="weather", reply="It rains in the valley."),
        Rule(match="for ever", token_seconds=3600.0),
    )
)


@pytest.mark.parametrize(("python", "version"), [(sys.executable, 3), (OLDER, 2)])
def test_a_session_goes_the_same_way(python: str, version: int) -> None:
    if not Path(python).exists():
        pytest.fail(f"OpenAI SDK {version} has no environment at {python}; `make test` makes it")
    with in_thread(SCRIPT, keys=ApiKeys(["first"]), settings=Settings(max_requests=1)) as server:
        done = subprocess.run(
            [python, str(SESSION), f"{server.url}/v1"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "version": version,
        "chat": "It rains in the valley.",
        "streamed": "It rains in the valley.",
        "completion": "It rains in the valley.",
        "400": "BadRequestError 400 invalid_value",
        "401": "AuthenticationError 401 invalid_api_key",
        "404": "NotFoundError 404 model_not_found",
        "429": "RateLimitError 429 too_many_requests",
    }
