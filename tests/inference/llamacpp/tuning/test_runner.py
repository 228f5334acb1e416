import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference.llamacpp.tuning.errors import JobFailed
from inference.llamacpp.tuning.jobs import Done, Requantize
from inference.llamacpp.tuning.runner import ProcessRunner

JOB = Requantize(source="a", target="b", format="Q8_0", threads=1)
PATIENCE_SECONDS = 30.0


def runner(code: str, *, limit_seconds: float = PATIENCE_SECONDS) -> ProcessRunner:
    return ProcessRunner((sys.executable, "-c", code), limit_seconds=limit_seconds)


def test_the_last_line_is_the_answer() -> None:
    code = (
        "import sys, json; assert json.loads(sys.argv[1])['type'] == 'Requantize'; print('x\\n{}')"
    )
    assert runner(code)(JOB, Done) == Done()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; print('first', file=sys.stderr); sys.exit('why')", "why"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import os; os.abort()", "SIGABRT"),
        ("pass", "exit code 0"),
    ],
)
def test_a_failure_says_why(code: str, message: str) -> None:
    with pytest.raises(JobFailed, match=message):
        runner(code)(JOB, Done)


def test_a_job_has_a_time_limit() -> None:
    with pytest.raises(JobFailed, match="longer than"):
        runner("import signal; signal.pause()", limit_seconds=0.05)(JOB, Done)


def test_ctrl_c_ends_the_job_too(tmp_path: Path) -> None:
    """Run a runner in a process, interrupt it, and wait for its child's end."""
    child = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "open('pid', 'w').write(str(os.getpid())); open('ready', 'w').close();"
        "sys.stdin.read()"  # as the real one: it ends with its parent's pipe
    )
    parent = (
        "import sys; from inference.llamacpp.tuning.runner import ProcessRunner;"
        "from inference.llamacpp.tuning.jobs import *;"
        f"ProcessRunner((sys.executable, '-c', {child!r}))"
        "(Requantize(source='', target='', format='Q8_0', threads=1), Done)"
    )
    os.mkfifo(tmp_path / "ready")
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        (tmp_path / "ready").open().close()  # opens when the child does
        watched = os.pidfd_open(int((tmp_path / "pid").read_text()))
        try:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE_SECONDS)
            assert b"KeyboardInterrupt" in err
            assert select.select([watched], [], [], PATIENCE_SECONDS)[0]
        finally:
            os.close(watched)


def test_the_real_child_refuses_what_is_no_job() -> None:
    command = [sys.executable, "-m", "inference.llamacpp.tuning.child", json.dumps({"type": "No"})]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode != 0
