"""The estimate beside what a real engine process holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fit import measured, small_config

ALLOWED = 0.10
QUANTIZED = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}


@pytest.mark.model
@pytest.mark.parametrize(
    "fields",
    [
        {"layout": "unified", "cache_tokens": 256},
        {"layout": "split", "cache_tokens": 256, **QUANTIZED},
    ],
    ids=["unified f16", "split q8_0"],
)
def test_a_process_holds_what_was_estimated(
    default_model_path: Path, fields: dict[str, object]
) -> None:
    config = small_config(default_model_path, lanes=2, context=128, batch_tokens=128, **fields)
    row = measured("default", config)
    assert abs(row.error) < ALLOWED, row.cells()
    assert row.found.loaded < row.found.used
