"""`headrace tune`, then `headrace serve` with what it found, on the real model."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import httpx2
import pytest

from inference.llamacpp.tuning.formats import ORIGINAL
from inference.llamacpp.tuning.profile import parse_profile
from tests.server.cli.processes import HEADRACE, environment, started

pytestmark = pytest.mark.model

TUNE_SECONDS = 240.0
CLASS = "fast"


def tune(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `headrace tune` to its good end."""
    done = subprocess.run(
        [*HEADRACE, "tune", *arguments],
        capture_output=True,
        text=True,
        env=environment(home),
        cwd=home,
        timeout=TUNE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_tune_and_serve(default_model_path: Path, tmp_path: Path) -> None:
    model = str(default_model_path)
    options = ("--quick", "--formats", "Q8_0,Q4_0", "--threads", "1", "--out", "plot.svg")
    done = tune(tmp_path, model, *options)
    assert "making Q8_0 from Q4_1" in done.stderr

    (path,) = (tmp_path / ".local/share/headrace/profiles").glob("*.toml")
    written = path.read_text(encoding="utf-8")
    profile = parse_profile(written)
    costs = {c.trial.format: c.quality for c in profile.candidates}
    assert costs[ORIGINAL].divergence == 0
    assert costs[ORIGINAL].agreement == 1
    assert 0 < costs["Q8_0"].divergence < 0.01 < costs["Q4_0"].divergence < 0.5
    assert costs["Q8_0"].agreement > 0.9
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")
    assert str(path) in done.stdout

    # What was lost comes back as it was, so the profile stays the same.
    for weights in (tmp_path / ".cache/headrace/tuned").glob("*.gguf"):
        weights.unlink()
    tune(tmp_path, model, "--weights-only")
    assert path.read_text(encoding="utf-8") == written

    # Which format wins is up to the machine; that the winner is served is up to us.
    chosen = profile.chosen(CLASS)
    original = chosen.trial.format == ORIGINAL
    expected = profile.quantization if original else chosen.trial.format
    serve = ("serve", "--model", model, "--profile", CLASS, "--port", "0")
    with started(*serve, "--context", "512", "--lanes", "2", home=tmp_path) as process:
        assert process.stdout is not None
        banner = ""
        for line in process.stdout:
            banner += line
            if line.startswith("curl "):
                break
        assert re.search(rf"quantization +{expected}\n", banner), banner
        assert f"profile       {CLASS}, " in banner
        assert re.search(r", 1 threads?\n", banner)
        url = re.search(r"http://\S+:\d+", banner)
        assert url is not None
        answer = httpx2.post(
            f"{url[0]}/v1/completions",
            json={
                "model": "default",
                "prompt": "The river runs",
                "max_tokens": 4,
                "ignore_eos": True,
            },
            timeout=60.0,
        )
        assert answer.json()["usage"]["completion_tokens"] == 4
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60.0)
    assert process.returncode == 0
