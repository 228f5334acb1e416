"""Which models are in memory: who is loaded, who has to go, who waits.

    UNLOADED --weigh--> WEIGHING --> UNLOADED, its weight known
    UNLOADED --load---> LOADING ---> LOADED ---unload---> UNLOADING --> UNLOADED
    WEIGHING, LOADING, UNLOADING of a broken one --> FAILED --its time is over--> UNLOADED

Whoever wants to use a model *enters* and is granted a lease once it is loaded; what has
a lease is never unloaded. Memory counts from before a load until after an unload, at
what the model is estimated to weigh. Room is made by unloading idle models, least
recently used first. Where all are busy the newcomer waits; after `patience_seconds` the
least recently used ones *retire*: they end what they run and take no more meanwhile, so
that a stream of requests cannot keep a third model out for ever. Loads begin in the order
in which they were asked for.

Pure: no clock, no engine. Times are seconds of any clock that only rises, weights bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from inference.slots import (
    IN_MEMORY,
    TRANSITIONS,
    IllegalTransition,
    Phase,
    Plan,
    PoolLimits,
    Slot,
    Waiter,
)

BACKOFF_FIRST_SECONDS = 5.0
BACKOFF_MAX_SECONDS = 300.0


class Pool:
    """The models that may be loaded, and those who wait for them.

    Mutable: the slots, the waiters in order of arrival. Owner: the fleet, on one event
    loop. After each call that changes something `plan` has to be asked.
    """

    def __init__(self, ids: Iterable[str], limits: PoolLimits) -> None:
        self.limits = limits
        self.slots: dict[str, Slot] = {id: Slot(id=id) for id in ids}
        self._waiters: list[Waiter] = []

    @property
    def held_bytes(self) -> int:
        """Memory that is accounted for."""
        return sum(slot.weight or 0 for slot in self._in_memory())

    def enter(self, model: str, *, now: float) -> Waiter:
        """Ask for a lease. Raises `KeyError` for a model that there is not."""
        waiter = Waiter(model=self.slots[model].id, since=now)
        self._waiters.append(waiter)
        return waiter

    def leave(self, waiter: Waiter, *, now: float) -> None:
        """Give the lease back, or stop waiting; whoever was refused may leave as well."""
        if waiter.granted:
            waiter.granted = False
            slot = self.slots[waiter.model]
            slot.leases -= 1
            slot.used_at = now
        elif waiter in self._waiters:
            self._waiters.remove(waiter)

    def position(self, waiter: Waiter) -> int:
        """How many wait for this model up to this one: 1 is the first."""
        ahead = self._waiters[: self._waiters.index(waiter) + 1]
        return sum(each.model == waiter.model for each in ahead)

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        return sum(waiter.model == model for waiter in self._waiters)

    def weighed(self, model: str, weight: int) -> None:
        """A model's weight is known now."""
        slot = self.slots[model]
        self._move(slot, Phase.UNLOADED)
        slot.weight = weight

    def loaded(self, model: str, *, now: float) -> None:
        """A model can be used."""
        slot = self.slots[model]
        self._move(slot, Phase.LOADED)
        slot.used_at = now
        slot.failures = 0

    def failed(self, model: str, reason: str, *, now: float) -> None:
        """A model could not be weighed or loaded, and nothing of it is in memory."""
        slot = self.slots[model]
        self._move(slot, Phase.FAILED)
        backoff = BACKOFF_FIRST_SECONDS * 2.0 ** min(slot.failures, 10)
        slot.failures += 1
        slot.retry_at = now + min(BACKOFF_MAX_SECONDS, backoff)
        slot.reason, slot.broken, slot.weight = reason, "", None

    def broke(self, model: str, reason: str) -> None:
        """A loaded model will never answer again; it goes, whoever still has a lease."""
        slot = self.slots[model]
        if slot.phase is Phase.LOADED:
            slot.broken = reason

    def unloaded(self, model: str, *, now: float) -> None:
        """A model's memory is free again."""
        slot = self.slots[model]
        if slot.broken:
            self.failed(model, slot.broken, now=now)
        else:
            self._move(slot, Phase.UNLOADED)

    def unload(self, model: str, *, now: float) -> bool:
        """Have an idle model be unloaded at the next plan; False while it is in use."""
        slot = self.slots[model]
        if slot.phase is not Phase.LOADED or slot.leases or self.waiting(model):
            return slot.phase in (Phase.UNLOADED, Phase.UNLOADING, Phase.FAILED)
        slot.retiring = True
        return True

    def retry(self, model: str) -> None:
        """Forget that a model has failed."""
        slot = self.slots[model]
        if slot.phase is Phase.FAILED:
            self._move(slot, Phase.UNLOADED)

    def plan(self, *, now: float) -> Plan:
        """Decide all that can be decided now."""
        plan = Plan()
        retiring = self._take_retiring(plan)
        blocked = False
        for waiter in tuple(self._waiters):
            slot = self.slots[waiter.model]
            if slot.phase is Phase.FAILED and now >= slot.retry_at:
                self._move(slot, Phase.UNLOADED)
            if slot.phase is Phase.UNLOADED and slot.weight is None:
                self._move(slot, Phase.WEIGHING)
                plan.weigh.append(slot.id)
            elif slot.phase is Phase.UNLOADED and not blocked:
                blocked = not self._admit(slot, waiter, plan, retiring, now=now)
            if slot.phase is Phase.FAILED:
                self._waiters.remove(waiter)
                plan.refused.append(waiter)
            elif slot.phase is Phase.LOADED and not (slot.retiring or slot.broken):
                self._grant(waiter, slot, plan, now=now)
        self._unload_idle(plan, now=now)
        return plan

    def _take_retiring(self, plan: Plan) -> frozenset[str]:
        """Unload what is broken or retired; retiring ends unless somebody still waits."""
        retiring = set()
        for slot in self.slots.values():
            if slot.phase is not Phase.LOADED:
                continue
            if slot.broken or (slot.retiring and not slot.leases):
                self._unload(slot, plan)
            elif slot.retiring:
                retiring.add(slot.id)
                slot.retiring = False
        return frozenset(retiring)

    def _admit(
        self, slot: Slot, waiter: Waiter, plan: Plan, retiring: frozenset[str], *, now: float
    ) -> bool:
        """Load the waiter's model, or make room for it; False while there is none."""
        weight, limits = slot.weight or 0, self.limits
        if limits.models < 1 or (limits.bytes is not None and weight > limits.bytes):
            self.failed(slot.id, _too_large(weight, limits), now=now)
            return True
        held = self._in_memory()
        if self._fits(weight, held):
            self._move(slot, Phase.LOADING)
            plan.load.append(slot.id)
            return True
        patient_until = waiter.since + limits.patience_seconds
        for victim in self._victims(weight, held, retiring, busy=now >= patient_until):
            if victim.leases:
                victim.retiring = True
            else:
                self._unload(victim, plan)
        if now < patient_until:
            _wake(plan, patient_until)
        return False

    def _victims(
        self, weight: int, held: list[Slot], retiring: frozenset[str], *, busy: bool
    ) -> list[Slot]:
        """The fewest that have to go, idle ones first; none where all together do not do."""
        staying = [slot for slot in held if slot.phase is not Phase.UNLOADING]
        candidates = [
            slot for slot in staying if slot.phase is Phase.LOADED and (busy or not slot.leases)
        ]
        # Who retires already goes on retiring: draining one after the other would not end.
        candidates.sort(key=lambda each: (each.leases > 0, each.id not in retiring, each.used_at))
        victims: list[Slot] = []
        for candidate in candidates:
            if self._fits(weight, staying):
                break
            victims.append(candidate)
            staying.remove(candidate)
        return victims if self._fits(weight, staying) else []

    def _fits(self, weight: int, held: list[Slot]) -> bool:
        limits = self.limits
        if len(held) >= limits.models:
            return False
        return limits.bytes is None or sum(s.weight or 0 for s in held) + weight <= limits.bytes

    def _grant(self, waiter: Waiter, slot: Slot, plan: Plan, *, now: float) -> None:
        self._waiters.remove(waiter)
        waiter.granted = True
        slot.leases += 1
        slot.used_at = now
        plan.granted.append(waiter)

    def _unload_idle(self, plan: Plan, *, now: float) -> None:
        if not self.limits.idle_seconds:
            return
        for slot in self.slots.values():
            if slot.phase is Phase.LOADED and not slot.leases:
                due = slot.used_at + self.limits.idle_seconds
                if now >= due:
                    self._unload(slot, plan)
                else:
                    _wake(plan, due)

    def _unload(self, slot: Slot, plan: Plan) -> None:
        self._move(slot, Phase.UNLOADING)
        slot.retiring = False
        plan.unload.append(slot.id)

    def _in_memory(self) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.phase in IN_MEMORY]

    def _move(self, slot: Slot, to: Phase) -> None:
        if to not in TRANSITIONS[slot.phase]:
            raise IllegalTransition(f"{slot.id}: {slot.phase} -> {to}")
        slot.phase = to


def _wake(plan: Plan, at: float) -> None:
    plan.wake_at = at if plan.wake_at is None else min(plan.wake_at, at)


def _too_large(weight: int, limits: PoolLimits) -> str:
    if limits.models < 1 or limits.bytes is None:
        return "No model may be loaded beside the default one."
    return (
        f"This model needs about {weight >> 20} MiB of memory; "
        f"{limits.bytes >> 20} MiB may be used for models beside the default one."
    )
