"""What a server refuses: one call of many, a setting, everything; in the words that servers use,
through a whole filter step.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hostile import Body, Hostile, Outcome
from test_hostile_server import keys, one_line, written
from test_server import Service, ask, echo
from test_server import error as refusal
from test_server import service as service

from openbezoar.engine import execution, graph
from openbezoar.errors import DataError, ModelError
from openbezoar.judging import grading
from openbezoar.llm import Completion, Sampling
from openbezoar.llm.calls import CallStore
from openbezoar.llm.refusals import fault_of, meaning
from openbezoar.llm.settings import folded
from openbezoar.llm.tally import FEW
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import ServerModel
from openbezoar.recipe.file import load
from openbezoar.rows.records import Turn

Judged = Callable[..., Outcome]


def told(message: str, **more: Any) -> Body:
    return {"error": {"message": message, **more}}


WINDOW = (
    "This model's maximum context length is 2048 tokens. However, you requested 4096 tokens (4000 in the messages, 96"
    " in the completion)."
)
TOO_LONG: dict[str, tuple[int, Any]] = {
    "OpenAI": (
        400,
        told(
            f"{WINDOW} Please reduce the length of the messages.",
            type="invalid_request_error",
            code="context_length_exceeded",
        ),
    ),
    "a code alone": (400, told("bad request", code="context_length_exceeded")),
    "vLLM": (400, {"object": "error", "message": WINDOW, "type": "BadRequestError", "param": None, "code": 400}),
    "vLLM, the limit": (400, told(f"'max_tokens' or 'max_completion_tokens' is too large: 160. {WINDOW}", code=400)),
    "vLLM, older": (400, told("max_tokens must be at least 1, got -1952.", code=400)),
    "vLLM, the engine": (
        400,
        told("The decoder prompt (length 5000) is longer than the maximum model length of 4096.", code=400),
    ),
    "llama.cpp": (
        400,
        told(
            "request (4390 tokens) exceeds the available context size (4096 tokens)",
            code=400,
            type="exceed_context_size_error",
        ),
    ),
    "llama.cpp, older": (500, told("Context size has been exceeded.", code=500, type="server_error")),
    "llama.cpp in a good reply": (
        200,
        told("the request exceeds the available context size", code=400, type="exceed_context_size_error"),
    ),
    "llama-cpp-python": (400, told("Requested tokens (2285) exceed context window of 2048")),
    "Ollama": (400, {"error": "the input length exceeds the context length"}),
    "TGI": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 and 160",
            "error_type": "validation",
        },
    ),
    "TGI, the inputs": (
        422,
        {
            "error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
            "error_type": "validation",
        },
    ),
    "SGLang": (
        400,
        {
            "object": "error",
            "message": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
            "code": 400,
        },
    ),
    "LM Studio": (
        400,
        {"error": "Trying to keep the first 5000 tokens when context the overflows. The model is loaded with 4096."},
    ),
    "Anthropic": (400, told("prompt is too long: 210000 tokens > 200000 maximum", type="invalid_request_error")),
    "Gemini": (
        400,
        [told("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", code=400)],
    ),
    "Mistral": (
        400,
        {
            "object": "error",
            "message": (
                "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length"
            ),
        },
    ),
    "a limit a minute that one request exceeds": (
        429,
        told(
            "Request too large for m on tokens per min (TPM): Limit 10000, Requested 15000.", code="rate_limit_exceeded"
        ),
    ),
    "an entity": (413, b"<html><h1>413 Request Entity Too Large</h1></html>"),
    "a gateway": (400, told("Provider returned error", code=400, metadata={"raw": WINDOW})),
}
CONTENT: dict[str, tuple[int, Any]] = {
    "OpenAI": (400, told("Your request was rejected by our safety system.", code="content_policy_violation")),
    "Azure": (
        400,
        told(
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
            code="content_filter",
        ),
    ),
    "usage policy": (
        400,
        told(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt"
        ),
    ),
    "a gateway": (403, told("The model requires moderation and your input was flagged", code=403)),
    "DeepSeek": (400, told("Content Exists Risk", type="invalid_request_error")),
    "Qwen": (400, told("Input data may contain inappropriate content.", code="data_inspection_failed")),
    "in a good reply": (200, told("content filter", code="content_filter")),
}


@pytest.mark.parametrize(("status", "body"), TOO_LONG.values(), ids=TOO_LONG)
def test_servers_own_words_for_a_prompt_over_the_window_are_known(status: int, body: Any) -> None:
    assert meaning(fault_of(status, body if isinstance(body, bytes) else json.dumps(body).encode())) == "too long"


@pytest.mark.parametrize(("status", "body"), CONTENT.values(), ids=CONTENT)
def test_servers_own_words_for_refused_content_are_known(status: int, body: Any) -> None:
    assert meaning(fault_of(status, json.dumps(body).encode())) == "content"


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (400, "'messages' must not be empty", "request"),
        (422, "role must be one of user, assistant", "request"),
        (401, "Incorrect API key; the request exceeds what it is for", "every request"),
        (403, "Your country is not supported", "every request"),
        (404, "The model 'm' does not exist; see our documentation of context length", "every request"),
        (
            429,
            (
                "Rate limit reached: Limit 3 requests per minute. Try again in 20s. You can increase it at"
                " https://x/account/billing"
            ),
            "wait",
        ),
        (429, "Too many requests, the rate limit was exceeded", "wait"),
        (503, "Too many requests under way; capacity exceeded", "wait"),
        (500, "out of memory", "wait"),
        (424, "Request failed during generation", "wait"),
        (529, "Overloaded", "wait"),
        (402, "Payment required", "quota"),
        (429, "You exceeded your current quota, please check your plan and billing details.", "quota"),
        (400, "Your credit balance is too low to access the API", "quota"),
        (200, "something went wrong", "wait"),
    ],
)
def test_other_refusals_are_told_apart(status: int, message: str, expected: str) -> None:
    assert meaning(fault_of(status, json.dumps(told(message)).encode())) == expected


def of_row(number: int, answer: tuple[int, Any]) -> Callable[[Body], tuple[int, Any] | None]:
    return lambda request: answer if f"river {number} " in request["messages"][-1]["content"] else None


# ---------------------------------------------------------------------- one call of many


@pytest.mark.parametrize("case", ["OpenAI", "llama.cpp in a good reply", "TGI", "an entity"])
def test_one_row_over_the_judge_s_window_is_unscored_with_its_reason_and_the_step_goes_on(
    case: str,
    judged: Judged,
    hostile_server: Hostile,
    tmp_path: Path,
) -> None:
    hostile_server.refuses = of_row(3, TOO_LONG[case])
    code, said, manifest = judged(rows=5, retries=2)
    assert code == 0 and len(hostile_server.requests) == 5  # what was refused is not asked again, in words or otherwise
    assert [(row["id"], row["unscored"], row["refused"]) for row in written(tmp_path, "unscored")] == [
        ("r3", "judge_error", "too long")
    ]
    assert manifest["counts"] == {
        "calls of judge without an answer: a prompt over the model's window": 1,
        "unscored_judge_error": 1,
    }
    assert said.count("one call goes without an answer") == 1 and "'a prompt over the model's window'" in said


@pytest.mark.parametrize("case", ["OpenAI", "in a good reply"])
def test_one_row_of_refused_content_is_unscored_with_its_reason(
    case: str, judged: Judged, hostile_server: Hostile, tmp_path: Path
) -> None:
    hostile_server.refuses = of_row(0, CONTENT[case])
    assert judged(rows=3)[0] == 0
    assert [(row["id"], row["refused"]) for row in written(tmp_path, "unscored")] == [("r0", "content")]


def test_one_row_that_is_refused_for_a_reason_of_its_own_is_unscored_and_all_of_them_stop(
    judged: Judged, hostile_server: Hostile, tmp_path: Path
) -> None:
    hostile_server.refuses = of_row(0, (400, told("the widget is not of the right kind")))
    code, _, manifest = judged(rows=4)
    assert code == 0 and manifest["counts"]["calls of judge without an answer: the server refused it"] == 1
    hostile_server.requests.clear()
    hostile_server.refuses = lambda request: (400, told("the widget is not of the right kind"))
    code, said, _ = judged(rows=20, max_new_tokens=170, model={"concurrency": 1})
    assert code == 2 and 3 <= len(hostile_server.requests) <= 5  # another may be sent before the third is heard of
    one_line(said, "it refuses the request with 400: the widget is not of the right kind")


def test_refusals_that_overtake_the_first_answer_stop_nothing(judged: Judged, hostile_server: Hostile) -> None:
    under_way = threading.Event()

    def refuse(request: dict[str, Any]) -> tuple[int, Any] | None:
        if "river 3 " in request["messages"][-1]["content"]:
            under_way.set()
            time.sleep(0.3)
            return None
        under_way.wait(10)  # what is overtaken has been sent
        return 400, told("the widget is not of the right kind")

    hostile_server.refuses = refuse
    code, _, manifest = judged(rows=6, max_refused=1)
    assert (
        code == 0
        and manifest["numbers"]["kept"] == 1
        and manifest["counts"]["calls of judge without an answer: the server refused it"] == 5
    )


def test_one_row_that_never_gets_a_reply_is_unscored_where_others_are_answered(
    judged: Judged, hostile_server: Hostile, tmp_path: Path
) -> None:
    refuses = of_row(2, (500, told("assertion failed in kernel")))
    # so that the others are answered meanwhile
    hostile_server.refuses = lambda request: (answer := refuses(request)) and (time.sleep(0.1) or answer)
    code, said, _ = judged(rows=4)
    assert code == 0 and "no answer after 3 tries, the last one: 500: assertion failed in kernel" in said
    assert [(row["id"], row["refused"]) for row in written(tmp_path, "unscored")] == [("r2", "failed")]


def test_a_refused_call_is_asked_again_by_the_next_try_and_its_answers_are_kept(
    judged: Judged, hostile_server: Hostile, tmp_path: Path
) -> None:
    hostile_server.refuses = of_row(1, TOO_LONG["vLLM"])
    assert judged(rows=4, max_refused=0)[0] == 2
    hostile_server.refuses = lambda request: None  # the server was given a larger window
    before = len(hostile_server.requests)
    code, _, manifest = judged(rows=4, max_refused=0)
    assert code == 0 and manifest["numbers"]["kept"] == 4 and len(hostile_server.requests) - before <= 3


def test_more_refusals_than_the_recipe_allows_stop_the_step_in_one_line(
    judged: Judged, hostile_server: Hostile
) -> None:
    hostile_server.refuses = lambda request: (
        TOO_LONG["vLLM"] if int(re.findall(r"river (\d+)", request["messages"][-1]["content"])[0]) < 20 else None
    )
    code, said, _ = judged(rows=40)
    assert code == 2 and FEW < len(hostile_server.requests) < 40
    one_line(
        said,
        f"{FEW + 1} of ",
        "because of a prompt over the model's window",
        "maximum context length is 2048",
        "steps.kept.max_refused (now 0.1)",
    )
    code, _, manifest = judged(rows=40, max_refused=0.7)
    assert code == 0 and manifest["numbers"]["kept"] == 20 and manifest["counts"]["unscored_judge_error"] == 20


# ------------------------------------------------------------------------------ settings


def only(
    name: str, value: Any, message: str, status: int = 400, **more: Any
) -> Callable[[Body], tuple[int, Any] | None]:
    """Refuses a setting that has another value; ``None``: that is there at all."""
    return lambda request: (status, told(message, **more)) if name in request and request[name] != value else None


FIXED = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."


def test_a_judge_that_takes_temperature_1_only_judges_and_rows_say_how(
    judged: Judged, hostile_server: Hostile, tmp_path: Path
) -> None:
    hostile_server.refuses = only("temperature", 1, FIXED, param="temperature", code="unsupported_value")
    code, said, manifest = judged(rows=6, model={"concurrency": 1})
    assert (
        code == 0
        and len(hostile_server.requests) == 7
        and ["temperature" in r for r in hostile_server.requests] == [True, *[False] * 6]
    )
    assert said.count("it refuses 'temperature' (400: Unsupported value") == 1
    assert all(row["judge_left_out"] == ["temperature"] for row in written(tmp_path))
    assert manifest["counts"] == {"calls of judge without temperature, which it refuses": 6}
    before = len(hostile_server.requests)
    code, _, manifest = judged(rows=6, min_rating=6)  # the answers in the cache say it too
    assert (
        code == 0
        and len(hostile_server.requests) == before
        and manifest["counts"] == {"calls of judge without temperature, which it refuses": 6}
    )


def test_by_the_recipe_s_wish_a_refused_setting_stops_the_step_even_where_answers_without_are_kept(
    judged: Judged, hostile_server: Hostile
) -> None:
    hostile_server.refuses = only("temperature", 1, FIXED, param="temperature")
    assert judged(rows=2)[0] == 0
    code, said, _ = judged(rows=2, model={"refused_settings": "stop"}, min_rating=6)
    assert code == 2
    one_line(said, "it refuses 'temperature' with 400: Unsupported value", "refused_settings: leave_out")


def test_a_judge_s_sampling_is_a_setting_and_part_of_the_key(judged: Judged, hostile_server: Hostile) -> None:
    hostile_server.refuses = only("temperature", 1, FIXED, param="temperature")
    code, said, manifest = judged(rows=2, judge_temperature=1, judge_top_p=0.9)
    assert code == 0 and manifest["counts"] == {} and "refuses" not in said
    assert {(r["temperature"], r["top_p"]) for r in hostile_server.requests} == {(1.0, 0.9)}
    key, hostile_server.refuses = manifest["key"], lambda request: None
    assert judged(rows=2, judge_temperature=1, judge_top_p=0.8)[2]["key"] != key
    assert judged(rows=2)[2]["key"] == judged(rows=2, judge_temperature=0, judge_top_p=1.0)[2]["key"] != key


@pytest.mark.parametrize(
    ("refuses", "without"),
    [
        (only("seed", None, "Extra inputs are not permitted: 'seed'"), "seed"),
        (
            lambda r: (
                (
                    422,
                    {
                        "detail": [
                            {
                                "type": "extra_forbidden",
                                "loc": ["body", "seed"],
                                "msg": "Extra inputs are not permitted",
                            }
                        ]
                    },
                )
                if "seed" in r
                else None
            ),
            "seed",
        ),
        (
            only(
                "top_p", None, "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
            ),
            "top_p",
        ),
        (only("temperature", None, "temperature is deprecated for this model", 500), "temperature"),
        (
            only("temperature", None, "Unsupported parameter: 'temperature' is not supported with this model.", 200),
            "temperature",
        ),
        (
            only("max_tokens", None, "max_tokens is too large: 160. This model supports at most 64 completion tokens."),
            "max_tokens",
        ),
    ],
    ids=["seed", "a form's place", "two that exclude each other", "by a 500", "in a good reply", "the limit"],
)
def test_a_setting_that_a_refusal_names_is_left_out(
    refuses: Any,
    without: str,
    judged: Judged,
    hostile_server: Hostile,
    tmp_path: Path,
) -> None:
    hostile_server.refuses = refuses
    code, _, manifest = judged(rows=3, judge_temperature=0.5)
    assert code == 0 and manifest["counts"] == {f"calls of judge without {without}, which it refuses": 3}
    assert all(row["judge_left_out"] == [without] for row in written(tmp_path))


def test_a_setting_that_was_taken_before_is_not_left_out_for_one_row_s_refusal(
    judged: Judged, hostile_server: Hostile
) -> None:
    hostile_server.refuses = of_row(3, (400, told("the 'temperature' of rivers is not supported")))
    code, _, manifest = judged(rows=6, model={"concurrency": 1})
    assert code == 0 and manifest["counts"]["calls of judge without an answer: the server refused it"] == 1
    assert all("temperature" in request for request in hostile_server.requests)


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "the 'system' role is not allowed here",
    ],
)
def test_a_system_message_goes_into_the_first_user_turn_of_a_model_that_has_no_such_role(
    message: str, service: Service
) -> None:
    service.script = lambda n, request: (
        refusal(400, message) if request["messages"][0]["role"] == "system" else echo(n, request)
    )
    (answer,) = ask(service.client(), 1)
    assert (answer.text, answer.left_out) == ("echo Be kind.\n\nq0", ("system role",))
    assert folded([Turn("system", " "), Turn("user", "q")]) == (Turn("user", "q"),)


def test_an_answer_ends_where_a_stop_string_is_that_the_server_would_not_take(service: Service) -> None:
    service.script = lambda n, request: (
        refusal(400, "'stop': at most 0 sequences", param="stop") if "stop" in request else echo(n, request)
    )
    (answer,) = ask(service.client(), 1, Sampling(16, 0.8, stop=(" q",)))
    assert (answer.text, answer.left_out) == ("echo", ("stop",))


# --------------------------------------------------------------------------- nothing helps


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            429,
            told(
                "You exceeded your current quota, please check your plan and billing details.",
                type="insufficient_quota",
                code="insufficient_quota",
            ),
        ),
        (402, told("Insufficient Balance", code="invalid_request_error")),
        (402, b""),
        (403, told("Your account is not active, please check your billing details", code="billing_not_active")),
        (200, told("This request requires more credits: not enough credits", code=402)),
    ],
)
def test_an_exhausted_quota_stops_at_once_with_its_cause(
    status: int, body: Any, judged: Judged, hostile_server: Hostile
) -> None:
    hostile_server.refuses = lambda request: (status, body)
    code, said, _ = judged(rows=1)
    assert code == 2 and len(hostile_server.requests) == 1
    one_line(said, "there is nothing left to pay with, it says ")


def test_an_error_in_a_good_reply_is_told_in_its_own_words(judged: Judged, hostile_server: Hostile) -> None:
    hostile_server.refuses = lambda request: (200, told("CUDA error: an illegal memory access", code=500))
    code, said, _ = judged(rows=1)
    assert code == 2 and len(hostile_server.requests) == 3
    one_line(said, "no answer after 3 tries; the last one: 500: CUDA error: an illegal memory access")
    hostile_server.refuses = lambda request: (
        200,
        {"choices": [{"error": {"message": "out of memory", "code": 502}, "message": {"content": ""}}]},
    )
    one_line(judged(rows=1)[1], "the last one: 502: out of memory")
    hostile_server.refuses = lambda request: (200, {"error": "model 'm' not found, try pulling it first", "code": 404})
    code, said, _ = judged(rows=1)
    assert code == 2
    one_line(said, "404: model 'm' not found")


def test_a_filter_whose_every_row_is_turned_down_says_so(judged: Judged, hostile_server: Hostile) -> None:
    hostile_server.refuses = lambda request: TOO_LONG["vLLM"]
    code, said, _ = judged(rows=3)
    assert code == 2 and "the judge did not answer 3 of them, most because of a prompt over the model's window" in said


@pytest.mark.parametrize(
    "body",
    [
        b"<script" * 9000,
        b"violat" * 9000,
        b"prompt " * 9000,
        b"[" * 60_000,
        json.dumps({"error": "violat" * 9000}).encode(),
    ],
    ids=range(5),
)
def test_no_words_of_a_refusal_take_long_to_read(body: bytes) -> None:
    begun = time.process_time()
    meaning(fault_of(400, body))
    assert time.process_time() - begun < 1


def test_waiting_is_said_once_with_its_cause_and_length(service: Service) -> None:
    said: list[str] = []
    service.script = lambda n, request: refusal(429, "slow down", {"Retry-After": "17"}) if n < 2 else echo(n, request)
    client = service.client()
    client._say = said.append
    assert len(ask(client, 3)) == 3
    assert len(said) == 1 and re.search(r"waiting 1[78] s to ask again, try 1 of 9: 429: slow down", said[0])
    said.clear()
    service.requests.clear()
    service.script = lambda n, request: refusal(500, "oops") if n < 1 else echo(n, request)
    client = service.client()
    client._say = said.append
    ask(client)
    assert said == []  # a second is not worth a line


def test_a_wait_of_hours_stops_at_once(service: Service) -> None:
    service.script = lambda n, request: refusal(429, "Limit 200 requests per day", {"Retry-After": "40000"})
    with pytest.raises(
        ModelError,
        match=r"it wants to be left alone for 11\.1 h, it says 429: Limit 200 requests per day\. Run again then",
    ):
        ask(service.client())
    assert len(service.requests) == 1 and service.pauses == []


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "1e400", "soon", "", "Wed, 99 Foo 2020", "9" * 400])
def test_no_retry_after_is_a_traceback_or_a_wait_without_end(value: str, service: Service) -> None:
    service.script = lambda n, request: (
        refusal(429, "slow down", {"Retry-After": value}) if n == 0 else echo(n, request)
    )
    assert ask(service.client())[0].text == "echo q0" and 0 <= service.pauses[0] <= 601


# ------------------------------------------------------------------------- who has to cope


class Refused:
    """A model that refuses the first of each batch."""

    name = "judge"

    def chat(
        self, conversations: Sequence[Sequence[Turn]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        return [
            Completion("", "error", 0, 0, refused="too long"),
            *[Completion("Rating: [[7]]\nVerdict: [[A]] yes", "stop", 1, 1)] * (len(seeds) - 1),
        ]

    def choice_logprobs(
        self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]
    ) -> list[list[float]]:
        return [[], *[[-1.0] * len(choices)] * (len(conversations) - 1)]


@pytest.mark.parametrize("mode", ["text", "probability"])
@pytest.mark.parametrize(
    ("verb", "what"), [(grading.rate, "rating"), (grading.compare, "verdict"), (grading.say_yes_or_no, "yes")]
)
def test_a_judge_s_refused_reply_is_unscored_in_every_way_of_asking(verb: Any, what: str, mode: str) -> None:
    talks = [[Turn("user", "a")], [Turn("user", "b")]]
    first, second = verb(Refused(), talks, [1, 2], mode, Sampling(8))
    assert first[what] is None and first["unscored"] == "judge_error"
    assert second["unscored"] != "judge_error"
    if mode == "text":
        assert first["refused"] == "too long"


def test_a_key_s_identity_changes_only_where_answers_without_a_setting_must_not_be_taken() -> None:
    plain = ServerModel(server="http://localhost:1/v1", model="m").identity()
    assert plain == {"server": True, "model": "m", "revision": None, "wrapper": None}
    assert ServerModel(server="http://localhost:1/v1", model="m", refused_settings="stop").identity() != plain


@pytest.mark.parametrize("mode", ["text", "probability"])
def test_a_row_over_a_local_judge_s_window_is_unscored_with_its_reason(
    mode: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(
        {
            "kept": {
                "filter": "long.jsonl",
                "judge": "base",
                "mode": mode,
                "max_new_tokens": 8,
                "min_rating": 1,
                "retries": 0,
                "rules": {"near_duplicates": None, "drop_repetition": 1, "language": "any"},
            }
        }
    )
    rows = [
        {"id": f"r{n}", "instruction": f"Say the number {n}.", "response": "It is a number. " * (300 if n == 1 else 1)}
        for n in range(3)
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with contextlib.suppress(DataError):  # a tiny random judge writes nothing that can be read
        execution.execute(graph.build(load(recipe), recipe, tmp_path / "runs"), PlainProgress(quiet=True))
    unscored = {row["id"]: row for row in written(tmp_path, "unscored")} if mode == "probability" else {}
    if mode == "probability":
        assert unscored.keys() == {"r1"} and unscored["r1"]["unscored"] == "judge_error"
    else:
        (answers,) = [
            a
            for key in keys(tmp_path)
            for a in [CallStore(tmp_path / "runs").find([key])[key]]
            if any(x.refused for x in a)
        ]
        assert [x.refused for x in answers] == ["too long"]
