"""Make the vectors that the engine's embeddings are compared with, by sentence-transformers.

`python -m benchmarks.embedding_reference MODEL_DIRECTORY --out FILE` needs an environment
with `sentence-transformers` and a model as it publishes them; nothing else here needs
either. The file holds the texts, the vectors as float16, and the versions that made them.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embedding_texts import texts

LIBRARIES = ("sentence-transformers", "transformers", "torch")


def main(argv: Sequence[str] | None = None) -> int:
    """Write one file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedding_reference", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIRECTORY")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    library: Any = importlib.import_module("sentence_transformers")
    model = library.SentenceTransformer(str(options.model), device="cpu")
    compared = texts()
    # One at a time: padding to the longest would only cost time.
    vectors = model.encode(compared, batch_size=1, normalize_embeddings=True)
    tokens = [len(model.tokenizer(text)["input_ids"]) for text in compared]
    made = {
        "made_with": {name: version(name) for name in LIBRARIES},
        "length": int(vectors.shape[1]),
        "texts": compared,
        "tokens": tokens,
        "vectors": base64.b64encode(np.asarray(vectors, np.dtype("<f2")).tobytes()).decode(),
    }
    options.out.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(compared)} texts, at most {max(tokens)} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
