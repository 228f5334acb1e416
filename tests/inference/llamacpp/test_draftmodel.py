"""The draft model: what its lanes hold, what it proposes, and that answers stay the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from numpy.typing import NDArray

from benchmarks.make_model import write_f16
from benchmarks.vocabulary import read_vocabulary
from inference.errors import ModelLoadError
from inference.events import Delta, Finished
from inference.llamacpp import draftmodel
from inference.llamacpp.bindings import Model
from inference.llamacpp.context import Context, Row
from inference.llamacpp.draftmodel import DraftModel, load_draft
from inference.llamacpp.intake import Intake
from inference.llamacpp.messages import Abort, Park, Report, Resume
from inference.llamacpp.prompting.prompts import Prompts
from inference.llamacpp.scheduling.asking import DRAFT_MAX, Ask, Asking, Cost, Offer
from inference.llamacpp.scheduling.hostcache import HostCache
from inference.llamacpp.scheduling.lanes import Lanes
from inference.llamacpp.scheduling.scheduler import Scheduler
from inference.llamacpp.scheduling.speculation import STEP_MAX, Speculator
from inference.llamacpp.scheduling.split import SplitLanes
from inference.llamacpp.scheduling.steptime import StepTime
from inference.llamacpp.scheduling.unified import UnifiedLanes
from inference.llamacpp.steploop import Close, StepLoop
from inference.requests import GenerationRequest, TextPrompt
from inference.status import EngineStats
from tests.benchmarks.made_models import SMALL, write_vocabulary
from tests.inference.llamacpp.cells import Cells
from tests.inference.llamacpp.test_engine import (
    Answer,
    answer,
    assert_equal_up_to_near_ties,
    request,
    running,
)

LANES = 3
TOKENS = 20
SYNCHRONIZE = "inference.llamacpp.draftmodel.llama_cpp.llama_synchronize"


def oracle(tokens: Sequence[int]) -> int:
    """What the pretended draft model finds likeliest."""
    return (3 * tokens[-1] + sum(tokens) + len(tokens)) % 5


class PretendedContext:
    """The cache, cell by cell, and the `oracle` instead of a model."""

    def __init__(
        self, model: object, *, cache_tokens: int, lane_ids: int, batch_tokens: int, **_: object
    ) -> None:
        self.cells = cache_tokens
        self.handle = None
        self.memory = Cells(cache_tokens)
        self.run = self.memory.run
        self._lane_ids, self._batch_tokens = lane_ids, batch_tokens
        self._drawn: list[int] = []

    def decode(self, rows: Sequence[Row]) -> dict[int, int]:
        assert 0 < sum(len(row.tokens) for row in rows) <= self._batch_tokens
        assert len({row.lane for row in rows}) == len(rows)
        outputs: dict[int, int] = {}
        self._drawn = []
        for row in rows:
            assert row.lane < self._lane_ids
            self.memory.compute(row.lane, row.start, row.tokens)
            if row.outputs:
                outputs[row.lane] = len(self._drawn)
                self._drawn.append(oracle(self.memory.tokens(row.lane)))
        return outputs

    def logits(self, index: int) -> NDArray[np.float32]:
        row: NDArray[np.float32] = np.eye(5, dtype=np.float32)[self._drawn[index]]
        return row

    def close(self) -> None:
        """Nothing is held."""


def pretended(*, cells: int = 150, length: int = 100) -> DraftModel:
    model = SimpleNamespace(train_context=length, end_token_set=frozenset(), close=lambda: None)
    with mock.patch.object(draftmodel, "Context", PretendedContext):
        return DraftModel(cast("Model", model), lanes=LANES, cells=cells, threads=1)


class AnyHistory(RuleBasedStateMachine):
    """Texts that grow as was drafted or otherwise, asks for some of them, ends."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch(SYNCHRONIZE)
        self.patch.start()
        self.model = pretended()
        self.texts: dict[str, list[int]] = {}
        self.ids = (f"s{n}" for n in itertools.count())

    def teardown(self) -> None:
        self.patch.stop()

    @precondition(lambda self: len(self.texts) < 2 * LANES)
    @rule(tokens=st.lists(st.integers(0, 4), min_size=1, max_size=60), like=st.booleans())
    def add(self, tokens: list[int], like: bool) -> None:
        start = next(iter(self.texts.values()), [])[:30] if like else []
        self.texts[next(self.ids)] = start + tokens

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), right=st.integers(0, 6), wrong=st.integers(0, 4))
    def grow(self, data: st.DataObject, right: int, wrong: int) -> None:
        text = self.texts[data.draw(st.sampled_from(sorted(self.texts)))]
        for _ in range(right):
            text.append(oracle(text))
        text.append(wrong)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.texts)))
        self.model.forget(id)
        del self.texts[id]

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), chunk=st.integers(16, 64), reading=st.sampled_from([0, 30, 1000]))
    def ask(self, data: st.DataObject, chunk: int, reading: int) -> None:
        ids = data.draw(st.permutations(sorted(self.texts)))[:LANES]
        asks = tuple(
            Ask(id=id, drafts=data.draw(st.integers(1, DRAFT_MAX)), reading=reading) for id in ids
        )
        offer = self.model.propose(Asking(asks=asks, chunk=chunk), self.texts.__getitem__)
        most = {ask.id: ask.drafts for ask in asks}
        assert offer.drafts.keys() | offer.behind <= most.keys()
        assert not offer.drafts.keys() & offer.behind
        for id, drafts in offer.drafts.items():
            text = list(self.texts[id])
            for draft in drafts:
                assert draft == oracle(text)
                text.append(draft)
            assert len(drafts) == most[id]
        read = sum(cost.reading for cost in offer.costs)
        assert read <= chunk + 2 * len(asks)
        memory = cast("PretendedContext", self.model._context).memory
        for id, held in self.model._held.items():
            assert memory.tokens(held.lane) == self.texts[id][: held.size] + held.ahead
            assert len(held.ahead) <= DRAFT_MAX


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def alone() -> Iterator[DraftModel]:
    with mock.patch(SYNCHRONIZE):
        yield pretended()


