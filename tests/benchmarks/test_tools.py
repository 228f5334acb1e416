"""What other load tools report, read back. Their files are as they write them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from benchmarks.client import Client, Target
from benchmarks.peers import PeerError
from benchmarks.tokenizer_files import write_tokenizer
from benchmarks.tools import Aiperf, BuiltIn, Load, Locust, parse_aiperf, parse_locust
from benchmarks.tools import _body as body
from benchmarks.workloads import WORKLOADS, Conversation
from tests.benchmarks.made_models import TOKENS, write_vocabulary

LOCUST_TABLE = """\
Type,Name,Request Count,Failure Count,Median Response Time,Average Response Time,50%,90%,100%
stream,ITL,1008,0,20,20.01,20,21,28
stream,TTFT,16,0,85.0,87.1,85,90,114
stream,end to end,16,1,1300.0,1351.0,1300,1400,1400
,Aggregated,1040,1,20,41.6,20,21,1400
"""
LOCUST_PRINTED = "[info] starting\ntokens: 1024 in 5.470 s, 187.20 a second\n"


def test_locusts_table_is_read() -> None:
    found = parse_locust(LOCUST_TABLE, LOCUST_PRINTED)
    assert (found.requests, found.tokens) == (15, 1024)
    assert (found.ttft_p50, found.ttft_p90, found.itl_p50) == (0.085, 0.09, 0.02)
    assert found.tokens_per_second == 187.2


@pytest.mark.parametrize(
    ("table", "printed", "missing"),
    [
        (LOCUST_TABLE, "nothing", "how many tokens"),
        (LOCUST_TABLE.replace("TTFT", "other"), LOCUST_PRINTED, "TTFT"),
        (LOCUST_TABLE.replace(",85,90", ",N/A,90"), LOCUST_PRINTED, "N/A"),
        ("", LOCUST_PRINTED, "TTFT"),
    ],
)
def test_a_table_that_lacks_something_is_refused(table: str, printed: str, missing: str) -> None:
    with pytest.raises(PeerError, match=missing):
        parse_locust(table, printed)


AIPERF = {
    "time_to_first_token": {"unit": "ms", "p50": 89.0, "p90": 98.5, "avg": 90.6},
    "inter_chunk_latency": {"unit": "ms", "p50": 19.5, "p90": 20.5},
    "inter_token_latency": {"unit": "ms", "p50": 1.0, "p90": 1.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 187.5},
    "total_output_tokens": {"unit": "tokens", "avg": 1024.0},
    "request_count": {"unit": "requests", "avg": 16.0},
}


def test_aiperfs_report_is_read() -> None:
    found = parse_aiperf(json.dumps(AIPERF).encode())
    assert (found.requests, found.tokens, found.tokens_per_second) == (16, 1024, 187.5)
    assert (found.ttft_p50, found.ttft_p90, found.itl_p50) == (0.089, 0.0985, 0.0195)


@pytest.mark.parametrize("gone", sorted(set(AIPERF) - {"inter_token_latency"}))
def test_a_report_that_lacks_something_is_refused(gone: str) -> None:
    rest = {name: value for name, value in AIPERF.items() if name != gone}
    with pytest.raises(PeerError, match=gone):
        parse_aiperf(json.dumps(rest).encode())


@pytest.mark.parametrize(
    ("seconds", "rounding"), [(0.020, 0.0005), (0.099, 0.0005), (0.110, 0.005), (1.3, 0.05)]
)
def test_locust_rounds_and_the_others_do_not(seconds: float, rounding: float) -> None:
    assert Locust("locust").rounding(seconds) == pytest.approx(rounding)
    assert BuiltIn().rounding(seconds) == 0
    assert Aiperf("aiperf", Path()).rounding(seconds) == 0


def test_aiperf_sends_what_the_built_in_client_sends() -> None:
    client = Client(Target(base_url="http://127.0.0.1:1", extra={"ignore_eos": True}))
    talk = Conversation(id="c", turns=("hello",), max_tokens=5, system="be brief")
    sent = msgspec.json.decode(body(client, talk))
    assert [each["role"] for each in sent["messages"]] == ["system", "user"]
    assert (sent["max_tokens"], sent["stream"], sent["ignore_eos"]) == (5, True, True)


def test_conversations_of_several_turns_are_refused() -> None:
    load = Load(workload=WORKLOADS["turns"], number=1, concurrency=1, seed=1, round=0)
    with pytest.raises(PeerError, match="several turns"):
        load.conversations()


def test_a_tokenizer_is_made_from_a_vocabulary(tmp_path: Path) -> None:
    made = write_tokenizer(write_vocabulary(tmp_path / "v.gguf"), tmp_path / "made")
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"] == {token: place for place, token in enumerate(TOKENS)}
    assert tokenizer["model"]["merges"] == ["m ill"]
    assert [each["content"] for each in tokenizer["added_tokens"]] == [TOKENS[0]]
    configuration = json.loads((made / "tokenizer_config.json").read_text())
    assert configuration["eos_token"] == TOKENS[0]


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    with pytest.raises(PeerError, match="no tokenizer"):
        write_tokenizer(tmp_path / "no.gguf", tmp_path / "made")
