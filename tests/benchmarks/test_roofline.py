"""The share of the roofline: its arithmetic, and where reports show it."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest

from benchmarks import bandwidth, device_copy
from benchmarks.html_report import render_html
from benchmarks.layout import cells
from benchmarks.machine import STEP_BYTES
from benchmarks.report import render_markdown
from benchmarks.roofline import Footprint, bandwidth_share, roofline_table, served_shares
from benchmarks.session import Bandwidth, Session
from tests.benchmarks.samples import session

ROOF = Bandwidth(bytes_per_second=2e9, source="made up")


def _with_files(*, roof: Bandwidth | None = ROOF) -> Session:
    """A's TPOT is half a second, B's a whole one; both read 100 MB a step."""
    made = session()
    served = tuple(replace(each, model={STEP_BYTES: "100,000,000"}) for each in made.served)
    return replace(made, served=served, bandwidth=roof)


def test_a_step_reads_weights_once_and_every_cache() -> None:
    footprint = Footprint(weights=1000, kv_token=4)
    assert footprint.step_bytes(batch=8, context_tokens=100) == 1000 + 8 * 100 * 4
    assert bandwidth_share(4200, 2.0, 8400) == pytest.approx(0.25)


def test_the_served_share_is_weights_over_tpot_over_bandwidth() -> None:
    for cell in cells(_with_files()):
        shares = served_shares(_with_files(), cell)
        assert shares["A"].median == pytest.approx(100e6 / 0.5 / 2e9)
        assert shares["B"].median == pytest.approx(100e6 / 1.0 / 2e9)


def test_reports_show_it_with_its_formula_and_source() -> None:
    made = _with_files()
    table = roofline_table(made)
    assert table is not None
    assert table.rows[0] == ("short, 1 at a time", "10.0 (10.0 to 10.0) %", "5.00 (5.00 to 5.00) %")
    markdown = render_markdown(made)
    assert (
        "share of the roofline: bytes of weights a step / TPOT p50, over 2.0 GB/s (made up)"
        in markdown
    )
    assert "short: share of the roofline against concurrency" in render_html(made)


def test_without_a_bandwidth_or_a_file_nothing_is_claimed() -> None:
    for made in (_with_files(roof=None), replace(session(), bandwidth=ROOF)):
        assert roofline_table(made) is None
        assert "roofline" not in render_markdown(made)
        assert "roofline" not in render_html(made)


def test_an_open_loop_has_no_batch_to_divide_by() -> None:
    made = _with_files()
    opened = replace(made, measurements=tuple(replace(m, open=True) for m in made.measurements))
    assert roofline_table(opened) is None


def test_the_processors_memory_is_measured() -> None:
    found = bandwidth.host_memory(array_bytes=1 << 20)
    assert found.bytes_per_second > 0
    assert "1 MiB" in found.source


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("NVIDIA H200", 4800), ("NVIDIA H200 NVL", 4800), ("NVIDIA L4", 300), ("NVIDIA L40S", 864)],
)
def test_gpus_are_known_by_name(name: str, gigabytes: float) -> None:
    found = bandwidth.datasheet(name)
    assert found is not None
    assert found.bytes_per_second == gigabytes * 1e9


def test_an_unknown_gpu_is_not_taken_for_another() -> None:
    assert bandwidth.datasheet("NVIDIA L40") is None


class _Driver:
    """A CUDA driver in which `failing` fails and all else succeeds at once."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.copies = 0

    def __getattr__(self, name: str) -> object:
        def call(*_: object) -> int:
            self.copies += name == "cuMemcpyDtoD_v2"
            return 2 if name == self.failing else 0

        return call


def test_a_copy_on_the_device_is_repeated_and_counted() -> None:
    driver = _Driver()
    assert device_copy.measure(_as_library(driver)) > 0
    assert driver.copies == device_copy.REPEATS


def test_a_failed_call_is_named() -> None:
    with pytest.raises(OSError, match="cuMemAlloc_v2 returned 2"):
        device_copy.measure(_as_library(_Driver("cuMemAlloc_v2")))


def _as_library(driver: _Driver) -> ctypes.CDLL:
    return driver  # type: ignore[return-value]