def test_a_long_text_is_read_in_chunks_before_there_are_drafts(alone: DraftModel) -> None:
    text = [n % 5 for n in range(60)]
    asking = Asking(asks=(Ask(id="a", drafts=2, reading=100),), chunk=20)
    for _ in range(2):
        offer = alone.propose(asking, {"a": text}.__getitem__)
        assert not offer.drafts
        assert offer.behind == {"a"}
        assert [cost.reading for cost in offer.costs] == [22]
    offer = alone.propose(asking, {"a": text}.__getitem__)
    assert len(offer.drafts["a"]) == 2
    assert [(cost.reading, cost.drafts) for cost in offer.costs] == [(15, 1), (0, 1)]


def test_right_drafts_are_not_computed_again_and_wrong_ones_are_cut(alone: DraftModel) -> None:
    text = [1, 2, 3]
    asking = Asking(asks=(Ask(id="a", drafts=3, reading=100),), chunk=20)

    def read() -> int:
        return alone.propose(asking, {"a": text}.__getitem__).costs[0].reading

    assert read() == len(text) - 1
    for _ in range(4):
        text.append(oracle(text))
    assert read() == 1, "the last draft and the token behind it"
    text.append((oracle(text) + 1) % 5)
    assert read() == 0, "the new token alone"


def test_the_next_turn_finds_what_the_last_one_left(alone: DraftModel) -> None:
    text = [n % 5 for n in range(30)]
    asking = Asking(asks=(Ask(id="a", drafts=1, reading=100),), chunk=50)
    alone.propose(asking, {"a": text}.__getitem__)
    alone.forget("a")
    costs = alone.propose(asking, {"a": [*text, 1, 2]}.__getitem__).costs
    assert costs[0].reading == 2


def test_who_has_too_much_to_read_is_declined(alone: DraftModel) -> None:
    asking = Asking(asks=(Ask(id="a", drafts=1, reading=5),), chunk=50)
    assert alone.propose(asking, {"a": [1] * 20}.__getitem__) == Offer()
    assert alone.propose(asking, {"a": [1] * 7}.__getitem__).drafts


class Free(StepTime):
    """Steps that take so long that any draft is worth it."""

    def decode_seconds(self, decoding: int) -> float:
        return 1000.0

    def draft_seconds(self, decoding: int) -> tuple[float, float] | None:
        return 0.0, 0.0


class Eager(Speculator):
    """Asks for all the drafts there may be."""

    def ask(self, limits: Mapping[str, int], room: int, time: StepTime) -> Asking | None:
        return super().ask(limits, room, Free())

    def drafts(self, limits: Mapping[str, int], room: int, time: StepTime) -> dict[str, list[int]]:
        return super().drafts(limits, room, Free())


