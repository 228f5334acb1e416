"""A small BERT with random weights, as sentence-transformers would publish it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

WIDTH, WIDE, HEADS, LAYERS, CONTEXT = 32, 64, 4, 2, 48
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "mill", "wheel", "river", "gate", "turn", "##s", "##ing", "open", "a", ".", ","),
)
EPSILON = 1e-12


def random_weights() -> dict[str, Array]:
    """Every tensor under its usual name, and BERT's pooler, which nobody needs."""
    rng = np.random.default_rng(7)

    def some(*shape: int) -> Array:
        values: Array = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return values

    def norm(path: str) -> dict[str, Array]:
        return {f"{path}.weight": 1 + 0.1 * some(WIDTH), f"{path}.bias": 0.1 * some(WIDTH)}

    def linear(path: str, outputs: int, inputs: int) -> dict[str, Array]:
        return {f"{path}.weight": some(outputs, inputs), f"{path}.bias": some(outputs)}

    weights = {
        "embeddings.word_embeddings.weight": some(len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": some(CONTEXT, WIDTH),
        "embeddings.token_type_embeddings.weight": some(2, WIDTH),
        **norm("embeddings.LayerNorm"),
        **linear("pooler.dense", WIDTH, WIDTH),
    }
    for number in range(LAYERS):
        path = f"encoder.layer.{number}"
        for name in ("query", "key", "value"):
            weights |= linear(f"{path}.attention.self.{name}", WIDTH, WIDTH)
        weights |= linear(f"{path}.attention.output.dense", WIDTH, WIDTH)
        weights |= norm(f"{path}.attention.output.LayerNorm")
        weights |= linear(f"{path}.intermediate.dense", WIDE, WIDTH)
        weights |= linear(f"{path}.output.dense", WIDTH, WIDE)
        weights |= norm(f"{path}.output.LayerNorm")
    return weights


def safetensors_bytes(weights: Mapping[str, Array]) -> bytes:
    """The weights as a safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in weights.items():
        raw = tensor.tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": place}
        data += raw
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


def published_files(**config: object) -> dict[str, bytes]:
    """All files of the model by name; `config` replaces fields of its description."""
    described = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "intermediate_size": WIDE,
        "layer_norm_eps": EPSILON,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "type_vocab_size": 2,
        "vocab_size": len(WORDS),
        **config,
    }
    return {
        "config.json": json.dumps(described).encode(),
        "model.safetensors": safetensors_bytes(random_weights()),
        "vocab.txt": ("\n".join(WORDS) + "\n").encode(),
        "tokenizer_config.json": b'{"do_lower_case": true, "strip_accents": null}',
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    }


def publish(directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files; returns the directory."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def hidden_states(tokens: list[int]) -> Array:
    """What the last layer gives for each token, computed here: (tokens, WIDTH)."""
    weights = random_weights()

    def linear(x: Array, path: str) -> Array:
        result: Array = x @ weights[f"{path}.weight"].T + weights[f"{path}.bias"]
        return result

    def norm(x: Array, path: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        normed: Array = scaled * weights[f"{path}.weight"] + weights[f"{path}.bias"]
        return normed

    count, width = len(tokens), WIDTH // HEADS
    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][:count]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for number in range(LAYERS):
        path = f"encoder.layer.{number}"
        q, k, v = (
            linear(x, f"{path}.attention.self.{name}").reshape(count, HEADS, width).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(width)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        heads = (shares @ v).swapaxes(0, 1).reshape(count, WIDTH)
        x = norm(
            x + linear(heads, f"{path}.attention.output.dense"),
            f"{path}.attention.output.LayerNorm",
        )
        wide = linear(x, f"{path}.intermediate.dense")
        wide = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
        x = norm(x + linear(wide, f"{path}.output.dense"), f"{path}.output.LayerNorm")
    result: Array = x.astype(np.float32)
    return result
