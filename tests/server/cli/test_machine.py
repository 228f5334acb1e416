from collections.abc import Sequence
from pathlib import Path

import pytest

from server.cli.machine import NVIDIA_QUERY, Gpu, Runner, read_machine, run_program

X86 = """\
processor\t: 0
model name\t: AMD EPYC 9354
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 fma f16c avx512f avx512_vnni avx512_bf16 avx_vnni

processor\t: 1
model name\t: AMD EPYC 9354
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 fma f16c avx512f avx512_vnni avx512_bf16 avx_vnni
"""
ARM = """\
processor\t: 0
Features\t: fp asimd asimddp i8mm bf16 sve

processor\t: 1
Features\t: fp asimd asimddp i8mm bf16 sve
"""


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def runner(output: str | None) -> Runner:
    def run(arguments: Sequence[str]) -> str | None:
        return output if tuple(arguments) == NVIDIA_QUERY else None

    return run


def test_an_empty_root_is_a_machine_about_which_nothing_is_known(tmp_path: Path) -> None:
    machine = read_machine(tmp_path, runner(None))
    assert machine.processor.name == "unknown processor"
    assert machine.processor.features == ()
    assert (machine.memory_bytes, machine.cpu_limit, machine.gpus) == (0, None, ())


def test_x86_processor_and_memory(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/cpuinfo": X86, "proc/meminfo": "MemTotal:  2048 kB\nMemFree: 1 kB\n"})
    machine = read_machine(tmp_path, runner(None))
    assert machine.processor.name == "AMD EPYC 9354"
    assert (machine.processor.cores, machine.processor.threads) == (1, 2)
    assert set(machine.processor.features) == {
        *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16")
    }
    assert machine.memory_bytes == 2048 * 1024


def test_arm_processor(tmp_path: Path) -> None:
    machine = read_machine(tree(tmp_path, {"proc/cpuinfo": ARM}), runner(None))
    assert (machine.processor.cores, machine.processor.threads) == (2, 2)
    assert machine.processor.features == ("neon", "asimddp", "i8mm", "bf16", "sve")


@pytest.mark.parametrize(
    ("memory_max", "cpu_max", "memory", "cpus"),
    [("max\n", "max 100000\n", 4096 * 1024, None), ("1048576\n", "150000 100000\n", 1048576, 1.5)],
)
def test_the_limits_of_a_container_count(
    tmp_path: Path, memory_max: str, cpu_max: str, memory: int, cpus: float | None
) -> None:
    tree(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 4096 kB\n",
            "sys/fs/cgroup/memory.max": memory_max,
            "sys/fs/cgroup/cpu.max": cpu_max,
        },
    )
    machine = read_machine(tmp_path, runner(None))
    assert (machine.memory_bytes, machine.cpu_limit) == (memory, cpus)


def test_nvidia_smi_is_asked_first(tmp_path: Path) -> None:
    tree(tmp_path, {"dev/nvidia0": ""})
    output = "NVIDIA H200, 143771, 570.86.15\nNVIDIA A2, [N/A], 570.86.15\n"
    assert read_machine(tmp_path, runner(output)).gpus == (
        Gpu(vendor="NVIDIA", name="NVIDIA H200", memory_mib=143771, driver="570.86.15"),
        Gpu(vendor="NVIDIA", name="NVIDIA A2", memory_mib=None, driver="570.86.15"),
    )


def test_without_nvidia_smi_the_driver_is_read(tmp_path: Path) -> None:
    information = "proc/driver/nvidia/gpus/0000:01:00.0/information"
    tree(tmp_path, {information: "Model: \t\t NVIDIA L4\nIRQ: 1\n", "dev/nvidia0": ""})
    assert read_machine(tmp_path, runner("unexpected words")).gpus == (
        Gpu(vendor="NVIDIA", name="NVIDIA L4"),
    )


def test_without_a_driver_the_devices_are_counted(tmp_path: Path) -> None:
    tree(tmp_path, {"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": ""})
    names = [gpu.name for gpu in read_machine(tmp_path, runner(None)).gpus]
    assert names == ["GPU at /dev/nvidia0", "GPU at /dev/nvidia1"]


def test_amd_gpus_are_the_nodes_with_simd_units(tmp_path: Path) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    tree(
        tmp_path,
        {
            "dev/kfd": "",
            f"{nodes}/0/properties": "cpu_cores_count 16\nsimd_count 0\n",
            f"{nodes}/1/properties": "cpu_cores_count 0\nsimd_count 1216\n",
            f"{nodes}/1/name": "gfx942\n",
        },
    )
    assert read_machine(tmp_path, runner(None)).gpus == (Gpu(vendor="AMD", name="gfx942"),)


def test_amd_without_topology_is_still_a_gpu(tmp_path: Path) -> None:
    tree(tmp_path, {"dev/kfd": ""})
    assert [gpu.vendor for gpu in read_machine(tmp_path, runner(None)).gpus] == ["AMD"]


def test_programs_that_fail_or_are_not_there_say_nothing() -> None:
    assert run_program(["headrace-no-such-program"]) is None
    assert run_program(["false"]) is None
    assert run_program(["echo", "x"]) == "x\n"