class Played:
    """Answers of a step loop that runs on this thread until all requests have ended.

    `then` is called with this and the number of tokens so far, after each step.
    """

    def __init__(
        self,
        model: Model,
        requests: Sequence[GenerationRequest],
        *,
        lanes: Lanes,
        draft: DraftModel | None = None,
        speculator: Speculator | None = None,
        then: Callable[[Played, int], object] = lambda played, tokens: None,
    ) -> None:
        self.answers = {asked.id: Answer() for asked in requests}
        self.stats = EngineStats()
        self._left = len(requests)
        self._then = then
        context = Context(
            model,
            unified=isinstance(lanes, UnifiedLanes),
            cache_tokens=lanes.cells,
            lane_ids=8,
            batch_tokens=128,
            threads=1,
            host_bytes=0,
            drafts=STEP_MAX,
        )
        scheduler = Scheduler(
            lanes,
            HostCache(capacity=0, token_bytes=1),
            running=4,
            batch_tokens=128,
            target_seconds=1.0,
            speculator=speculator,
        )
        self.loop = StepLoop(
            scheduler, context, send=self._take, lanes=4, max_waiting=8, draft_model=draft
        )
        intake = Intake(model, Prompts(model, source="", limit_seconds=2.0), context=lanes.length)
        for asked in requests:
            self.loop.inbox.put(intake.generation(asked))
        try:
            self.loop.run()
        finally:
            context.close()

    def tell(self, command: Abort | Park | Resume) -> None:
        self.loop.inbox.put(command)
        self._left -= isinstance(command, Abort)

    def _take(self, report: Report) -> None:
        self.stats = report.stats
        for each in report.events:
            answer = self.answers[each.id]
            match each.event:
                case Delta() as delta:
                    answer.tokens += delta.tokens
                    answer.logprobs += delta.logprobs or ()
                case Finished() as finished:
                    answer.finished = finished
                    self._left -= 1
        self._then(self, sum(len(answer.tokens) for answer in self.answers.values()))
        if not self._left:
            self.loop.inbox.put(Close())


PROMPTS = [
    "The seven days of the week are called",
    "A mill by the river needs water, and so",
    "Once upon a time there was a miller who",
    "To make bread at home, first",
]


def requests() -> list[GenerationRequest]:
    return [
        request(f"r{n}", TextPrompt(text=text), max_tokens=TOKENS, logprobs=2)
        for n, text in enumerate(PROMPTS)
    ]


LAYOUTS: Mapping[str, Callable[[], Lanes]] = {
    "unified": lambda: UnifiedLanes(ids=8, cells=1024),
    "split": lambda: SplitLanes(ids=8, length=128),
}


