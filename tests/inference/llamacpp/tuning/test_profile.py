import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.llamacpp.tuning.choice import Candidate
from inference.llamacpp.tuning.errors import TuningError
from inference.llamacpp.tuning.profile import parse_profile, read_profile, write_profile
from inference.llamacpp.tuning.toml import dumps
from tests.inference.llamacpp.tuning.figures import FAST, KEY, candidates, profile

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
        ("version = 1", "version = 2"),
        ("version = 1", "version = 1\nsurprise = 1"),
        ("near-lossless = 1", "near-lossless = 2"),  # its KL is 0.3: outside the bound
        ("near-lossless = 1", "near-lossless = 7"),
        ("near-lossless = 1", "near-lossless = -1"),
        ("near-lossless = 1", "nearly = 1"),
        ('name = "x-Q8_0.gguf"', 'name = "../x-Q8_0.gguf"'),
        ('name = "x-Q8_0.gguf"', 'name = "/etc/x.gguf"'),
        ('format = "Q8_0"\nname', 'format = "Q6_K"\nname'),
        ("divergence = 0.005", "divergence = nan"),
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


def test_the_offer_is_the_most_faithful_class_with_other_weights() -> None:
    offer = FAST.best_offer()
    assert offer is not None
    assert (offer[0], offer[1].trial.format) == ("near-lossless", "Q8_0")
    assert profile().best_offer() is None
