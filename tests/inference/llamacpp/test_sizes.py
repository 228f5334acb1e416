"""How the cache's size and layout come about."""

from __future__ import annotations

import pytest

from inference.errors import ModelLoadError
from inference.llamacpp.messages import WorkerConfig
from inference.llamacpp.rope import Trained
from inference.llamacpp.sizes import CacheSizes, cache_sizes


def sizes(**fields: object) -> CacheSizes:
    config = WorkerConfig(model_id="m", model_path="m.gguf", **fields)  # type: ignore[arg-type]
    return cache_sizes(config, Trained(context=32_768, original=32_768))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lanes": 16}, ("unified", 8192, 16_384)),
        ({"lanes": 16, "context": 1024}, ("split", 1024, 16_384)),
        ({"lanes": 1}, ("split", 8192, 8192)),
        ({"lanes": 4, "context": 2048, "layout": "split"}, ("split", 2048, 8192)),
        ({"lanes": 4, "context": 512, "layout": "unified"}, ("unified", 512, 4096)),
        ({"lanes": 4, "context": 2048, "cache_tokens": 4096}, ("unified", 2048, 4096)),
    ],
)
def test_auto_is_split_where_every_lane_fits(
    fields: dict[str, object], expected: tuple[str, int, int]
) -> None:
    found = sizes(**fields)
    assert (found.layout, found.length, found.cells) == expected
    assert found.lanes().cells == found.cells


def test_contradictions_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="cannot hold one sequence of context 4096"):
        sizes(context=4096, cache_tokens=1024)
    with pytest.raises(ModelLoadError, match="cannot hold 4 lanes of context 4096"):
        sizes(lanes=4, context=4096, cache_tokens=8192, layout="split")