@pytest.fixture(scope="module")
def model(default_model_path: Path) -> Iterator[Model]:
    made = Model(str(default_model_path), gpu_layers=0, progress=lambda _: True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain(model: Model) -> dict[str, Answer]:
    """Answers without drafts, of four together."""
    return Played(model, requests(), lanes=LAYOUTS["unified"]()).answers


def drafting(target: Model, path: Path, *, cells: int = 1024) -> DraftModel:
    weights = load_draft(str(path), id="small", target=target, target_id="large", gpu_layers=0)
    return DraftModel(weights, lanes=4, cells=cells, threads=1)


@pytest.mark.model
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_drafts_for_itself_is_right(
    model: Model, plain: dict[str, Answer], default_model_path: Path, layout: str
) -> None:
    draft = drafting(model, default_model_path)
    played = Played(model, requests(), lanes=LAYOUTS[layout](), draft=draft, speculator=Eager())
    draft.close()
    for id, each in played.answers.items():
        assert len(each.tokens) == TOKENS
        assert_equal_up_to_near_ties(plain[id], each)
    assert played.stats.draft_tokens > 2 * TOKENS
    assert played.stats.draft_tokens_accepted > 0.85 * played.stats.draft_tokens
    assert played.stats.steps < 0.8 * TOKENS


@pytest.mark.model
def test_aborts_parking_and_preemption_in_the_middle_change_no_answer(
    model: Model, plain: dict[str, Answer], default_model_path: Path
) -> None:
    plot: dict[int, Abort | Park | Resume] = {
        20: Abort(id="r1"),
        30: Park(id="r2"),
        50: Resume(id="r2"),
    }

    def then(played: Played, tokens: int) -> None:
        for number in [number for number in plot if number < tokens]:
            played.tell(plot.pop(number))

    draft = drafting(model, default_model_path, cells=256)
    again = request("again", TextPrompt(text=PROMPTS[1]), max_tokens=TOKENS, logprobs=2)
    played = Played(
        model,
        [*requests(), again],
        lanes=UnifiedLanes(ids=8, cells=64),
        draft=draft,
        speculator=Eager(),
        then=then,
    )
    draft.close()
    assert not plot
    assert played.stats.preemptions > 0
    assert played.stats.draft_tokens_accepted > 0
    same = {"r0": "r0", "r2": "r2", "r3": "r3", "again": "r1"}
    for id, other in same.items():
        assert len(played.answers[id].tokens) == TOKENS
        assert_equal_up_to_near_ties(plain[other], played.answers[id])
    assert not draft._held


class Wrong(DraftModel):
    """Quick, and never right."""

    def __init__(self) -> None:
        """Nothing is loaded."""

    def probe(self) -> Offer:
        return Offer(costs=(Cost(drafts=1, reading=0, seconds=1e-5),))

    def propose(self, asking: Asking, known: Callable[[str], Sequence[int]]) -> Offer:
        return Offer(drafts={ask.id: [0] * ask.drafts for ask in asking.asks})

    def forget(self, id: str) -> None:
        """Nothing is known."""


@pytest.mark.model
def test_a_model_that_is_never_right_changes_no_answer_and_is_soon_left_alone(
    model: Model, plain: dict[str, Answer]
) -> None:
    lanes = LAYOUTS["unified"]()
    played = Played(model, requests(), lanes=lanes, draft=Wrong(), speculator=Speculator())
    for id, each in played.answers.items():
        assert_equal_up_to_near_ties(plain[id], each)
    assert played.stats.draft_tokens < 4 * TOKENS  # of sixteen a step, if nobody looked


@pytest.mark.model
def test_a_model_with_another_vocabulary_is_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    write_f16(SMALL, read_vocabulary(write_vocabulary(tmp_path / "v.gguf")).filled(16), path)
    with pytest.raises(
        ModelLoadError,
        match=r"^small cannot draft for large: its vocabulary has 16 tokens, not 49152$",
    ):
        drafting(model, path)


@pytest.mark.model
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bos_text": lambda _: "<s>"}, "its sequences begin or end with other tokens"),
        (
            {"special_text": lambda self, t: Model.special_text(self, t) + "!" * (t == 2400)},
            "token 2400 is another in its vocabulary",
        ),
        ({"decodes_text": lambda _: False}, "it cannot generate text"),
        ({"shares_prefixes": lambda _: False}, "its sequences cannot be cut at a token"),
    ],
)
def test_a_model_that_differs_or_cannot_be_cut_is_refused(
    model: Model, default_model_path: Path, change: dict[str, object], problem: str
) -> None:
    other = type("Other", (Model,), change)
    with (
        mock.patch.object(draftmodel, "Model", other),
        pytest.raises(ModelLoadError, match=f"^small cannot draft for large: {problem}$"),
    ):
        drafting(model, default_model_path)


@pytest.mark.model
def test_a_model_that_cannot_take_drafts_back_has_none(
    model: Model, default_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "shares_prefixes", lambda _: False)
    with pytest.raises(ModelLoadError, match="large: that cannot take drafts back"):
        drafting(model, default_model_path)


@pytest.mark.model
def test_the_engine_loads_a_draft_model_and_not_without_speculation(
    default_model_path: Path,
) -> None:
    """Without speculation the file need not even be there."""
    prompt = TextPrompt(text=PROMPTS[0])

    async def scenario() -> None:
        for speculation, path in (("auto", default_model_path), ("off", "/nowhere.gguf")):
            async with running(
                default_model_path,
                speculation=speculation,
                draft_id="default",
                draft_path=str(path),
                lanes=2,
            ) as engine:
                result = await answer(engine, request("a", prompt, max_tokens=8))
                assert len(result.tokens) == 8
        with pytest.raises(ModelLoadError, match="could not load"):
            async with running(default_model_path, draft_id="x", draft_path="/nowhere.gguf"):
                pass

    asyncio.run(scenario())
