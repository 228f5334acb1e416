import json
import shlex
import subprocess
from pathlib import Path

import msgspec

from inference.status import ModelInfo
from server.cli.banner import FIRST_KEY, banner, curl

INFO = ModelInfo(
    id="smollm2-135m-instruct",
    description="llama 134.52M Q4_1",
    quantization="Q4_1",
    parameters=134_515_008,
    size_bytes=98_362_432,
    vocab_size=49152,
    context_length=8192,
    train_context_length=8192,
    has_chat_template=True,
    engine="llamacpp",
    device="CPU",
    layout="unified",
    lanes=16,
    cache_tokens=16384,
    threads=2,
)
URL = "http://127.0.0.1:8080"


def test_the_banner_says_what_runs_where() -> None:
    text = banner(INFO, version="0.1.0", url=URL, loopback=True, api_key_file=None)
    words = (
        *("smollm2-135m-instruct", "Q4_1", "unified", "16 lanes", "8192", "16384"),
        *("2 threads", "CPU", URL, "135M", "98.4 MB of weights"),
        *("loopback only", "keys create NAME"),
    )
    assert [word for word in words if word not in text] == []
    assert text.splitlines()[-1].startswith("curl -N ")


def test_one_thread_and_one_lane_are_not_many() -> None:
    one = msgspec.structs.replace(INFO, threads=1, lanes=1)
    lines = banner(one, version="", url=URL, loopback=True, api_key_file=None).splitlines()
    assert "  engine        llamacpp, 1 thread" in lines
    assert "  layout        unified, 1 lane" in lines


def test_an_open_server_is_called_open() -> None:
    text = banner(INFO, version="", url=URL, loopback=False, api_key_file=None)
    assert "NONE: anybody" in text


def test_the_banner_says_which_weights_where_there_is_a_choice() -> None:
    offer = "original; faster here: --profile near-lossless (2.1 times)"
    text = banner(INFO, version="", url=URL, loopback=True, api_key_file=None, profile=offer)
    assert f"  profile       {offer}\n" in text
    assert "profile" not in banner(INFO, version="", url=URL, loopback=True, api_key_file=None)


def test_a_model_that_generates_nothing_is_tried_with_what_it_does() -> None:
    embeds = msgspec.structs.replace(INFO, embedding_length=384, context_length=512)
    text = banner(embeds, version="", url=URL, loopback=True, api_key_file=None)
    assert "  makes         384 dimensions\n  context       512 tokens an input\n" in text
    assert "lanes" not in text
    assert "/v1/embeddings" in text.splitlines()[-1]
    ranks = msgspec.structs.replace(INFO, reranks=True)
    text = banner(ranks, version="", url=URL, loopback=True, api_key_file=None)
    assert "/v1/rerank" in text.splitlines()[-1]


def test_the_curl_line_is_a_valid_request() -> None:
    words = shlex.split(curl(URL, None))
    body = json.loads(words[words.index("-d") + 1])
    assert body["stream"] is True
    assert body["messages"][0]["role"] == "user"
    assert words[2] == f"{URL}/v1/chat/completions"
    assert "\n" not in curl(URL, None)


def test_the_curl_line_takes_the_key_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "my keys"
    file.write_text("# team\n\nsk-one\nsk-two\n")
    line = curl(URL, file)
    assert "sk-one" not in line
    header = line.split("-H ", 1)[1].split(" -H", 1)[0]
    shown = subprocess.run(["bash", "-c", f"echo {header}"], capture_output=True, check=True)
    assert shown.stdout == b"Authorization: Bearer sk-one\n"
    assert FIRST_KEY in line


def test_models_on_demand_are_named_but_not_all() -> None:
    names = [f"model-{number}" for number in range(7)]
    text = banner(
        INFO, version="1", url="http://127.0.0.1:1", loopback=True, api_key_file=None, others=names
    )
    assert "  on demand     model-0, model-1, model-2, model-3, model-4 and 2 more\n" in text
