"""Everything about a GPU host in one command: `python -m benchmarks.gpu --out DIR`.

Makes Llama-shaped 8B models with random weights, records llama.cpp's own decode and
prefill, then Headrace beside llama-server, and writes one report with the share of the
memory's bandwidth. On a GPU it also compares drawing tokens there with drawing them on the
host. Without a GPU it says so and does the same with a tiny shape.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import bandwidth, build_peer, cli
from benchmarks import session as sessions
from benchmarks.cache import PeerCache, llama_cpp_python_version
from benchmarks.gpu_report import FormatResult, Results, render
from benchmarks.machine import describe_machine, gpu_names
from benchmarks.make_model import MakeError, make_models
from benchmarks.modelfiles import model_file
from benchmarks.options import cores, numbers, positive
from benchmarks.peers import PeerError
from benchmarks.raw import Programs
from benchmarks.roofline import Footprint
from benchmarks.session import Bandwidth
from benchmarks.shapes import BITS_PER_WEIGHT, SHAPES, Shape
from benchmarks.vocabulary import read_vocabulary
from benchmarks.weights import step_weights

LEVELS = (1, 8, 32, 64)
WORKLOADS = ("short", "long-distinct")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all of it; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except (PeerError, MakeError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shape", choices=list(SHAPES), help="(llama-8b; tiny without a GPU)")
    parser.add_argument(
        "--formats", type=_formats, default=tuple(BITS_PER_WEIGHT), metavar="F,F", help="(both)"
    )
    parser.add_argument("--concurrency", type=numbers, default=LEVELS, metavar="N,N")
    parser.add_argument("--workload", default=",".join(WORKLOADS), help="names with commas")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(3)")
    parser.add_argument("--threads", type=positive, default=cores(), metavar="N")
    parser.add_argument("--models", type=Path, metavar="DIR", help="made once, kept (the cache)")
    parser.add_argument("--vocabulary", default="default", metavar="PATH|ID", help="taken from it")
    parser.add_argument("--no-build", action="store_true", help="do without a missing peer")
    parser.add_argument("--sdist", metavar="FILE", help="the peer's source, for offline use")
    return parser


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in BITS_PER_WEIGHT]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(BITS_PER_WEIGHT)}")
    return names


def _run(options: argparse.Namespace) -> int:
    names = gpu_names()
    offload = bandwidth.gpu_offload()
    on_gpu = bool(names) and offload
    notes = [*build_notes(names, offload=offload)]
    for note in notes:
        print(note, flush=True)
    shape = SHAPES[options.shape or ("llama-8b" if on_gpu else "tiny")]
    cache = PeerCache.of_version(llama_cpp_python_version())
    machine, roofs = describe_machine(), _roofs(names if on_gpu else ())
    programs = _programs(options, cache, on_gpu=on_gpu)
    if programs is None:
        notes.append("No build of the peer is at hand: Headrace was measured alone.")
    elif on_gpu and not programs.devices():
        notes.append(
            "The peer was built without a GPU: its figures are the processor's. "
            "Name another cache in HEADRACE_BENCH_CACHE to have it built anew."
        )
    models = _models(options, shape, options.models or cache.directory / "models")
    tokens = len(read_vocabulary(models[options.formats[0]]).tokens)
    found = []
    for name, path in models.items():
        if programs:
            print(f"{name}: llama.cpp by itself", flush=True)
        decode = programs.decode(path, options.concurrency, options.threads) if programs else ()
        prefill = programs.prefill(path, options.threads) if programs else ()
        if status := cli.main(_compare(options, path, name, programs)):
            return status
        if on_gpu and (status := cli.main(_sides_of_sampling(options, path, name))):
            return status
        found.append(
            FormatResult(
                format=name,
                file_bytes=path.stat().st_size,
                footprint=Footprint(weights=step_weights(path), kv_token=shape.kv_token_bytes),
                decode=decode,
                prefill=prefill,
                session=sessions.load(options.out / name / "results.json"),
            )
        )
    results = Results(
        machine=machine,
        shape=shape.name,
        parameters=shape.parameters(tokens),
        roofs=roofs if on_gpu else (_fastest(roofs, found),),
        notes=tuple(notes),
        formats=tuple(found),
    )
    (options.out / "gpu.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    (options.out / "report.md").write_text(render(results))
    print(f"\nWritten: {options.out}/report.md, gpu.json, and a directory for each comparison")
    return 0


def build_notes(names: Sequence[str], *, offload: bool) -> tuple[str, ...]:
    """What to say of the GPUs and of whether llama.cpp's build can use them."""
    if names and offload:
        return ()
    if names:
        return (
            f"{names[0]} is here, but llama-cpp-python was built without a GPU: this is the "
            "processor. Install it anew with CMAKE_ARGS=-DGGML_CUDA=on.",
        )
    return ("There is no GPU here: this is the processor.",)


