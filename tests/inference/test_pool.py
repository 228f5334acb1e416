"""The pool: budget, busy models, order, failures, and that nobody is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inference.pool import Pool
from inference.slots import IN_MEMORY, IllegalTransition, Phase, Plan, PoolLimits, Waiter

WEIGHTS = {"small": 1, "middle": 2, "large": 3, "huge": 9}
BUDGET = 4


class Driver:
    """A pool with a clock; what a plan asks for is done when the test says so."""

    def __init__(self, limits: PoolLimits, weights: dict[str, int] | None = None) -> None:
        self.weights = weights or WEIGHTS
        self.pool = Pool(self.weights, limits)
        self.now = 0.0
        self.weighing: list[str] = []
        self.loading: list[str] = []
        self.unloading: list[str] = []
        self.refused: list[Waiter] = []

    def plan(self) -> Plan:
        plan = self.pool.plan(now=self.now)
        self.weighing += plan.weigh
        self.loading += plan.load
        self.unloading += plan.unload
        self.refused += plan.refused
        return plan

    def enter(self, model: str) -> Waiter:
        waiter = self.pool.enter(model, now=self.now)
        self.plan()
        return waiter

    def leave(self, waiter: Waiter) -> None:
        self.pool.leave(waiter, now=self.now)
        self.plan()

    def settle(self) -> None:
        """Do everything that is asked for, without an error, until nothing is."""
        while self.weighing or self.loading or self.unloading:
            while self.weighing:
                model = self.weighing.pop()
                self.pool.weighed(model, self.weights[model])
                self.plan()
            while self.unloading:
                self.pool.unloaded(self.unloading.pop(), now=self.now)
                self.plan()
            while self.loading:
                self.pool.loaded(self.loading.pop(0), now=self.now)
                self.plan()

    def fail(self, model: str) -> None:
        """What was asked for last does not work."""
        for asked in (self.weighing, self.loading):
            if model in asked:
                asked.remove(model)
        self.pool.failed(model, "Broken.", now=self.now)
        self.plan()

    def use(self, model: str) -> Waiter:
        waiter = self.enter(model)
        self.settle()
        return waiter

    def phase(self, model: str) -> Phase:
        return self.pool.slots[model].phase

    def wait(self, seconds: float) -> Plan:
        self.now += seconds
        return self.plan()


def two_of_three(**limits: float) -> Driver:
    return Driver(PoolLimits(models=2, **limits), {"a": 1, "b": 1, "c": 1})  # type: ignore[arg-type]


def test_a_model_is_weighed_loaded_and_granted_to_all_who_wait() -> None:
    driver = two_of_three()
    waiters = [driver.enter("a") for _ in range(3)]
    assert driver.weighing == ["a"]
    driver.settle()
    assert all(waiter.granted for waiter in waiters)
    assert driver.pool.slots["a"].leases == 3
    assert driver.pool.held_bytes == 1


def test_the_least_recently_used_idle_model_goes() -> None:
    driver = two_of_three()
    first, second = driver.use("a"), driver.use("b")
    driver.leave(second)
    driver.now = 1.0
    driver.leave(first)
    third = driver.use("c")
    assert third.granted
    assert driver.phase("b") is Phase.UNLOADED
    assert driver.phase("a") is Phase.LOADED


def test_a_busy_model_never_goes_whoever_was_used_last() -> None:
    driver = two_of_three()
    driver.use("a")
    driver.now = 1.0
    driver.leave(driver.use("b"))
    assert driver.use("c").granted
    assert driver.phase("a") is Phase.LOADED
    assert driver.phase("b") is Phase.UNLOADED


def test_while_all_are_busy_the_third_waits_and_gets_the_first_free_place() -> None:
    driver = two_of_three()
    driver.use("a")
    b = driver.use("b")
    c = driver.use("c")
    assert not c.granted
    assert driver.pool.position(c) == 1
    driver.leave(b)
    driver.settle()
    assert c.granted
    assert driver.phase("b") is Phase.UNLOADED


def test_a_stream_of_requests_does_not_keep_a_third_model_out() -> None:
    driver = two_of_three(patience_seconds=10.0)
    a, b = driver.use("a"), driver.use("b")
    c = driver.use("c")
    driver.now = 9.0
    assert driver.use("a").granted, "until the patience is over newcomers go first"
    assert driver.plan().wake_at == 10.0
    driver.wait(1.0)
    late = [driver.use("b"), driver.use("b")]
    assert not any(waiter.granted for waiter in late), "b retires: it was used longest ago"
    assert driver.use("a").granted
    assert driver.phase("b") is Phase.LOADED, "what it runs is not cut"
    driver.leave(b)
    driver.settle()
    assert c.granted
    assert not any(waiter.granted for waiter in late)
    driver.leave(c)
    driver.settle()
    assert all(waiter.granted for waiter in late)
    assert a.granted


def test_retiring_ends_when_nobody_waits_any_more() -> None:
    driver = two_of_three(patience_seconds=0.0)
    driver.use("a")
    driver.use("b")
    c = driver.use("c")
    late = driver.use("a")
    assert not late.granted
    driver.leave(c)
    assert late.granted
    assert not driver.loading


def test_a_failure_is_told_to_all_who_wait_and_remembered_for_a_while() -> None:
    driver = two_of_three()
    other = driver.use("b")
    waiters = [driver.enter("a"), driver.enter("a")]
    driver.fail("a")
    assert driver.refused == waiters
    assert driver.phase("b") is Phase.LOADED
    assert other.granted
    again = driver.enter("a")
    assert driver.refused[-1] is again
    assert driver.pool.slots["a"].reason == "Broken."
    assert driver.pool.slots["a"].retry_at == 5.0
    driver.now = 5.0
    assert driver.use("a").granted


def test_each_failure_in_a_row_is_remembered_for_longer() -> None:
    driver = two_of_three()
    seconds = []
    for _ in range(12):
        driver.now = driver.pool.slots["a"].retry_at
        driver.enter("a")
        driver.fail("a")
        seconds.append(driver.pool.slots["a"].retry_at - driver.now)
    assert seconds[:4] == [5.0, 10.0, 20.0, 40.0]
    assert seconds[-1] == 300.0
    driver.pool.retry("a")
    assert driver.use("a").granted


def test_what_can_never_fit_is_refused_with_both_sizes() -> None:
    driver = Driver(PoolLimits(models=2, bytes=4 << 20), {"a": 9 << 20, "b": 1 << 20})
    other = driver.use("b")
    waiter = driver.use("a")
    assert driver.refused == [waiter]
    assert "9 MiB" in driver.pool.slots["a"].reason
    assert "4 MiB" in driver.pool.slots["a"].reason
    assert other.granted


def test_where_only_the_default_model_has_room_that_is_said() -> None:
    driver = Driver(PoolLimits(models=0, bytes=4 << 20), {"a": 1 << 20})
    waiter = driver.use("a")
    assert driver.refused == [waiter]
    assert driver.pool.slots["a"].reason == "No model may be loaded beside the default one."


def test_several_go_for_a_large_one_and_none_where_that_would_not_do() -> None:
    driver = Driver(PoolLimits(models=3, bytes=4), {"a": 1, "b": 2, "c": 4, "d": 1})
    a, b = driver.use("a"), driver.use("b")
    driver.leave(a)
    c = driver.use("c")
    assert not c.granted
    assert driver.phase("a") is Phase.LOADED, "it would be unloaded for nothing"
    driver.leave(b)
    driver.settle()
    assert c.granted
    assert driver.pool.held_bytes == 4


def test_an_idle_model_is_unloaded_after_its_time() -> None:
    driver = two_of_three(idle_seconds=60.0)
    a = driver.use("a")
    driver.now = 100.0
    driver.leave(a)
    assert driver.plan().wake_at == 160.0
    assert driver.wait(59.0).unload == []
    assert driver.wait(1.0).unload == ["a"]


def test_a_model_whose_engine_has_failed_goes_and_is_a_failure() -> None:
    driver = two_of_three()
    a = driver.use("a")
    driver.pool.broke("a", "It ended too often.")
    assert driver.plan().unload == ["a"]
    driver.pool.unloaded("a", now=0.0)
    driver.unloading.clear()
    assert driver.phase("a") is Phase.FAILED
    driver.leave(a)
    assert driver.pool.slots["a"].leases == 0


def test_unloading_on_request_spares_what_is_in_use() -> None:
    driver = two_of_three()
    a = driver.use("a")
    assert not driver.pool.unload("a", now=0.0)
    driver.leave(a)
    assert driver.pool.unload("a", now=0.0)
    assert driver.plan().unload == ["a"]
    assert driver.pool.unload("b", now=0.0)


def test_what_the_table_does_not_have_raises() -> None:
    with pytest.raises(IllegalTransition):
        two_of_three().pool.loaded("a", now=0.0)


class AnySequence(RuleBasedStateMachine):
    """Requests, ends, loads and failures in any order."""

    def __init__(self) -> None:
        super().__init__()
        limits = PoolLimits(models=3, bytes=BUDGET, idle_seconds=30.0, patience_seconds=10.0)
        self.driver = Driver(limits)
        self.here: list[Waiter] = []

    @rule(model=st.sampled_from(sorted(WEIGHTS)))
    def enter(self, model: str) -> None:
        self.here.append(self.driver.enter(model))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.here))
        self.here.remove(waiter)
        self.driver.leave(waiter)

    @precondition(lambda self: self.driver.weighing)
    @rule(fails=st.booleans())
    def weigh(self, fails: bool) -> None:
        model = self.driver.weighing.pop(0)
        if fails:
            self.driver.pool.failed(model, "No such file.", now=self.driver.now)
        else:
            self.driver.pool.weighed(model, WEIGHTS[model])
        self.driver.plan()

    @precondition(lambda self: self.driver.loading)
    @rule(fails=st.booleans(), first=st.booleans())
    def load(self, fails: bool, first: bool) -> None:
        model = self.driver.loading.pop(0 if first else -1)
        if fails:
            self.driver.pool.failed(model, "Broken.", now=self.driver.now)
        else:
            self.driver.pool.loaded(model, now=self.driver.now)
        self.driver.plan()

    @precondition(lambda self: self.driver.unloading)
    @rule()
    def unload(self) -> None:
        self.driver.pool.unloaded(self.driver.unloading.pop(0), now=self.driver.now)
        self.driver.plan()

    @rule(model=st.sampled_from(sorted(WEIGHTS)))
    def unload_on_request(self, model: str) -> None:
        self.driver.pool.unload(model, now=self.driver.now)
        self.driver.plan()

    @rule(model=st.sampled_from(sorted(WEIGHTS)))
    def break_down(self, model: str) -> None:
        self.driver.pool.broke(model, "It ended too often.")
        self.driver.plan()

    @rule(seconds=st.sampled_from([0.5, 5.0, 11.0, 40.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.driver.wait(seconds)

    @invariant()
    def the_budget_holds(self) -> None:
        held = [slot for slot in self.driver.pool.slots.values() if slot.phase in IN_MEMORY]
        assert self.driver.pool.held_bytes <= BUDGET
        assert len(held) <= 3

    @invariant()
    def busy_models_stay(self) -> None:
        for slot in self.driver.pool.slots.values():
            assert slot.leases >= 0
            if slot.phase is Phase.UNLOADING and not slot.broken:
                assert slot.leases == 0
        granted = sum(waiter.granted for waiter in self.here)
        assert granted == sum(slot.leases for slot in self.driver.pool.slots.values())

    @invariant()
    def whoever_can_be_served_is(self) -> None:
        """A waiter for a loaded model only waits because the model has to go."""
        for waiter in self.here:
            slot = self.driver.pool.slots[waiter.model]
            if not waiter.granted and waiter not in self.driver.refused:
                assert slot.phase is not Phase.FAILED
                assert slot.phase is not Phase.LOADED or slot.retiring

    def teardown(self) -> None:
        """From any state on: once leases end and loads succeed, nobody waits for ever."""
        driver = self.driver
        for _ in range(4 * (len(self.here) + 2)):
            driver.settle()
            for waiter in [each for each in self.here if each.granted]:
                self.here.remove(waiter)
                driver.leave(waiter)
            driver.wait(400.0)
        assert [each for each in self.here if each not in driver.refused] == []


AnySequence.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnySequence = AnySequence.TestCase
