from pathlib import Path

import pytest

from inference.llamacpp.tuning.errors import TuningError
from inference.llamacpp.tuning.formats import BITS, OFFERED, QUICK, USUAL, parse_formats
from inference.llamacpp.tuning.plan import (
    Original,
    expected_bytes,
    formats_that_fit,
    quick_options,
    thread_counts,
    usual_options,
)
from tests.models.gguf_files import CHAT_MODEL, gguf_bytes

GB = 10**9
ORIGINAL_8B = Original(id="x", path=Path("x.gguf"), quantization="Q4_K_M", size=5 * GB)


def nothing(_: str) -> None:
    pass


def test_formats_from_the_command_line() -> None:
    assert parse_formats("q8_0, Q4_K_M,Q8_0") == ("Q8_0", "Q4_K_M")
    for text, word in (("Q9", "Q9"), (",", "no format")):
        with pytest.raises(TuningError, match=word):
            parse_formats(text)


def test_every_offered_format_has_a_size() -> None:
    assert set(USUAL) | set(QUICK) <= set(OFFERED) <= set(BITS)


def test_the_estimate_is_above_what_llama_cpp_writes() -> None:
    default = Original(id="x", path=Path("x"), quantization="Q4_1", size=98_362_432)
    assert 144_811_072 < expected_bytes(default, "Q8_0") < 1.5 * 144_811_072
    assert 91_726_912 < expected_bytes(default, "Q4_0") < 1.5 * 91_726_912


def test_formats_that_do_not_fit_are_left_out_loudly() -> None:
    said: list[str] = []
    left = formats_that_fit(
        ORIGINAL_8B, ("F16", "Q8_0", "Q4_K_M", "Q4_0"), memory_bytes=13 * GB, say=said.append
    )
    assert left == ("Q8_0", "Q4_0")  # Q4_K_M is what it is already
    assert len(said) == 1
    assert "F16" in said[0]


def test_a_model_too_large_for_memory_is_refused() -> None:
    with pytest.raises(TuningError, match=r"too large.*6\.54 GB.*4\.00 GB"):
        formats_that_fit(ORIGINAL_8B, ("Q8_0",), memory_bytes=4 * GB, say=nothing)
    assert formats_that_fit(ORIGINAL_8B, ("Q8_0",), memory_bytes=None, say=nothing) == ("Q8_0",)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(TuningError, match="no format is left"):
        formats_that_fit(ORIGINAL_8B, ("Q4_K_M",), memory_bytes=None, say=nothing)


def test_the_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes({**CHAT_MODEL, "llama.vocab_size": 300}))
    original = Original.read("m", path)
    assert (original.quantization, original.vocabulary) == ("Q8_0", 300)
    assert original.size == path.stat().st_size


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no model", "GGUF"),
        (gguf_bytes({**CHAT_MODEL, "split.count": 3}), "one of several parts"),
        (gguf_bytes({**CHAT_MODEL, "llama.pooling_type": 1}), "m makes no text"),
    ],
)
def test_what_cannot_be_tuned_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(TuningError, match=reason):
        Original.read("m", path)


def test_quick_is_less() -> None:
    quick, usual = quick_options(), usual_options()
    assert set(quick.formats) < set(usual.formats)
    assert quick.rounds < usual.rounds
    assert len(quick.batches) < len(usual.batches)
    assert quick.threads == thread_counts()[:1]
    assert quick_options(formats=("F16",), rounds=5).rounds == 5
