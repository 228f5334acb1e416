"""Candidates and profiles for tests, and strategies that make any of them."""

from __future__ import annotations

from hypothesis import strategies as st

from inference.llamacpp.tuning.choice import Candidate, Quality, Speed, Trial
from inference.llamacpp.tuning.formats import OFFERED, ORIGINAL
from inference.llamacpp.tuning.profile import VERSION, Key, Profile, Weights

SHA256 = "ab" * 32
KEY = Key(model_sha256=SHA256, machine='a "machine"\\ with 2 cores', llama_cpp_python="0.3.36")


def candidate(
    format: str = ORIGINAL,
    *,
    divergence: float = 0.0,
    ratio: tuple[float, float, float] = (1, 1, 1),
) -> Candidate:
    """A candidate of these ratios to an original of 100 tokens a second everywhere."""
    prefill, single, streams = map(float, ratio)
    return Candidate(
        trial=Trial(format=format, threads=2, batch_tokens=512),
        speed=Speed(prefill=100 * prefill, single=100 * single, streams=100 * streams),
        ratio=Speed(prefill=prefill, single=single, streams=streams),
        quality=Quality(
            divergence=divergence, agreement=1 - divergence, perplexity=30.0, tokens=1024
        ),
    )


def profile(*candidates: Candidate, key: Key = KEY, sha256: str = SHA256, size: int = 9) -> Profile:
    """A profile of the original and these candidates, with weights of each of them."""
    return Profile(
        version=VERSION,
        model="tiny",
        quantization="Q4_1",
        created="2026-01-01T00:00:00+00:00",
        rounds=3,
        key=key,
        weights=[
            Weights(
                format=c.trial.format, name=f"x-{c.trial.format}.gguf", size=size, sha256=sha256
            )
            for c in candidates
        ],
        candidates=[candidate(), *candidates],
    )


FAST = profile(
    candidate("Q8_0", divergence=0.005, ratio=(2, 1.2, 2)),
    candidate("Q4_0", divergence=0.3, ratio=(3, 1.4, 3)),
)

SERVER = profile(
    candidate("BF16", divergence=0.003, ratio=(4, 0.7, 2)),
    candidate("Q8_0", divergence=0.005, ratio=(2, 1.2, 1.5)),
)
"""Here many users want another format than one does."""

figures = st.floats(min_value=0.01, max_value=100)
candidates = st.lists(
    st.builds(
        candidate,
        st.sampled_from(OFFERED),
        divergence=st.floats(min_value=0, max_value=2),
        ratio=st.tuples(figures, figures, figures),
    ),
    max_size=6,
)
