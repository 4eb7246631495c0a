"""The server client against a real HTTP server on the loopback."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import context_of

from openbezoar.errors import ModelError
from openbezoar.llm import Sampling, open_llm
from openbezoar.llm.endpoints import Clock
from openbezoar.llm.replies import MISSING, UNSEEN
from openbezoar.llm.server import ServerLLM, pause
from openbezoar.llm.settings import wrapped
from openbezoar.recipe.blocks import ServerModel
from openbezoar.rows.records import Turn

Request = dict[str, Any]
Script = Callable[[int, Request], "Reply"]
KEY = "sk-very-secret-0123456789"


class Reply:
    """What the test server sends: a status with JSON or text, or a broken connection."""

    def __init__(
        self, status: int = 200, body: Any = None, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.status, self.body, self.headers, self.cut = status, body, headers or {}, cut


def chat_reply(text: str | None, finish: str = "stop", usage: bool = True) -> Reply:
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
    }
    return Reply(
        200, {**body, "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}} if usage else body
    )


def error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    return Reply(status, {"error": {"message": message, "type": "x", **more}}, headers)


def echo(n: int, request: Request) -> Reply:
    return chat_reply("echo " + request["messages"][-1]["content"])


class FakeClock(Clock):
    """Waits by moving its hands; notes how long."""

    def __init__(self, pauses: list[float]) -> None:
        self.pauses, self.skipped, self.lock = pauses, 0.0, threading.Lock()

    def now(self) -> float:
        return time.monotonic() + self.skipped

    def wait(self, seconds: float, off: threading.Event) -> bool:
        with self.lock:
            self.pauses.append(seconds)
            self.skipped += seconds
        return off.is_set()


class Service:
    """An HTTP server whose n-th request is answered by a script."""

    def __init__(self) -> None:
        self.script: Script = echo
        self.requests: list[tuple[str, Request, dict[str, str]]] = []
        self.pauses: list[float] = []
        self.release = threading.Event()
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with service.lock:
                    number = len(service.requests)
                    service.requests.append((self.path, request, {k.lower(): v for k, v in self.headers.items()}))
                reply = service.script(number, request)
                if reply.cut:
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.close_connection = True
                    return
                data = reply.body.encode() if isinstance(reply.body, str) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", "text/html" if isinstance(reply.body, str) else "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client had given up

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def client(self, **settings: Any) -> ServerLLM:
        return ServerLLM(
            "teacher",
            ServerModel(server=settings.pop("server", self.url), model="m", **settings),
            FakeClock(self.pauses),
        )

    def close(self) -> None:
        self.release.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    service = Service()
    yield service
    service.close()


def ask(server: ServerLLM, n: int = 1, sampling: Sampling | None = None) -> list[Any]:
    return server.chat(
        [[Turn("system", "Be kind."), Turn("user", f"q{i}")] for i in range(n)],
        sampling or Sampling(16, 0.8, 0.9),
        [2**40 + 5 + i for i in range(n)],
    )


def test_answers_come_in_the_order_of_the_prompts_whatever_order_they_arrive_in(service: Service) -> None:
    arrived = threading.Barrier(4)
    turn = threading.Condition()
    finished: list[int] = []

    def script(n: int, request: Request) -> Reply:
        number = int(request["messages"][-1]["content"][1:])
        arrived.wait(10)  # all four are under way at once, then they end backwards
        with turn:
            assert turn.wait_for(lambda: len(finished) == 3 - number, 10)
            finished.append(number)
            turn.notify_all()
        return echo(n, request)

    service.script = script
    assert [c.text for c in ask(service.client(concurrency=4), 4)] == ["echo q0", "echo q1", "echo q2", "echo q3"]
    assert finished == [3, 2, 1, 0]


def test_no_more_requests_are_under_way_than_the_recipe_allows(service: Service) -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def script(n: int, request: Request) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        with lock:
            under_way -= 1
        return echo(n, request)

    service.script = script
    assert len(ask(service.client(concurrency=2), 12)) == 12 and most <= 2


def test_a_request_carries_messages_settings_seed_and_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server = service.client(key="MY_KEY")
    completion = ask(server, 1, Sampling(16, 0.8, 0.9, ("###",)))[0]
    path, request, headers = service.requests[0]
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert request == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q0"}],
        "max_tokens": 16,
        "temperature": 0.8,
        "top_p": 0.9,
        "seed": 5,
        "stop": ["###"],
    }
    assert (completion.text, completion.finish, completion.prompt_tokens, completion.tokens) == (
        "echo q0",
        "stop",
        7,
        3,
    )


@pytest.mark.parametrize(
    "bad",
    [
        error(429, "slow down"),
        error(500, "oops"),
        error(503, "loading the model"),
        Reply(502, "<html>bad gateway</html>"),
        Reply(cut=True),
        Reply(200, "<html>login</html>"),
        Reply(200, {"choices": []}),
        Reply(200, {"detail": "no"}),
    ],
    ids=["429", "500", "503", "502 page", "cut", "page", "no choices", "other JSON"],
)
def test_a_lost_request_is_sent_again(service: Service, bad: Reply) -> None:
    service.script = lambda n, request: bad if n < 2 else echo(n, request)
    assert ask(service.client())[0].text == "echo q0"
    assert len(service.requests) == 3 and len(service.pauses) == 2 and service.requests[0][1] == service.requests[2][1]


def test_a_slow_reply_counts_as_lost_after_the_timeout(service: Service) -> None:
    def script(n: int, request: Request) -> Reply:
        if n == 0:
            service.release.wait(10)
        return echo(n, request)

    service.script = script
    assert ask(service.client(timeout=0.3))[0].text == "echo q0" and len(service.requests) == 2
    service.release.set()


def test_the_server_says_how_long_to_wait(service: Service) -> None:
    service.script = lambda n, request: error(429, "slow down", {"Retry-After": "17"}) if n == 0 else echo(n, request)
    ask(service.client())
    assert 17 <= service.pauses[0] <= 18
    service.requests.clear()
    service.script = lambda n, request: (
        error(429, "slow down", {"Retry-After": "Wed, 01 Jan 2020 00:00:00 GMT"}) if n == 0 else echo(n, request)
    )
    ask(service.client())
    assert 0 <= service.pauses[1] <= 1


def test_pauses_double_up_to_a_limit_and_differ_between_requests() -> None:
    waits = [pause(tries, None, 1) for tries in range(1, 12)]
    assert all(2 ** (n - 1) / 2 <= w <= 2 ** (n - 1) for n, w in enumerate(waits[:6], 1)) and max(waits) <= 60
    assert pause(3, None, 1) == pause(3, None, 1) != pause(3, None, 2)


def test_when_the_tries_are_used_up_one_line_says_so(service: Service) -> None:
    service.script = lambda n, request: error(500, "out of\nmemory")
    with pytest.raises(ModelError, match="no answer after 3 tries; the last one: 500: out of memory") as caught:
        ask(service.client(retries=2))
    assert "\n" not in str(caught.value) and len(service.requests) == 3


def test_an_unreachable_server_is_named_after_a_few_tries(service: Service) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with pytest.raises(ModelError, match=f"model 'teacher' \\(m at {url}\\): no answer after 3 tries") as caught:
        ask(service.client(server=url, retries=8), 5)
    assert "\n" not in str(caught.value)


def test_a_refusal_of_the_request_stops_at_once_and_never_shows_the_key(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    service.script = lambda n, request: error(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(ModelError, match=r"refuses the request with 401: .*check the key in \$MY_KEY") as caught:
        ask(service.client(key="MY_KEY"))
    assert KEY not in str(caught.value) and len(service.requests) == 1
    service.script = lambda n, request: error(404, "no model 'm'")
    with pytest.raises(ModelError, match="404: no model 'm'; check the model's name"):
        ask(service.client())


def test_a_missing_key_is_one_line_and_a_key_in_the_recipe_is_not_repeated(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ModelError, match=r"environment variable \$MY_KEY is not set"):
        service.client(key="MY_KEY")
    with pytest.raises(ModelError, match="is it a name") as caught:
        service.client(key=KEY)
    assert KEY not in str(caught.value)


def test_one_failure_ends_the_other_requests(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbezoar.llm.side_by_side.GRACE", 0.1)

    def script(n: int, request: Request) -> Reply:
        if request["messages"][-1]["content"] == "q0":
            return error(403, "no")
        service.release.wait(10)
        return echo(n, request)

    service.script = script
    with pytest.raises(ModelError, match="403"):
        ask(service.client(concurrency=2), 50)
    service.release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("teacher-"):
            thread.join(10)
    assert len(service.requests) <= 4


def test_only_refused_content_is_an_answer_of_error(service: Service) -> None:
    service.script = lambda n, request: chat_reply("", "content_filter")
    assert ask(service.client())[0].finish == "error"
    service.script = lambda n, request: error(400, "filtered", code="content_filter")
    assert ask(service.client())[0].finish == "error"


@pytest.mark.parametrize(("finish", "expected"), [("stop", "stop"), ("length", "length"), ("eos", "stop")])
def test_finish_is_read_and_missing_text_or_usage_is_no_error(service: Service, finish: str, expected: str) -> None:
    service.script = lambda n, request: chat_reply(None, finish, usage=False)
    completion = ask(service.client())[0]
    assert (completion.text, completion.finish, completion.tokens) == ("", expected, 0)


def test_tokens_that_a_server_does_not_count_are_estimated_by_characters(service: Service) -> None:
    service.script = lambda n, request: chat_reply("An answer of 30 characters, yes", usage=False)
    completion = ask(service.client())[0]
    assert completion.tokens == 11 and completion.prompt_tokens == 4 + 16


def test_a_server_that_knows_only_the_newer_token_limit_is_served(service: Service) -> None:
    def script(n: int, request: Request) -> Reply:
        if "max_tokens" in request:
            return error(400, "'max_tokens' is not supported; use 'max_completion_tokens'", param="max_tokens")
        return echo(n, request)

    service.script = script
    server = service.client()
    assert ask(server)[0].text == "echo q0" and ask(server)[0].text == "echo q0"
    assert [set(r) & {"max_tokens", "max_completion_tokens"} for _, r, _ in service.requests] == [
        {"max_tokens"},
        {"max_completion_tokens"},
        {"max_completion_tokens"},
    ]


def raw_reply(n: int, request: Request) -> Reply:
    body = {
        "id": "1",
        "object": "text_completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "text": " raw", "logprobs": None}],
    }
    return Reply(200, {**body, "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}})


def test_a_wrapper_turns_a_chat_into_a_raw_completion_that_ends_at_the_next_turn(service: Service) -> None:
    service.script = raw_reply
    server = service.client(wrapper="<human>: {prompt}\n<bot>:")
    assert ask(server)[0].text == " raw"
    path, request, _ = service.requests[0]
    assert (
        path == "/v1/completions"
        and request["prompt"] == "<human>: Be kind.\n\nq0\n<bot>:"
        and request["stop"] == ["<human>:"]
    )
    turns = [Turn("user", "a {prompt}"), Turn("assistant", "b"), Turn("user", "c")]
    assert wrapped("<human>: {prompt}\n<bot>:", turns) == "<human>: a {prompt}\n<bot>: b\n<human>: c\n<bot>:"
    with pytest.raises(ModelError, match=r"no \{prompt\}"):
        service.client(wrapper="<human>:")


def test_complete_sends_the_text_as_it_stands(service: Service) -> None:
    service.script = raw_reply
    assert [c.tokens for c in service.client().complete(["Once", "Twice"], Sampling(8), [1, 2])] == [1, 1]
    assert sorted(r["prompt"] for _, r, _ in service.requests) == ["Once", "Twice"]
    assert all(r["temperature"] == 0 and "top_p" not in r for _, r, _ in service.requests)


# ------------------------------------------------------------------------- log-probabilities


def tokens_reply(tokens: list[tuple[str, dict[str, float]]], raw: bool = False) -> Reply:
    """A reply that tells of each token its likeliest ones, given as probabilities; the first of them was written."""
    text = "".join(token for token, _ in tokens)
    logs = [{t: math.log(p) for t, p in likeliest.items()} for _, likeliest in tokens]
    if raw:
        told = {
            "tokens": [t for t, _ in tokens],
            "token_logprobs": [top[t] for (t, _), top in zip(tokens, logs, strict=True)],
            "top_logprobs": logs,
        }
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "text": text, "logprobs": told}
    else:
        content = [
            {
                "token": t,
                "logprob": top[t],
                "bytes": None,
                "top_logprobs": [{"token": k, "logprob": v, "bytes": None} for k, v in top.items()],
            }
            for (t, _), top in zip(tokens, logs, strict=True)
        ]
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
            "logprobs": {"content": content},
        }
    body = {
        "id": "1",
        "object": "text_completion" if raw else "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
    }
    return Reply(200, {**body, "usage": {"prompt_tokens": 7, "completion_tokens": len(tokens), "total_tokens": 0}})


PREFIX, CHOICES = "Rating: [[", tuple(f"{n}]]" for n in range(1, 11))
SEVEN = ("7", {"7": 0.5, "8": 0.3, "1": 0.1, "10": 0.05, "x": 0.05})


def weights(service: Service, tokens: list[tuple[str, dict[str, float]]], **settings: Any) -> dict[int, float]:
    service.script = lambda n, request: tokens_reply(tokens, raw="wrapper" in settings)
    (row,) = service.client(**settings).choice_logprobs([[Turn("user", "q")]], PREFIX, CHOICES)
    return {n: round(math.exp(p), 4) for n, p in enumerate(row, 1) if math.isfinite(p)}


@pytest.mark.parametrize(
    "before",
    [["Rating", ":", " [["], ["Sure. ", "Rating:", " ", "[["], [" [["], ["[["], []],
    ids=["whole", "preamble", "end of it", "brackets", "none of it"],
)
def test_a_rating_is_weighed_where_the_asked_for_beginning_ends(service: Service, before: list[str]) -> None:
    found = weights(service, [*((t, {t: 1.0}) for t in before), SEVEN, ("]]", {"]]": 1.0})])
    assert found == {7: 0.5, 8: 0.3, 1: 0.1, 10: 0.05}
    request = service.requests[0][1]
    assert request["logprobs"] is True and request["top_logprobs"] == 20 and request["temperature"] == 0


def test_a_token_that_the_beginning_shares_and_a_ten_of_two_tokens_are_understood(service: Service) -> None:
    shared = ("[[7", {"[[7": 0.6, "[[9": 0.3, "[[": 0.1})
    assert weights(service, [("Rating", {"Rating": 1.0}), (": ", {": ": 1.0}), shared]) == {7: 0.6, 9: 0.3}
    ten = [("1", {"1": 0.8, "9": 0.2}), ("0", {"0": 0.75, "]]": 0.25})]
    assert weights(service, [("Rating: [[", {"Rating: [[": 1.0}), *ten]) == {1: 0.2, 9: 0.2, 10: 0.6}


def test_a_wrapped_server_is_made_to_begin_its_answer(service: Service) -> None:
    assert weights(service, [SEVEN], wrapper="<human>: {prompt}\n<bot>:") == {7: 0.5, 8: 0.3, 1: 0.1, 10: 0.05}
    path, request, _ = service.requests[0]
    assert (
        path == "/v1/completions" and request["prompt"] == "<human>: q\n<bot>: Rating: [[" and request["logprobs"] == 20
    )


@pytest.mark.parametrize(
    ("tokens", "missing", "unseen"),
    [
        ([SEVEN], 1, 0),
        ([("7", {"7": 0.5, "8": 0.3, "1": 0.1})], 1, 1),
        ([("7", {str(n): 0.05 for n in (7, *range(1, 7), 8, 9, 10)})], 0, 0),
        ([("1", {"1": 0.8, "9": 0.2}), ("0", {"0": 0.75, "]]": 0.2})], 1, 1),
        ([("x", {"x": 0.4, "y": 0.2})], 0, 0),
    ],
    ids=["some", "some, and they may matter", "none", "of the second token", "all, which is unscored"],
)
def test_what_is_missing_from_the_likeliest_tokens_is_counted_fresh_and_from_the_cache(
    tokens: list[tuple[str, dict[str, float]]], missing: int, unseen: int, service: Service, tmp_path: Path
) -> None:
    service.script = lambda n, request: tokens_reply(tokens)
    models = {"judge": {"server": service.url, "model": "m"}}
    for _ in range(2):
        context = context_of(tmp_path, {"filter": "rows.jsonl", "judge": "judge"}, top={"models": models})
        llm = open_llm("judge", context)
        (row,) = llm.choice_logprobs([[Turn("user", "q")]], PREFIX, CHOICES)
        llm.close()
        counts = context.counts.by_reason
        assert counts.get(f"replies of judge: {MISSING}", 0) == missing and len(row) == 10
        assert counts.get(f"replies of judge: {UNSEEN}", 0) == unseen
    assert len(service.requests) == 1


def test_a_server_that_tells_fewer_likeliest_tokens_is_asked_for_fewer(service: Service) -> None:
    def script(n: int, request: Request) -> Reply:
        return error(400, "top_logprobs must be at most 5") if request["top_logprobs"] > 5 else tokens_reply([SEVEN])

    service.script = script
    server = service.client()
    assert server.choice_logprobs([[Turn("user", "q")]] * 2, "", ["7"])[1][0] == pytest.approx(math.log(0.5))


@pytest.mark.parametrize(
    "bad", [chat_reply("Rating: [[7]]"), error(400, "logprobs are not supported")], ids=["silent", "refused"]
)
def test_a_server_without_log_probabilities_is_named(service: Service, bad: Reply) -> None:
    service.script = lambda n, request: bad
    with pytest.raises(ModelError, match="tells no log-probabilities of its tokens; use mode: text, or a local model"):
        service.client().choice_logprobs([[Turn("user", "q")]], PREFIX, CHOICES)


def test_an_answer_s_tokens_come_with_their_log_probabilities_where_they_are_asked_for(service: Service) -> None:
    service.script = lambda n, request: (
        tokens_reply([("a", {"a": 0.5}), ("b", {"b": 0.25})]) if request.get("logprobs") else echo(n, request)
    )
    server = service.client()
    assert ask(server, 1, Sampling(8, logprobs=True))[0].logprobs == pytest.approx((math.log(0.5), math.log(0.25)))
    assert ask(server, 1, Sampling(8))[0].logprobs is None


# ------------------------------------------------------------------------- several addresses


@pytest.fixture
def second() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def test_several_servers_share_the_work(service: Service, second: Service) -> None:
    def script(n: int, request: Request) -> Reply:
        time.sleep(0.005)
        return echo(n, request)

    service.script = second.script = script
    answers = ask(service.client(server=[service.url, second.url], concurrency=2), 24)
    assert [c.text for c in answers] == [f"echo q{n}" for n in range(24)]
    assert len(service.requests) + len(second.requests) == 24 and min(len(service.requests), len(second.requests)) >= 6


def test_a_failing_server_is_left_alone_while_another_one_answers(service: Service, second: Service) -> None:
    service.script = lambda n, request: error(500, "broken")
    assert [c.text for c in ask(service.client(server=[service.url, second.url], retries=4), 40)] == [
        f"echo q{n}" for n in range(40)
    ]
    assert len(second.requests) == 40 and len(service.requests) < 20


def test_when_every_server_is_away_all_are_named(service: Service) -> None:
    with pytest.raises(
        ModelError, match=r"\(m at http://127.0.0.1:9/v1, http://127.0.0.1:9/v2\): no answer after \d tries"
    ):
        ask(service.client(server=["http://127.0.0.1:9/v1/", "http://127.0.0.1:9/v2"]))


def test_no_prompts_make_no_requests(service: Service) -> None:
    assert service.client().chat([], Sampling(8), []) == [] and service.requests == []