def _roofs(names: Sequence[str]) -> tuple[Bandwidth, ...]:
    """The bandwidth that shares are of, first; then what else was measured."""
    if not names:
        return (bandwidth.host_memory(),)
    known = (bandwidth.datasheet(names[0]), bandwidth.device_copy())
    return tuple(roof for roof in known if roof) or (bandwidth.host_memory(),)


def _fastest(roofs: Sequence[Bandwidth], formats: Sequence[FormatResult]) -> Bandwidth:
    """The best of all that was measured of the processor's memory: a roof is above the rest."""
    measured = (each.session.bandwidth for each in formats)
    return max((*roofs, *(b for b in measured if b)), key=lambda each: each.bytes_per_second)


def _programs(options: argparse.Namespace, cache: PeerCache, *, on_gpu: bool) -> Programs | None:
    """The peer, built when it is missing, for the GPU where there is one."""
    if (found := Programs.find(cache)) or options.no_build:
        return found
    arguments = ["--cmake-flags=-DGGML_CUDA=ON"] if on_gpu else []
    if options.sdist:
        arguments += ["--sdist", options.sdist]
    if build_peer.main(arguments):
        raise PeerError("the peer was not built; --no-build does without it")
    return Programs.find(cache)


def _models(options: argparse.Namespace, shape: Shape, directory: Path) -> dict[str, Path]:
    """The files by format; those that are missing are made."""
    files = {name: directory / f"{shape.name}.{name}.gguf" for name in options.formats}
    missing = {name: path for name, path in files.items() if not path.exists()}
    if missing:
        print(f"making {', '.join(path.name for path in missing.values())}", flush=True)
        make_models(
            shape,
            missing,
            vocabulary=Path(model_file(options.vocabulary)),
            threads=options.threads,
        )
    return files


def _compare(
    options: argparse.Namespace, model: Path, name: str, programs: Programs | None
) -> list[str]:
    arguments = ["compare", "--a", "headrace", "--model", str(model)]
    if programs:
        server = shutil.which("llama-server", path=str(programs.directory))
        arguments += ["--b", "llama-server", "--b-program", str(server)]
    return [*arguments, *_shared(options, options.out / name)]


def _sides_of_sampling(options: argparse.Namespace, model: Path, name: str) -> list[str]:
    """Headrace drawing tokens in the model's graph beside Headrace drawing them on the host.

    Without speculation, which would have the host draw wherever it checks drafts. Writes
    each side's settings to a file, for neither has a flag.
    """
    out = options.out / f"{name}-sampling"
    out.mkdir(parents=True, exist_ok=True)
    arguments = ["compare", "--model", str(model)]
    for label, value in (("a", "on"), ("b", "off")):
        settings = (out / f"{label}.toml").resolve()
        settings.write_text(f'device_sampling = "{value}"\nspeculation = "off"\n')
        flags = f"--config {shlex.quote(str(settings))}"
        arguments += [f"--{label}", "headrace", f"--{label}-flags={flags}"]
    return [*arguments, *_shared(options, out)]


def _shared(options: argparse.Namespace, out: Path) -> list[str]:
    """The arguments that all comparisons have in common."""
    arguments = ["--workload", options.workload, "--rounds", str(options.rounds)]
    arguments += ["--concurrency", ",".join(map(str, options.concurrency))]
    return [*arguments, "--threads", str(options.threads), "--out", str(out)]


if __name__ == "__main__":
    sys.exit(main())
