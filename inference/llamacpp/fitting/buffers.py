"""What llama.cpp allocates to compute a batch.

The formulas are fitted to what llama.cpp says itself when it loads a model without its
weights (`no_alloc`): it allocates for the widest moment of the graph, which is in the
feed-forward part, in attention without the flash kernels, or at the logits.
"""

from __future__ import annotations

from typing import Final

from inference.llamacpp.fitting.dimensions import Dimensions
from inference.llamacpp.sizes import CacheSizes

F32: Final = 4
F16: Final = 2
CANDIDATE_BYTES: Final = 12
"""`llama_token_data`: a token, its logit, its probability; a sampler has one for each token."""


def graph_bytes(of: Dimensions, sizes: CacheSizes, *, tokens: int, rows: int, flash: bool) -> int:
    """Buffers for a batch of `tokens` with `rows` of logits."""
    cells = sizes.allocated // (sizes.lane_ids if sizes.layout == "split" else 1)
    tokens = min(tokens, sizes.allocated)
    rows = min(rows, tokens)
    mask = tokens * cells * (F16 if flash else F32) * (2 if of.windowed else 1)
    forward = (3 if of.gated else 2) * of.feed_forward * of.experts
    spread = of.experts if of.experts > 1 else 0  # each expert's answer is kept until their sum
    moments = [
        F32 * tokens * (forward + (4 + spread) * of.width) + mask,
        F32 * rows * (of.vocabulary + 2 * of.width),
    ]
    if not flash:
        inputs = F32 * tokens * (5 * of.width + 2 * of.kv_width)
        moments.append(F32 * of.heads * tokens * cells + inputs + mask)
    return max(moments)


def encoder_bytes(of: Dimensions, *, tokens: int) -> int:
    """Buffers for texts of `tokens` together, which see one another whole."""
    forward = (3 if of.gated else 1) * of.feed_forward
    return F32 * tokens * (forward + 3 * of.width) + F16 * tokens * tokens


def sampling_bytes(of: Dimensions, *, rows: int, lanes: int) -> int:
    """Logits that were copied out, and what the samplers of all lanes sort."""
    return of.vocabulary * (F32 * rows + CANDIDATE_BYTES * lanes)
