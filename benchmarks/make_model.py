"""Make a model of a given shape with random weights, as a GGUF file.

`python -m benchmarks.make_model --shape llama-8b --format Q4_K_M --out FILE` writes all
tensors as F16, one at a time, then has llama.cpp quantize the file. Vocabulary and chat
template come from the default model, so any prompt works; the answers mean nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, LlamaFileType

from benchmarks.describing import describe
from benchmarks.modelfiles import model_file
from benchmarks.peers import PeerError
from benchmarks.shapes import BITS_PER_WEIGHT, F16_BYTES, SHAPES, Shape, Tensor
from benchmarks.vocabulary import Vocabulary, read_vocabulary
from benchmarks.weights import OUTPUT

POOL_ELEMENTS = 1 << 24
# So many numbers are written at a time: 64 MiB of F16.
CHUNK_ELEMENTS = 1 << 25
DISK_MARGIN = 1.05
LOG_TAIL_LINES = 5


class MakeError(Exception):
    """A model cannot be made; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make one file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.make_model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--format", choices=list(BITS_PER_WEIGHT), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--vocabulary", default="default", metavar="PATH|ID", help="taken from it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    options = parser.parse_args(argv)
    try:
        make_models(
            SHAPES[options.shape],
            {options.format: options.out},
            vocabulary=Path(model_file(options.vocabulary)),
            threads=options.threads,
        )
    except (MakeError, PeerError) as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    return 0


def make_models(shape: Shape, files: Mapping[str, Path], *, vocabulary: Path, threads: int) -> None:
    """Write `files`, by format, from the same weights, in one directory.

    A file gets its name when it is whole. Raises `MakeError`.
    """
    try:
        words = read_vocabulary(vocabulary).filled(shape.vocabulary)
    except (OSError, ValueError) as error:
        raise MakeError(f"no vocabulary to take: {error}") from error
    directory = next(iter(files.values())).absolute().parent
    directory.mkdir(parents=True, exist_ok=True)
    check_disk(shape, len(words.tokens), tuple(files), shutil.disk_usage(directory).free)
    with tempfile.TemporaryDirectory(prefix=".make-model-", dir=directory) as scratch:
        source = Path(scratch) / "f16.gguf"
        write_f16(shape, words, source)
        for name, path in files.items():
            target = Path(scratch) / path.name
            quantize(source, target, name, threads)
            target.replace(path)


def disk_bytes(shape: Shape, vocabulary: int, formats: Sequence[str]) -> int:
    """What making needs at its largest: the F16 file and every quantized one."""
    weights = shape.parameters(vocabulary)
    bits = 8 * F16_BYTES + sum(BITS_PER_WEIGHT[name] for name in formats)
    return int(weights * bits / 8 * DISK_MARGIN)


def check_disk(shape: Shape, vocabulary: int, formats: Sequence[str], free: int) -> None:
    """Raise `MakeError` unless `free` bytes are enough."""
    needed = disk_bytes(shape, vocabulary, formats)
    if needed > free:
        raise MakeError(
            f"{shape.name} needs {needed / 1e9:.1f} GB of disk while it is made, "
            f"and {free / 1e9:.1f} GB are free"
        )


def write_f16(shape: Shape, vocabulary: Vocabulary, path: Path) -> None:
    """Write the model with F16 weights, holding a block of numbers and no whole tensor."""
    # The writer logs each file at INFO; a warning is still worth seeing.
    logging.getLogger("gguf").setLevel(logging.WARNING)
    tensors = tuple(shape.tensors(len(vocabulary.tokens)))
    pool = np.random.default_rng(seed=1).standard_normal(POOL_ELEMENTS, dtype=np.float32)
    plain = np.array(vocabulary.plain)
    writer = GGUFWriter(path, "llama")
    with closing(writer):
        describe(
            writer,
            shape,
            tokens=len(vocabulary.tokens),
            file_type=LlamaFileType.MOSTLY_F16,
        )
        vocabulary.write(writer)
        for tensor in tensors:
            dtype = np.dtype(np.float32 if len(tensor.shape) == 1 else np.float16)
            nbytes = tensor.elements * dtype.itemsize
            writer.add_tensor_info(tensor.name, tensor.shape, dtype, nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        for number, tensor in enumerate(tensors):
            file = writer.fout[0]
            writer.write_padding(file, file.tell())
            for block in blocks(tensor, pool, start=number * 4099, plain=plain):
                block.tofile(file)
            writer.write_padding(file, file.tell())


def blocks(
    tensor: Tensor, pool: npt.NDArray[np.float32], *, start: int, plain: npt.NDArray[np.bool_]
) -> Iterator[npt.NDArray[np.floating]]:
    """A tensor's values, some rows at a time, each tensor from another place of the pool.

    Norms are ones. Matrices have a variance of one over their inputs, so activations keep
    their size. The output rows of tokens that are no words are zero: the likeliest token
    is always a word, so every step gives a reader something to see.
    """
    if len(tensor.shape) == 1:
        yield np.ones(tensor.shape, dtype=np.float32)
        return
    rows, width = tensor.shape
    scaled = (pool / np.sqrt(width)).astype(np.float16)
    step = max(1, CHUNK_ELEMENTS // width)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        place = (start + first * width) % len(pool)
        block = np.resize(np.roll(scaled, -place), (count, width))
        if tensor.name == OUTPUT:
            block[~plain[first : first + count]] = 0
        yield block


def quantize(source: Path, target: Path, name: str, threads: int) -> None:
    """Write `source` to `target` as format `name`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.quantize"]
    command += [str(source), str(target), name, str(threads)]
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        log = done.stdout.decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        raise MakeError("\n  ".join([f"llama.cpp cannot write {name}:", *log]))


if __name__ == "__main__":
    sys.exit(main())
