import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from inference.llamacpp.tuning.divergence import Comparison, kl, log_softmax

logits = arrays(np.float32, (3, 8), elements=st.floats(-80, 80, width=32))


@given(logits)
def test_log_softmax_is_a_distribution(rows: np.ndarray) -> None:
    assert np.exp(log_softmax(rows)).sum(axis=-1) == pytest.approx(1.0)


@given(logits, st.floats(-1000, 1000))
def test_a_constant_added_to_all_logits_changes_nothing(rows: np.ndarray, shift: float) -> None:
    wide = rows.astype(np.float64)
    assert log_softmax(wide + shift) == pytest.approx(log_softmax(wide), abs=1e-6)


@given(logits, logits)
def test_divergence_is_never_negative_and_zero_for_equals(p: np.ndarray, q: np.ndarray) -> None:
    assert (kl(log_softmax(p), log_softmax(q)) >= 0).all()
    assert (kl(log_softmax(p), log_softmax(p)) == 0).all()


def test_a_divergence_known_by_hand() -> None:
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl(p, q)[0] == pytest.approx(expected)


def test_excluded_tokens() -> None:
    both = log_softmax(np.array([[0.0, -np.inf, 1.0]]))
    open_ = log_softmax(np.array([[0.0, 0.0, 1.0]]))
    assert kl(both, both)[0] == 0
    assert 0 < kl(both, open_)[0] < math.inf  # the original excludes it: p = 0 adds nothing
    assert kl(open_, both)[0] == math.inf


def test_a_comparison_adds_up_whatever_the_chunks() -> None:
    rng = np.random.default_rng(7)
    p, q = rng.normal(size=(2, 10, 5))
    targets = rng.integers(0, 5, 10)
    whole, parts = Comparison(), Comparison()
    whole.add(p, q, targets)
    for part in (slice(0, 3), slice(3, 10)):
        parts.add(p[part], q[part], targets[part])
    one, two = whole.result(), parts.result()
    assert one.tokens == two.tokens == 10
    assert one.divergence == pytest.approx(two.divergence)
    assert one.agreement == two.agreement == (p.argmax(1) == q.argmax(1)).mean()
    assert one.perplexity == pytest.approx(two.perplexity)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary() -> None:
    comparison = Comparison()
    flat = np.zeros((4, 50), dtype=np.float32)
    comparison.add(flat, flat, np.array([1, 2, 3, 4]))
    assert comparison.result().perplexity == pytest.approx(50)


def test_nothing_compared_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Comparison().result()
