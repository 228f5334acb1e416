"""The locust file's own bookkeeping. Locust lives elsewhere, so a stand-in takes its place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class _Event:
    def add_listener(self, listener: Any) -> Any:
        return listener


def _stand_in() -> dict[str, ModuleType]:
    locust, exception = ModuleType("locust"), ModuleType("locust.exception")
    names = ("init_command_line_parser", "init", "test_start", "test_stop")
    values = {
        "FastHttpUser": object,
        "LoadTestShape": object,
        "events": SimpleNamespace(**{name: _Event() for name in names}),
        "task": lambda function: function,
    }
    vars(locust).update(values)
    vars(exception)["StopUser"] = StopIteration
    return {"locust": locust, "locust.exception": exception}


@pytest.fixture
def locustfile(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for name, module in _stand_in().items():
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("benchmarks.locustfile")
    del sys.modules["benchmarks.locustfile"]


def options(**changes: object) -> SimpleNamespace:
    values = {"workload": "short", "seed": 1, "round": 0, "conversations": 3, "stages": "5:2,5:4"}
    return SimpleNamespace(**{**values, **changes})


def test_so_many_conversations_and_no_more(locustfile: ModuleType) -> None:
    work = locustfile.Work(options())
    ids = [work.take().id for _ in range(3)]
    assert ids == ["0.0", "0.1", "0.2"]
    assert work.take() is None
    work.finish()
    work.finish()
    assert not work.over
    work.finish()
    assert work.over


def test_without_a_number_there_is_no_end(locustfile: ModuleType) -> None:
    work = locustfile.Work(options(conversations=0))
    assert [work.take().id for _ in range(4)] == ["0.0", "1.0", "2.0", "3.0"]
    work.finish()
    assert not work.over


def test_tokens_are_said_at_the_end(
    locustfile: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = SimpleNamespace(parsed_options=options(conversations=1))
    locustfile.prepare(environment)
    locustfile.begin(environment)
    environment.work.take()
    environment.work.tokens += 64
    environment.work.finish()
    locustfile.end(environment)
    assert capsys.readouterr().out.startswith("tokens: 64 in 0.0")
    assert environment.work is None


@pytest.mark.parametrize(
    ("seconds", "users"), [(0.0, (2, 2.0)), (4.9, (2, 2.0)), (5.0, (4, 4.0)), (10.0, None)]
)
def test_stages_follow_each_other(
    locustfile: ModuleType, seconds: float, users: tuple[int, float] | None
) -> None:
    shape = locustfile.Stages()
    environment = SimpleNamespace(parsed_options=options(), work=None)
    shape.runner = SimpleNamespace(environment=environment)
    shape.get_run_time = lambda: seconds
    assert shape.tick() == users
    environment.work = SimpleNamespace(over=True)
    assert shape.tick() is None
