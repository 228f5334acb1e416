"""A small engine process for tests: it speaks the protocol and misbehaves when told.

`--starts FILE` counts its starts there, `--behave a,b,c` says what each start does (the
last one for all further): ready, exit, refuse, silent, stubborn.

The prompt says what a sequence does, for example "count 3 then die": so many tokens,
numbered from 0, then what `Worker.then` knows. What it says with "once-" before it happens
in the first process only: in another there are as many tokens again, and the end. "flood"
sends tokens until it is parked and goes on when it is resumed; "overflow" does not mind
being parked. "unheard" ends the first process before it is accepted. The chat template
renders the log of what arrived.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from inference.events import Accepted, Delta, Embeddings, Finished, FinishReason, Started, Usage
from inference.llamacpp.messages import (
    HEADER,
    Abort,
    ApplyTemplate,
    CountTokens,
    Detokenize,
    Embed,
    Embedded,
    Failure,
    LoadFailed,
    Loading,
    Message,
    Park,
    Ping,
    Pong,
    Ready,
    Refused,
    Reply,
    Report,
    Resume,
    Resumption,
    SequenceEvent,
    Submit,
    Tokenize,
    ToWorker,
    WorkerConfig,
    frame,
    to_worker,
)
from inference.requests import EmbeddingRequest, GenerationRequest, TextPrompt
from inference.status import EngineStats, ModelInfo

FLOOD_TOKENS = 1000
OVERFLOW_TOKENS = 10_000


class Worker:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.log: list[str] = []
        self.steps = 0
        self.floods: dict[str, int] = {}
        self.parked: set[str] = set()
        self.deaf = False

    def send(self, *messages: Message) -> None:
        self.sock.sendall(b"".join(map(frame, messages)))

    def receive(self, *, wait: bool) -> Iterator[ToWorker]:
        """The messages that are there; ends the process with the connection."""
        readable, _, _ = select.select([self.sock], [], [], None if wait else 0)
        if readable:
            data = self.sock.recv(1 << 16)
            if not data:
                sys.exit(0)
            self.buffer += data
        while len(self.buffer) >= HEADER.size:
            (size,) = HEADER.unpack_from(self.buffer)
            end = HEADER.size + size
            if len(self.buffer) < end:
                return
            body, self.buffer = self.buffer[HEADER.size : end], self.buffer[end:]
            yield to_worker.decode(body)

    def run(self) -> None:
        while True:
            flooding = [id for id in self.floods if id not in self.parked]
            for message in self.receive(wait=not flooding):
                self.handle(message)
            for id in flooding:
                if id in self.floods:
                    self.flood(id)

    def handle(self, message: ToWorker) -> None:
        match message:
            case Submit(request=request, resumes=resumes):
                done = 0 if resumes is None else len(resumes.tokens)
                word = "submit" if resumes is None else f"resume-after-{done}"
                self.log.append(f"{word} {request.id} seed={request.sampling.seed}")
                self.generate(request, resumes)
            case Embed(request=EmbeddingRequest(id=id, inputs=(TextPrompt(text=told), *_))):
                self.log.append(f"embed {id}")
                self.embed(id, told)
            case Ping():
                self.send(Pong())
            case Abort(id=id):
                self.log.append(f"abort {id}")
                self.floods.pop(id, None)
            case Park(id=id):
                self.log.append(f"park {id}")
                if not self.deaf:
                    self.parked.add(id)
            case Resume(id=id):
                self.log.append(f"resume {id}")
                self.parked.discard(id)
            case Tokenize(call=call, text="pid"):
                self.send(Reply(call=call, value=(os.getpid(),)))
            case Tokenize(text="hang"):
                pass
            case Tokenize(text="die"):
                os.kill(os.getpid(), signal.SIGKILL)
            case Tokenize(call=call, text="wrong kind"):
                self.send(Reply(call=call, value="text"))
            case Tokenize(call=call, text=text):
                self.send(Reply(call=call, value=tuple(map(ord, text))))
            case Detokenize(call=call, tokens=tokens) if min(tokens) < 0:
                failure = Failure(code="invalid_request", text="no such token", param="tokens")
                self.send(Refused(call=call, failure=failure))
            case Detokenize(call=call, tokens=tokens):
                self.send(Reply(call=call, value="".join(map(chr, tokens))))
            case ApplyTemplate(call=call):
                self.send(Reply(call=call, value="\n".join(self.log)))
            case CountTokens(call=call, prompt=TextPrompt(text=text)):
                self.send(Reply(call=call, value=len(text)))
            case _:
                raise AssertionError(message)

    def embed(self, id: str, told: str) -> None:
        """Do what the input says: refuse, die, wait, or else give its length."""
        if told == "refuse":
            failure = Failure(code="invalid_request", text="no such input", param="input[0]")
            self.report(id, failure)
            return
        self.report(id, Accepted(prompt_tokens=1))
        if told == "die":
            os.kill(os.getpid(), signal.SIGABRT)
        if told != "wait":
            value = Embeddings(length=1, vectors=struct.pack("<f", len(told)), tokens=(1,))
            self.send(Embedded(id=id, value=value))

    def report(self, id: str, *events: Accepted | Started | Delta | Finished | Failure) -> None:
        self.steps += 1
        items = tuple(SequenceEvent(id=id, event=event) for event in events)
        self.send(Report(events=items, stats=EngineStats(steps=self.steps, running=1)))

    def generate(self, request: GenerationRequest, resumes: Resumption | None) -> None:
        assert isinstance(request.prompt, TextPrompt)
        done = 0 if resumes is None else len(resumes.tokens)
        assert resumes is None or resumes.tokens == tuple(range(done))
        id = request.id
        if request.prompt.text == "unheard" and resumes is None:
            os.kill(os.getpid(), signal.SIGKILL)
        self.report(id, Accepted(prompt_tokens=3), Started(cached_tokens=0, queue_seconds=0.0))
        if request.prompt.text in ("flood", "overflow"):
            self.floods[id] = done
            self.deaf = request.prompt.text == "overflow"
            return
        told = request.prompt.text.replace("unheard", "count 2 then finish")
        _, count, _, then = told.split()
        until = int(count)
        if then.startswith("once-"):
            then = then.removeprefix("once-") if resumes is None else "finish"
            until *= 1 if resumes is None else 2
        for number in range(done, until):
            self.report(id, Delta(text=f"{number} ", tokens=(number,)))
        self.then(then, id, until)

    def then(self, then: str, id: str, count: int) -> None:
        finished = Finished(
            reason=FinishReason.LENGTH, usage=Usage(prompt_tokens=3, completion_tokens=count)
        )
        match then:
            case "finish":
                self.report(id, finished)
            case "after":
                self.report(id, finished, Delta(text="never", tokens=(9,)))
            case "fail":
                self.report(id, Failure(code="decode_failed", text="no room"))
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                print("about to exit\x1b[31m", file=sys.stderr, flush=True)
                os._exit(3)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang-up":
                self.sock.close()
                signal.pause()
            case "garbage":
                self.sock.sendall(HEADER.pack(3) + b"abc")
            case "giant":
                self.sock.sendall(HEADER.pack(0xFFFF_FFFF))
            case "wait":
                pass
            case _:
                raise AssertionError(then)

    def flood(self, id: str) -> None:
        number = self.floods[id]
        self.report(id, Delta(text=f"{number} ", tokens=(number,)))
        self.floods[id] = number + 1
        if number + 1 == (OVERFLOW_TOKENS if self.deaf else FLOOD_TOKENS):
            del self.floods[id]
            self.then("finish", id, number + 1)


def behaviour(starts: Path | None, behave: str) -> str:
    """What this start has to do, by how many there were before."""
    before = 0
    if starts is not None:
        with starts.open("ab") as file:
            before = file.tell()
            file.write(b".")
    each = behave.split(",")
    return each[min(before, len(each) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--starts", type=Path)
    parser.add_argument("--behave", default="ready")
    arguments = parser.parse_args()
    sock = socket.socket(fileno=arguments.fd)
    worker = Worker(sock)
    (config,) = worker.receive(wait=True)
    assert isinstance(config, WorkerConfig)
    worker.send(Loading(progress=0.5))
    match behaviour(arguments.starts, arguments.behave):
        case "exit":
            print("out of memory at \x1b[1m0x1234", file=sys.stderr)
            sys.exit(4)
        case "refuse":
            worker.send(LoadFailed(reason="The file is no model."))
            signal.pause()
        case "silent":
            signal.pause()
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            worker.send(Ready(info=model_info(config)))
            while True:
                signal.pause()
        case "ready":
            worker.send(Ready(info=model_info(config)), Ready(info=model_info(config)))
            worker.run()
        case other:
            raise AssertionError(other)


def model_info(config: WorkerConfig) -> ModelInfo:
    return ModelInfo(
        id=config.model_id,
        description="test worker",
        quantization="none",
        parameters=1,
        size_bytes=1,
        vocab_size=0x11_0000,
        context_length=1024,
        train_context_length=1024,
        has_chat_template=True,
        engine="test",
        device="none",
        layout="unified",
        lanes=config.lanes,
        cache_tokens=1024,
        threads=1,
    )


if __name__ == "__main__":
    main()
