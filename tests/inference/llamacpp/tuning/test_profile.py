import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.tuning.choice import CHOICES, Candidate
from inference.llamacpp.tuning.errors import TuningError, WeightsMissing
from inference.llamacpp.tuning.profile import parse_profile, read_profile, write_profile
from inference.llamacpp.tuning.toml import dumps
from tests.inference.llamacpp.tuning.figures import (
    FAST,
    KEY,
    SERVER,
    candidate,
    candidates,
    profile,
)

scalars = (
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
tables = st.recursive(
    st.dictionaries(keys, scalars, max_size=3),
    lambda inner: st.dictionaries(
        keys, scalars | inner | st.lists(inner, min_size=1, max_size=2), max_size=3
    ),
    max_leaves=8,
)


@given(tables)
def test_what_the_writer_writes_reads_back_equal(table: dict[str, object]) -> None:
    assert tomllib.loads(dumps(table)) == table


def test_the_writer_refuses_other_types() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        dumps({"a": None})


@given(candidates)
def test_a_profile_reads_back_equal(rows: list[Candidate]) -> None:
    assert parse_profile(write_profile(profile(*rows))) == profile(*rows)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 2", "version = 3"),
        ("version = 2", "version = 0"),
        ("version = 2", "version = 2\nsurprise = 1"),
        ('format = "original"', 'format = "Q6_K"'),  # then there is nothing to fall back on
        ("divergence = 0.0\n", "divergence = 0.2\n"),
        ("prefill = 2.0", "prefill = 0.0"),
        ("prefill = 2.0", "prefill = -2.0"),
        ("prefill = 2.0", "prefill = nan"),
        ("prefill = 2.0", "prefill = inf"),
        ('name = "x-Q8_0.gguf"', 'name = "../x-Q8_0.gguf"'),
        ('name = "x-Q8_0.gguf"', 'name = "/etc/x.gguf"'),
        ("threads = 2", 'threads = "2"'),
        ("rounds = 3", "rounds = "),
    ],
)
def test_a_damaged_profile_is_refused(old: str, new: str, tmp_path: Path) -> None:
    text = write_profile(FAST)
    assert old in text
    path = tmp_path / "profile.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(TuningError, match="cannot be used"):
        read_profile(path, KEY)


def test_another_key_is_another_file_and_another_profile(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    assert read_profile(path, KEY) is None
    path.write_text(write_profile(FAST), encoding="utf-8")
    assert read_profile(path, KEY) == FAST
    for field, value in (
        ("model_sha256", "cd" * 32),
        ("machine", "another"),
        ("llama_cpp_python", "0.3.37"),
    ):
        other = msgspec.structs.replace(KEY, **{field: value})
        assert other.file_name() != KEY.file_name()
        with pytest.raises(TuningError, match="another"):
            read_profile(path, other)


def test_a_file_of_the_first_version_has_every_choice() -> None:
    """It held one choice a class, and only their weights; the candidates hold all others."""
    q8_only = [weights for weights in SERVER.weights if weights.format == "Q8_0"]
    kept = msgspec.structs.replace(SERVER, weights=q8_only)
    text = write_profile(kept).replace("version = 2", "version = 1")
    first, rest = text.split("[key]")
    old = f"{first}[choices]\nnear-lossless = 2\nbalanced = 2\nfast = 2\n\n[key]{rest}"
    read = parse_profile(old)
    assert read == kept
    assert read.chosen("near-lossless").trial.format == "Q8_0"
    assert read.weights_of(read.chosen("near-lossless")) == q8_only[0]
    many = read.chosen("near-lossless/throughput")
    assert many.trial.format == "BF16"
    with pytest.raises(WeightsMissing, match="without weights in BF16"):
        read.weights_of(many)
    assert [offer.name for offer in read.offers()] == ["near-lossless"]


def test_other_weights_are_never_mistaken_for_the_original() -> None:
    bare = msgspec.structs.replace(FAST, weights=[])
    assert bare.weights_of(candidate()) is None
    with pytest.raises(WeightsMissing):
        bare.weights_of(bare.chosen("fast"))


def test_an_offer_is_the_most_faithful_class_with_other_weights() -> None:
    [offer] = FAST.offers()
    assert (offer.name, offer.candidate.trial.format) == ("near-lossless", "Q8_0")
    assert list(profile().offers()) == []


def test_a_preference_is_offered_where_it_serves_something_else() -> None:
    even, many = SERVER.offers()
    assert (even.name, even.candidate.trial.format) == ("near-lossless", "Q8_0")
    assert (many.name, many.candidate.trial.format) == ("near-lossless/throughput", "BF16")
    assert many.score == pytest.approx(8**0.5)


@given(candidates)
def test_offers_can_be_served_and_are_faster(rows: list[Candidate]) -> None:
    made = profile(*rows)
    for offer in made.offers():
        assert made.chosen(offer.name) == offer.candidate
        assert made.weights_of(offer.candidate) is not None
        assert offer.name in CHOICES
        assert offer.score >= 1
