"""What would fit is estimated, not guessed: each remedy holds, and no larger one would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inference.llamacpp.fitting.fit import Headers
from inference.llamacpp.remedies import Case, Memory, remedies
from tests.inference.llamacpp.shapes import config, headers

GB = 10**9
SETTINGS = {
    "kv_host_memory": ("host_memory_bytes", 64, 1 << 20),
    "cache_tokens": ("cache_tokens", 256, 1),
    "context": ("context", 256, 1),
    "lanes": ("lanes", 1, 1),
    "gpu_layers": ("gpu_layers", 1, 1),
}


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Headers:
    return headers(tmp_path_factory.mktemp("shapes"))


def followed(case: Case, remedy: str, *, further: int = 0) -> Case:
    """The case with a remedy's settings, each `further` steps larger."""
    for words in remedy.split(" and "):
        if words.startswith("cache_type_k"):
            continue  # its second half names the format
        if words.startswith("cache_type_v"):
            kind = words.split()[1]
            case = case.changed(cache_type_k=kind, cache_type_v=kind)
            continue
        name, number = words.split()
        field, step, scale = SETTINGS[name]
        case = case.changed(**{field: (int(number) + further * step) * scale})
    return case


@pytest.mark.parametrize(
    ("fields", "memory"),
    [
        ({}, Memory(cpu=12 * GB)),
        ({"host_memory_bytes": 0}, Memory(cpu=int(10.2 * GB))),
        ({"lanes": 8, "context": 4096, "layout": "split"}, Memory(cpu=12 * GB)),
        ({}, Memory(cpu=64 * GB, gpu=10 * GB)),
        ({}, Memory(cpu=64 * GB, gpu=6 * GB)),
        ({}, Memory(cpu=9 * GB)),
    ],
)
def test_each_remedy_fits_and_no_more_would(
    eight: Headers, fields: dict[str, object], memory: Memory
) -> None:
    case = Case(config=config(**fields), headers=eight, memory=memory)
    assert not case.fits()
    found = remedies(case)
    assert found
    for remedy in found:
        if "weights in" in remedy:
            continue
        assert followed(case, remedy).fits(), remedy
        if re.fullmatch(r"(cache_tokens|lanes|gpu_layers|kv_host_memory) \d+", remedy):
            assert not followed(case, remedy, further=1).fits(), remedy


def test_all_kinds_are_offered(eight: Headers) -> None:
    case = Case(config=config(), headers=eight, memory=Memory(cpu=64 * GB, gpu=10 * GB + GB // 2))
    kinds = [re.sub(r"\d+$", "N", remedy) for remedy in remedies(case)]
    assert kinds == [
        "cache_type_k and cache_type_v q8_N",
        "cache_tokens N",
        "lanes N",
        "gpu_layers N",
        "weights in Q6_K (about 6.6 GB)",
    ]


def test_where_one_change_is_not_enough_two_are_offered(tmp_path: Path) -> None:
    small = headers(tmp_path, "llama-8b", "Q4_K_M")
    both = {"host_memory_bytes": 0, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    least = Case(config=config(lanes=1, **both), headers=small, memory=Memory(cpu=0))
    memory = Memory(cpu=least.footprint().cpu_bytes)
    case = Case(config=config(lanes=1), headers=small, memory=memory)
    first, *_ = remedies(case)
    assert first == "kv_host_memory 0 and cache_type_k and cache_type_v q8_0"
    assert followed(case, first).fits()


def test_nothing_is_offered_that_does_not_go_together(tmp_path: Path) -> None:
    small = headers(tmp_path, "llama-8b", "Q4_K_M")
    fields = {"lanes": 1, "flash_attention": "off"}
    least = config(**fields, host_memory_bytes=0, context=2048, cache_tokens=2048)
    taken = Case(config=least, headers=small, memory=Memory(cpu=0)).footprint()
    memory = Memory(cpu=taken.cpu_bytes)
    case = Case(config=config(**fields), headers=small, memory=memory)
    first, *_ = remedies(case)
    assert first == "kv_host_memory 0 and context 2048"
    assert followed(case, first).fits()


def test_sometimes_nothing_does(tmp_path: Path) -> None:
    seventy = headers(tmp_path, "llama-70b", "Q4_K_M")
    assert remedies(Case(config=config(), headers=seventy, memory=Memory(cpu=24 * GB))) == ()


def test_what_fits_holds(eight: Headers) -> None:
    case = Case(config=config(), headers=eight, memory=Memory(cpu=24 * GB))
    assert case.fits()
    exact = case.footprint().cpu_bytes
    assert Memory(cpu=exact).holds(case.footprint())
    assert not Memory(cpu=exact - 1).holds(case.footprint())
    assert not Memory(cpu=exact, gpu=0).holds(
        Case(config=config(), headers=eight, memory=Memory(cpu=exact, gpu=0)).footprint()
    )
