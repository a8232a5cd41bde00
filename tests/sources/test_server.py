"""A teacher behind a server: a real one on loopback that serves a small model and can fail."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from abkd.data import Collator, prepare_dataset
from abkd.errors import ServerError
from abkd.generation import Sampling, write_completions
from abkd.sources import Server, TeacherSamples, TeacherWriter, ensure_teacher_text, write_with
from training_parts import llama, rows, tokenizer

ROWS = rows(10)  # ten different prompts
Fault = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """``/v1/models`` and ``/v1/completions``; the faults of its server come first, one per request."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self.answer(404, {"error": "no such path"})
        return self.answer(200, {"data": [{"id": name} for name in self.server.names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            fault = next(self.server.faults, None)
        if fault is not None:
            return fault(self)
        assert body["model"] in self.server.names
        return self.answer(200, {"choices": [self.complete(body)]})

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(body["temperature"], body["top_p"], body.get("top_k", 0))
        ids = tokenizer()(body["prompt"])["input_ids"]
        with self.server.lock:
            (written,) = write_completions(
                self.server.model,
                tokenizer(),
                [ids],
                sampling,
                max_new_tokens=body["max_tokens"],
                seed=body["seed"],
            )
        text = tokenizer().decode(written.ids, skip_special_tokens=True)
        return {"index": 0, "text": text, "finish_reason": "stop" if written.finished else "length"}

    def answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """No log."""


def says(status: int, body: Any) -> Fault:
    return lambda handler: handler.answer(status, body)


def hangs_up(handler: Handler) -> None:
    handler.close_connection = True


def sleeps(handler: Handler) -> None:
    time.sleep(0.6)
    handler.close_connection = True


NONSENSE = {
    "not JSON": says(200, b"<html>hello</html>"),
    "no choices": says(200, {"choices": []}),
    "no mapping": says(200, ["hello"]),
    "no text": says(200, {"choices": [{"text": None, "finish_reason": "stop"}]}),
    "half a character": says(200, {"choices": [{"text": "a\ud800", "finish_reason": "stop"}]}),
    "no reason": says(200, {"choices": [{"text": "hello", "finish_reason": None}]}),
}
FAULTS = {
    "hangs up": hangs_up,
    "is slow": sleeps,
    "breaks": says(500, {"error": "out of memory"}),
    "is busy": says(429, b"later"),
    **NONSENSE,
}


@pytest.fixture(scope="module")
def model() -> Any:
    """A teacher that has memorised the rows, so that its text is what a tokenizer produces."""
    batch = Collator(tokenizer().pad_token_id)(list(prepare_dataset(ROWS, tokenizer(), max_length=64)))["batch"]
    model = llama(3, width=48, sharpness=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        logits = model(**batch.student.inputs).logits.flatten(0, 1)[batch.student.rows]
        torch.nn.functional.cross_entropy(logits, batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def server(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.model, server.names, server.faults = model, ["teacher"], iter(())
    server.asked, server.lock = [], threading.RLock()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def author(write: Any, *, limit: int = 16) -> TeacherWriter:
    known = {"teacher": "one", "tokenizer": "two"}
    return TeacherWriter(known, tokenizer(), 64, limit, write, server=isinstance(write, Server))


def client(server: Any, **options: Any) -> Server:
    return Server(
        **{"url": server.url, "name": "teacher", "tokenizer": tokenizer(), "timeout": 30, "pause": 0.01, **options}
    )


def written(source: TeacherSamples, by: TeacherWriter) -> list[dict[str, Any]]:
    ensure_teacher_text(source, prepare_dataset(ROWS, tokenizer(), max_length=64), by)
    return [json.loads(line) for line in Path(str(source.file)).read_bytes().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> TeacherSamples:
    return TeacherSamples(temperature=0, file=str(tmp_path / "served.jsonl"))


@pytest.mark.parametrize("limit", [16, 2], ids=["to the end", "clipped"])
def test_a_server_writes_what_the_model_writes_here(
    server: Any, model: Any, source: TeacherSamples, tmp_path: Path, limit: int
) -> None:
    here = TeacherSamples(temperature=0, file=str(tmp_path / "here.jsonl"))
    expected = written(here, author(write_with(lambda: model, tokenizer(), batch_size=4), limit=limit))
    assert written(source, author(client(server), limit=limit)) == expected
    assert [row["completion"] for row in expected] == [row["completion"] for row in ROWS] or limit == 2
    assert {row["finished"] for row in expected} == {limit == 16} or limit == 2
    assert {body["max_tokens"] for body in server.asked} == {limit}


def test_settings_reach_the_server(server: Any, tmp_path: Path) -> None:
    source = TeacherSamples(temperature=0.7, top_p=0.9, top_k=40, file=str(tmp_path / "drawn.jsonl"))
    first = written(source, author(client(server, url=f"{server.url}/v1/")))
    body = server.asked[0]
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.9, 40)
    assert (
        len({body["seed"] for body in server.asked}) == 10
    )  # otherwise one random number would be used for all prompts
    Path(str(source.file)).unlink()
    assert written(source, author(client(server))) == first
    greedy = TeacherSamples(temperature=0, file=str(tmp_path / "greedy.jsonl"))
    written(greedy, author(client(server)))
    assert "top_k" not in server.asked[-1]  # which not every server supports


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_outlived(server: Any, source: TeacherSamples, fault: str) -> None:
    server.faults = iter([FAULTS[fault]] * 2)
    found = written(source, author(client(server, at_once=1, timeout=0.3 if fault == "is slow" else 30)))
    assert [row["completion"] for row in found] == [row["completion"] for row in ROWS]
    assert len(server.asked) == 12


def test_a_server_that_starts_late_is_waited_for(server: Any, source: TeacherSamples, monkeypatch: Any) -> None:
    real, calls = Handler.do_GET, []

    def loading(handler: Handler) -> None:
        calls.append(1)
        return handler.answer(503, b"loading") if len(calls) < 3 else real(handler)

    monkeypatch.setattr(Handler, "do_GET", loading)
    assert len(written(source, author(client(server)))) == 10
    assert len(calls) == 3


@pytest.mark.parametrize("fault", ["hangs up", "breaks", "not JSON"])
def test_a_server_that_is_given_up_leaves_what_it_wrote(
    server: Any, source: TeacherSamples, tmp_path: Path, fault: str
) -> None:
    server.faults = iter([None] * 4 + [FAULTS[fault]] * 1000)
    with pytest.raises(ServerError, match=r"no answer in 3 attempts: .*run the same command") as error:
        written(source, author(client(server, at_once=1, tries=3)))
    assert error.value.exit_code == 5
    part = tmp_path / "served.jsonl.part-0"
    assert len(part.read_bytes().splitlines()) == 4
    assert len(server.asked) == 4 + 3  # no request after the client gave up
    server.faults, server.asked = iter(()), []
    found = written(source, author(client(server)))
    assert len(server.asked) == 6
    assert [row["completion"] for row in found] == [row["completion"] for row in ROWS]


def test_answers_that_are_under_way_are_kept(server: Any, source: TeacherSamples, tmp_path: Path) -> None:
    """One of four concurrent requests fails permanently while the others still arrive."""
    barrier = threading.Barrier(4)

    def waits(handler: Handler) -> None:
        barrier.wait(20)
        time.sleep(0.2)
        handler.answer(200, {"choices": [{"text": "a list", "finish_reason": "stop"}]})

    def refuses(handler: Handler) -> None:
        barrier.wait(20)
        handler.answer(400, {"error": "this prompt is too long"})

    server.faults = iter([waits, refuses, waits, waits])
    with pytest.raises(ServerError, match=r"rejects completions: status 400.*this prompt is too long"):
        written(source, author(client(server, at_once=4)))
    assert len((tmp_path / "served.jsonl.part-0").read_bytes().splitlines()) >= 3


def test_nobody_is_there(source: TeacherSamples, server: Any) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(ServerError, match="no answer in 2 attempts: ConnectionError"):
        written(source, author(client(server, tries=2)))
    with pytest.raises(ServerError, match="teacher_model_server_url: cannot send a request to vllm"):
        written(source, author(client(server, url="vllm")))


def test_the_name_of_the_model(server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def ask(name: str) -> str:
        source = TeacherSamples(temperature=0, file=str(tmp_path / f"{len(server.asked)}.jsonl"))
        written(source, author(client(server, name=name)))
        return server.asked[-1]["model"]

    assert ask("./models/of/mine") == "teacher"  # a single model is used under any name
    server.names = ["other", "teacher"]
    assert ask("teacher") == "teacher"
    with pytest.raises(ServerError, match="has the models other, teacher, but none is called 'mine'"):
        ask("mine")
    monkeypatch.setattr(Handler, "do_GET", says(404, b""))
    assert ask("teacher") == "teacher"  # without a list of models, the given name is used
