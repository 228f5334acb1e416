"""What the server hears of a step."""

from __future__ import annotations

from inference.errors import EngineOverloaded
from inference.events import Accepted, Delta, Queued, Restarted
from inference.llamacpp.messages import Failure, Report
from inference.llamacpp.outbox import Outbox
from inference.llamacpp.scheduling.hostcache import HostCache
from inference.llamacpp.scheduling.scheduler import Scheduler
from inference.llamacpp.scheduling.unified import UnifiedLanes


class Box:
    """An outbox of a scheduler that runs one sequence at a time."""

    def __init__(self, *, gather_seconds: float = 0.0, seam: str = "") -> None:
        self.sent: list[Report] = []
        self.scheduler = Scheduler(
            UnifiedLanes(ids=2, cells=100),
            HostCache(capacity=200),
            running=1,
            batch_tokens=64,
            target_seconds=0.2,
        )
        self.outbox = Outbox(
            self.scheduler,
            send=self.sent.append,
            lanes=1,
            device=None,
            gather_seconds=gather_seconds,
            seam=seam,
        )

    def step(self, *, seconds: float = 0.5) -> None:
        plan = self.scheduler.plan()
        sampled = {entry.id: [7] for entry in plan.entries if entry.samples}
        self.scheduler.apply(plan, sampled, seconds=seconds)
        self.outbox.note_step(tokens=len(sampled), seconds=seconds, decode_seconds=seconds / 2)


def test_events_are_sent_once_in_their_order() -> None:
    box = Box()
    box.outbox.emit("a", Accepted(prompt_tokens=3))
    box.outbox.emit("b", EngineOverloaded("2 requests are waiting already."))
    box.outbox.report()
    box.outbox.report()
    first, second = box.sent
    assert [(each.id, type(each.event)) for each in first.events] == [
        ("a", Accepted),
        ("b", Failure),
    ]
    assert second.events == ()


def test_the_state_is_that_of_the_last_report() -> None:
    box = Box()
    assert (box.outbox.stats.lanes_total, box.outbox.stats.cache_total) == (1, 100)
    box.scheduler.add("a", [1, 2, 3])
    box.step()
    box.step()
    assert box.outbox.stats.steps == 0
    box.outbox.report()
    (report,) = box.sent
    stats = report.stats
    assert stats is box.outbox.stats
    assert (stats.running, stats.waiting, stats.cache_used) == (1, 0, 4)
    assert (stats.steps, stats.prompt_tokens, stats.generation_tokens) == (2, 3, 2)
    assert (stats.step_seconds, stats.decode_seconds) == (1.0, 0.5)


def test_who_waits_is_told_a_place_and_newcomers_what_to_expect() -> None:
    box = Box()
    for id in ("a", "b"):
        box.scheduler.add(id, [1, 2, 3])
    box.step()
    box.step()
    box.outbox.note_queued(now=0.0)
    box.outbox.report()
    (report,) = box.sent
    (told,) = report.events
    assert told.id == "b"
    assert isinstance(told.event, Queued)
    assert told.event.position == 1
    assert report.stats.expected_wait_seconds > told.event.expected_seconds > 0
    assert report.stats.waiting_tokens == 3


def test_nobody_waits_while_a_lane_is_free() -> None:
    box = Box()
    for id in ("a", "b"):
        box.scheduler.add(id, [1, 2, 3])
    box.step()
    box.outbox.note_queued(now=0.0)
    for id in ("a", "b"):
        box.scheduler.end(id)
    box.outbox.report()
    (report,) = box.sent
    assert (report.stats.expected_wait_seconds, report.stats.waiting_tokens) == (0.0, 0)


def delta(text: str) -> Delta:
    return Delta(text=text, tokens=(7,))


def gathering(seconds: list[float], *, gather_seconds: float = 0.025) -> list[tuple[str, ...]]:
    """The texts in each report, for a sequence that says a letter in steps of so long."""
    box = Box(gather_seconds=gather_seconds)
    for letter, each in zip("abcdefgh", seconds, strict=False):
        box.outbox.emit("a", delta(letter))
        box.outbox.note_step(tokens=1, seconds=each, decode_seconds=each)
        box.outbox.report_step()
    return [said(report) for report in box.sent]


def said(report: Report) -> tuple[str, ...]:
    return tuple(each.event.text for each in report.events if isinstance(each.event, Delta))


def test_short_steps_are_reported_together_but_for_a_first_token() -> None:
    assert gathering([0.007] * 8) == [("a",), ("bcd",), ("efg",)]


def test_steps_that_are_long_enough_are_reported_each() -> None:
    assert gathering([0.013] * 3) == [("a",), ("b",), ("c",)]
    assert gathering([0.001] * 3, gather_seconds=0.0) == [("a",), ("b",), ("c",)]


def test_a_step_that_turns_out_long_ends_the_gathering() -> None:
    assert gathering([0.007, 0.007, 0.4, 0.007]) == [("a",), ("bc",)]


def test_whatever_is_no_delta_takes_along_what_was_gathered() -> None:
    box = Box(gather_seconds=1.0)
    for event in (delta("a"), delta("b"), delta("c")):
        box.outbox.emit("one", event)
        box.outbox.emit("two", event)
        box.outbox.report_step()
    assert box.outbox.gathers
    assert [said(report) for report in box.sent] == [("a", "a")]
    box.outbox.emit("two", EngineOverloaded("2 requests are waiting already."))
    box.outbox.report_step()
    assert not box.outbox.gathers
    assert said(box.sent[-1]) == ("bc", "bc")
    assert [each.id for each in box.sent[-1].events] == ["one", "two", "two"]


def test_what_comes_behind_another_event_does_not_join_what_was_before_it() -> None:
    box = Box(gather_seconds=1.0)
    for event in (delta("a"), Restarted(replayed_tokens=1, paused_seconds=0.5), delta("b")):
        box.outbox.emit("one", event)
    box.outbox.report()
    assert said(box.sent[-1]) == ("a", "b")


def test_a_name_that_is_used_again_begins_anew() -> None:
    box = Box(gather_seconds=1.0)
    box.outbox.emit("one", delta("a"))
    box.outbox.forget("one")
    box.outbox.emit("one", delta("b"))
    box.outbox.report()
    assert said(box.sent[-1]) == ("a", "b")


def test_what_follows_the_reasoning_is_not_joined_with_it() -> None:
    box = Box(gather_seconds=1.0, seam="</think>")
    for text in ("a", "b", "</", "think>", "c", "d"):
        box.outbox.emit("one", delta(text))
    box.outbox.report()
    assert said(box.sent[-1]) == ("ab</think>", "cd")
