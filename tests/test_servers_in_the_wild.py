"""Servers that exist, by their recorded behaviour: what each ignores, refuses and tells, and what is made of it.

Each row says where its behaviour is written down. A small server on the loopback behaves so.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import context_of
from test_server import FakeClock, Reply, Request, Service
from test_server import service as service

from openbezoar.errors import ModelError
from openbezoar.llm import Completion, Sampling, open_llm
from openbezoar.llm.server import ServerLLM
from openbezoar.llm.settings import SYSTEM
from openbezoar.recipe.blocks import ServerModel
from openbezoar.rows.records import Turn

ANSWER = "The Rhine### and more"
CHOICES = ("A]]", "B]]")
Refusal = Callable[[Request], Reply | None]


def message(text: str = ANSWER, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def refuses(name: str, status: int, body: Any, but: Any = None) -> Refusal:
    """Refuses a setting that is sent, or one that is not ``but``."""
    return lambda request: Reply(status, body) if name in request and request[name] != but else None


def openai(param: str, words: str, status: int = 400) -> Any:
    """OpenAI's form of an error."""
    return {"error": {"message": words, "type": "invalid_request_error", "param": param, "code": "unsupported_value"}}


def unsupported(name: str, but: Any = None) -> Refusal:
    return refuses(name, 400, openai(name, f"Unsupported parameter: '{name}' is not supported with this model."), but)


def tgi(words: str, kind: str = "validation") -> Any:
    return {"error": words if kind != "validation" else f"Input validation error: {words}", "error_type": kind}


def above(name: str, most: float, body: Any, status: int) -> Refusal:
    """Refuses a number, or a list of so many, that is too large."""

    def refuse(request: Request) -> Reply | None:
        value = request.get(name, 0)
        return Reply(status, body) if (len(value) if isinstance(value, list) else value) > most else None

    return refuse


def system(status: int, body: Any) -> Refusal:
    return lambda request: Reply(status, body) if request["messages"][0]["role"] == "system" else None


NEW_NAME = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
FIXED = (
    "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported."
)


@dataclass(frozen=True)
class Wild:
    """A server as it behaves. source: where that is written down. left_out: what its answers were made without.

    refusals: requests that it turned down before the first answer. sends: of a request that is answered.
    tells: the most likeliest tokens that it tells at a place; None: none, whatever is asked.
    """

    source: str
    refuse: tuple[Refusal, ...] = ()
    message: Mapping[str, Any] = field(default_factory=message)
    left_out: tuple[str, ...] = ()
    refusals: int = 0
    sends: Mapping[str, Any] = field(default_factory=dict)
    thoughts: str = ""
    tells: int | None = None
    stop: tuple[str, ...] = ("###",)


THINKING = "Rivers of Europe are asked for."
GEMINI = 'Invalid JSON payload received. Unknown name "{}": Cannot find field.'


def gemini(words: str) -> Any:
    return [{"error": {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}}]


def mistral(name: str) -> Any:
    detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 7}]
    return {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error", "param": None}


WILD: dict[str, Wild] = {
    "Ollama": Wild(
        "docs.ollama.com/api/openai-compatibility: seed, stop, temperature, top_p and max_tokens are taken, others are"
        " ignored, thoughts are in 'reasoning'; log-probabilities since 0.12.11 (ollama/ollama#12899), 20 at most",
        message=message(reasoning=THINKING),
        thoughts=THINKING,
        tells=20,
    ),
    "Ollama before 0.12.11": Wild("ollama/ollama#12899: 'logprobs' was an unknown field, so it was ignored"),
    "TGI": Wild(
        "huggingface/text-generation-inference, router/src/validation.rs: top_p below 1 only, four stop strings,"
        " five of top_logprobs, which it calls top_n_tokens; 422 with error and error_type",
        refuse=(
            above("top_p", 0.99, tgi("`top_p` must be > 0.0 and < 1.0"), 422),
            above("stop", 4, tgi("`stop` supports up to 4 stop sequences. Given: 5"), 422),
            above("top_logprobs", 5, tgi("`top_n_tokens` must be >= 0 and <= 5. Given: 20"), 422),
        ),
        left_out=("top_p",),
        refusals=1,
        tells=5,
        stop=("#1", "#2", "#3", "#4", "###"),  # the fifth is not sent
    ),
    "TGI, a template without a system role": Wild(
        "huggingface/text-generation-inference, router/src/infer/mod.rs: what a template raises is a 422 of the type"
        " template_error; the words are Gemma's template's",
        refuse=(
            system(
                422,
                tgi("Template error: invalid operation: System role not supported (in <string>:1)", "template_error"),
            ),
        ),
        left_out=(SYSTEM,),
        refusals=1,
    ),
    "LM Studio": Wild(
        "lmstudio.ai/docs/developer/openai-compat/chat-completions: logprobs is no payload of it, replies have null;"
        " thoughts in 'reasoning_content' by a setting. lmstudio-ai/lmstudio-bug-tracker#535, #2219,"
        " Mintplex-Labs/anything-llm#2914: an error in a template's words, which are Mistral 7B's",
        refuse=(
            system(
                400,
                {
                    "error": 'Error rendering prompt with jinja template: "Only user and assistant roles are'
                    ' supported!".'
                },
            ),
        ),
        message=message(reasoning_content=THINKING),
        thoughts=THINKING,
        left_out=(SYSTEM,),
        refusals=1,
    ),
    "vLLM started with few log-probabilities": Wild(
        "vllm-project/vllm, vllm/sampling_params.py: --max-logprobs; docs.vllm.ai/en/v0.11.2/features/"
        "reasoning_outputs: thoughts in 'reasoning', before in 'reasoning_content'",
        refuse=(
            above(
                "top_logprobs",
                5,
                openai("logprobs", "Requested sample logprobs of 20, which is greater than max allowed: 5"),
                400,
            ),
        ),
        message=message(reasoning=THINKING),
        thoughts=THINKING,
        tells=5,
    ),
    "OpenAI's reasoning models": Wild(
        "learn.microsoft.com/azure/ai-foundry/openai/how-to/reasoning: no temperature, top_p, logprobs, max_tokens;"
        " community.openai.com/t/1341462: 403 for logprobs",
        refuse=(
            refuses("max_tokens", 400, openai("max_tokens", NEW_NAME)),
            refuses("temperature", 400, openai("temperature", FIXED), but=1),
            unsupported("top_p"),
            unsupported("stop"),
            refuses("logprobs", 403, {"error": {"message": "You are not allowed to request logprobs from this model"}}),
        ),
        left_out=("stop", "temperature", "top_p"),
        refusals=4,
        sends={"max_completion_tokens": 16},
    ),
    "a gateway that knows the newer limit alone": Wild(
        "platform.openai.com/docs/api-reference/chat/create: max_tokens is deprecated in favour of"
        " max_completion_tokens; a server that checks its fields (pydantic's extra_forbidden) names the old one only",
        refuse=(
            refuses(
                "max_tokens",
                422,
                {
                    "detail": [
                        {
                            "type": "extra_forbidden",
                            "loc": ["body", "max_tokens"],
                            "msg": "Extra inputs are not permitted",
                        }
                    ]
                },
            ),
        ),
        refusals=1,
        sends={"max_completion_tokens": 16},
    ),
    "DeepSeek's reasoner": Wild(
        "api-docs.deepseek.com/guides/reasoning_model: temperature and top_p have no effect, logprobs are an error,"
        " thoughts in 'reasoning_content'",
        refuse=(refuses("logprobs", 400, openai("", "deepseek-reasoner does not support the parameter `logprobs`")),),
        message=message(reasoning_content=THINKING),
        thoughts=THINKING,
    ),
    "Grok 4": Wild(
        "BerriAI/litellm#12635: a code in words beside an error that is a text",
        refuse=(
            refuses(
                "stop",
                400,
                {
                    "code": "Client specified an invalid argument",
                    "error": "Argument not supported on this model: stop",
                },
            ),
        ),
        left_out=("stop",),
        refusals=1,
    ),
    "Grok, names in its own case": Wild(
        "neavo/LinguaGacha#771, diegosouzapw/OmniRoute#5273: parameters are named as topLogprobs",
        refuse=(
            refuses(
                "top_logprobs",
                400,
                {"code": "invalid_argument", "error": "Model grok-build does not support parameter topLogprobs."},
            ),
        ),
    ),
    "Mistral": Wild(
        "langchain-ai/langchain-azure#82, Gage-Technologies/mistral-go#2: a message that holds pydantic's list",
        refuse=(refuses("seed", 422, mistral("seed")), refuses("logprobs", 422, mistral("logprobs"))),
        left_out=("seed",),
        refusals=1,
    ),
    "Gemini": Wild(
        "discuss.ai.google.dev/t/95991: a list of one error; no seed, no logprobs",
        refuse=(
            refuses("seed", 400, gemini(GEMINI.format("seed"))),
            refuses("logprobs", 400, gemini("Logprobs is not enabled for models/gemini-2.5-pro")),
        ),
        left_out=("seed",),
        refusals=1,
    ),
    "Gemma behind Gemini's address": Wild(
        "google/adk-python#3900, microsoft/vscode#258088: a system message is called a developer instruction",
        refuse=(system(400, gemini("Developer instruction is not enabled for models/gemma-3-27b-it")),),
        left_out=(SYSTEM,),
        refusals=1,
    ),
    "Claude": Wild(
        "docs.claude.com/en/api/openai-sdk: seed, logprobs and top_logprobs are ignored; newer models take one of"
        " temperature and top_p",
        refuse=(
            lambda request: (
                Reply(
                    400,
                    openai(
                        "",
                        "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
                    ),
                )
                if {"temperature", "top_p"} <= request.keys()
                else None
            ),
        ),
        left_out=("top_p",),
        refusals=1,
    ),
    "Groq": Wild(
        "console.groq.com/docs/openai: logprobs are a 400; console.groq.com/docs/reasoning: thoughts in 'reasoning'",
        refuse=(refuses("logprobs", 400, openai("logprobs", "`logprobs` is not supported with this model")),),
        message=message(reasoning=THINKING),
        thoughts=THINKING,
    ),
    "OpenRouter": Wild(
        "openrouter.ai/docs/api-reference/parameters: what a provider lacks is ignored;"
        " openrouter.ai/docs/use-cases/reasoning-tokens: 'reasoning' and 'reasoning_details'",
        message=message(reasoning=THINKING, reasoning_details=[{"type": "reasoning.text", "text": THINKING}]),
        thoughts=THINKING,
    ),
}
WEIGHED = {"A": 0.6, "B": 0.3, **{f"t{n}": 0.1 / 18 for n in range(18)}}


def behave(wild: Wild) -> Callable[[int, Request], Reply]:
    """The n-th reply of a server of this kind."""

    def reply(n: int, request: Request) -> Reply:
        for refuse in wild.refuse:
            if (refused := refuse(request)) is not None:
                return refused
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": dict(wild.message), "logprobs": None}
        if wild.tells is not None and request.get("logprobs"):
            most = dict(list(WEIGHED.items())[: min(wild.tells, request["top_logprobs"])])
            likeliest = [{"token": token, "logprob": math.log(p)} for token, p in most.items()]
            choice["logprobs"] = {"content": [{**likeliest[0], "top_logprobs": likeliest}]}
            choice["message"] = message("A")
        usage = {"prompt_tokens": 20, "completion_tokens": 12, "total_tokens": 32}
        return Reply(200, {"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})

    return reply


def client(service: Service, said: list[str], lost: list[Any], **settings: Any) -> ServerLLM:
    spec = ServerModel(server=service.url, model="m", **settings)
    return ServerLLM("judge", spec, FakeClock(service.pauses), said.append, lost=lost.append)


def ask(server: Any, n: int, stop: tuple[str, ...] = ("###",), first: int = 0) -> list[Completion]:
    talks = [[Turn("system", "Be brief."), Turn("user", f"Name river {i}.")] for i in range(first, first + n)]
    return list(server.chat(talks, Sampling(16, 0.7, 1.0, stop), list(range(first, first + n))))


@pytest.fixture(params=WILD)
def wild(request: pytest.FixtureRequest) -> Wild:
    return WILD[request.param]


def test_it_is_asked_without_what_it_refuses_which_is_found_and_said_once(wild: Wild, service: Service) -> None:
    said: list[str] = []
    service.script = behave(wild)
    server = client(service, said, [], concurrency=1)
    answers = ask(server, 3, wild.stop)
    server.close()
    here = "stop" in wild.left_out or len(wild.stop) > 4  # it is cut
    assert {answer.text.rstrip() for answer in answers} == {"The Rhine" if here else ANSWER}
    assert {answer.left_out for answer in answers} == {wild.left_out}
    assert {answer.thoughts for answer in answers} == {wild.thoughts}
    assert len(service.requests) == 3 + wild.refusals and service.pauses == []
    assert len(said) == len(wild.left_out) and all(f"it refuses '{name}'" in "\n".join(said) for name in wild.left_out)
    for _, request, _ in service.requests[-3:]:
        assert wild.sends.items() <= request.items() and not set(wild.left_out) & request.keys()
        assert "max_tokens" in request or "max_completion_tokens" in request, "never without a limit"
        wanted = ["user"] if SYSTEM in wild.left_out else ["system", "user"]
        assert [turn["role"] for turn in request["messages"]] == wanted
        assert "Be brief." in request["messages"][0]["content"]


def test_many_at_once_lose_no_answer_pay_none_twice_and_say_it_once(wild: Wild, service: Service) -> None:
    said: list[str] = []
    together, paid, lock = threading.Barrier(4), list[str](), threading.Lock()
    behaves = behave(wild)

    def script(n: int, request: Request) -> Reply:
        if n < 4:
            together.wait(20)  # all of them are sent before the first refusal comes
        reply = behaves(n, request)
        if reply.status == 200:
            with lock:
                paid.append(request["messages"][-1]["content"].rpartition("Name")[2])
        return reply

    service.script = script
    server = client(service, said, [], concurrency=4)
    answers = ask(server, 24, wild.stop)
    server.close()
    assert len(paid) == len(set(paid)) == 24 and {answer.left_out for answer in answers} == {wild.left_out}
    assert len(said) == len(wild.left_out)


def test_by_the_recipe_s_wish_what_it_refuses_is_an_error_and_what_has_another_way_is_none(
    wild: Wild, service: Service
) -> None:
    service.script = behave(wild)
    server = client(service, [], [], concurrency=1, refused_settings="stop")
    try:
        if not wild.left_out:
            assert len(ask(server, 2, wild.stop)) == 2
            return
        for _ in range(2):  # the second time as well
            with pytest.raises(ModelError, match=r"it refuses '.*' with \d+: .*refused_settings: leave_out") as error:
                ask(server, 2, wild.stop)
            assert "\n" not in str(error.value)
    finally:
        server.close()


def test_choices_are_weighed_where_it_tells_its_tokens_and_else_it_is_said_in_one_line(
    wild: Wild, service: Service
) -> None:
    lost: list[Any] = []
    service.script = behave(wild)
    server = client(service, [], lost, concurrency=1)
    talk = [Turn("user", "A or B?")]
    if wild.tells is None:
        with pytest.raises(ModelError, match="tells no log-probabilities of its tokens; use mode: text"):
            server.choice_logprobs([talk], "", CHOICES)
        refused = any(refuse(request) for _, request, _ in service.requests[-1:] for refuse in wild.refuse)
        assert len(lost) == (not refused), "an answer that told nothing is on the bill"
    else:
        (row,) = server.choice_logprobs([talk], "", ("A", "B"))
        assert row == pytest.approx([math.log(0.6), math.log(0.3)]) and lost == []
        assert service.requests[-1][1]["top_logprobs"] == wild.tells
    server.close()


# ------------------------------------------------------------------------- in the steps of a run


def test_what_a_server_refuses_is_met_once_a_run_and_answers_of_the_cache_say_it(
    service: Service, tmp_path: Path
) -> None:
    model = {"server": service.url, "model": "m", "concurrency": 1, "price": {"input": 1, "output": 1}}
    top = {"models": {"judge": model}}
    context = context_of(tmp_path, {"filter": "rows.jsonl", "judge": "judge"}, top=top)
    said: list[str] = []
    context.progress.warn = said.append
    service.script = behave(WILD["OpenAI's reasoning models"])

    def step(n: int, first: int) -> list[Completion]:
        llm = open_llm("judge", context)
        try:
            return ask(llm, n, first=first)
        finally:
            llm.close()

    fresh = step(2, 0)
    assert len(service.requests) == 4 + 2 and len(said) == 3
    step(2, 2)
    assert len(service.requests) == 4 + 2 + 2 and len(said) == 3, "the next step knows it"
    before = dict(context.counts.by_reason)
    assert step(2, 0) == fresh and len(service.requests) == 8
    for name in ("temperature", "top_p", "stop"):
        reason = f"calls of judge without {name}, which it refuses"
        assert (before[reason], context.counts.by_reason[reason]) == (4, 6), "as the report has it"
    service.script = behave(Wild("takes everything"))
    strict = {"models": {"judge": {**model, "refused_settings": "stop"}}}
    context = context_of(tmp_path, {"filter": "rows.jsonl", "judge": "judge"}, top=strict)
    (answer,) = step(1, 0)
    assert len(service.requests) == 9 and answer.left_out == (), "an answer without is none where that is not wanted"


# ------------------------------------------------------------- prompts that are cut without a word


@pytest.mark.parametrize("kept", [4096, 2050], ids=["the window", "half of it"])
def test_a_server_that_cuts_prompts_to_its_window_is_found_by_its_counts(kept: int, service: Service) -> None:
    """Ollama, server/prompt.go and its runners: 'truncating input prompt', limit=4096 or limit=2050."""
    said: list[str] = []

    def script(n: int, request: Request) -> Reply:
        reply = behave(WILD["Ollama"])(n, request)
        words = len(request["messages"][-1]["content"].split())
        reply.body["usage"]["prompt_tokens"] = min(kept, words)
        return reply

    service.script = script
    server = client(service, said, [], concurrency=1)
    talks = [[Turn("user", " ".join(["river"] * words))] for words in (900, 1900, 5000, 5000, 8000, 10_000)]
    answers = server.chat(talks, Sampling(16), [0] * 6)
    server.close()
    assert [len(answer.notes) for answer in answers] == [0, 0, 0, 0, 1, 1]
    assert "cut" in answers[-1].notes[0]
    assert len(said) == 1 and f"it read {kept:,} tokens of prompts of different lengths" in said[0]


def test_prompts_that_happen_to_have_a_window_s_tokens_are_not_called_cut(service: Service) -> None:
    said: list[str] = []

    def script(n: int, request: Request) -> Reply:
        reply = behave(WILD["Ollama"])(n, request)
        reply.body["usage"]["prompt_tokens"] = 2048
        return reply

    service.script = script
    server = client(service, said, [], concurrency=1)
    talks = [[Turn("user", "river " * words)] for words in (2000, 2100, 2200, 2048)]
    assert {answer.notes for answer in server.chat(talks, Sampling(16), [0] * 4)} == {()} and said == []
    server.close()


# ------------------------------------------------------------------------ what is no setting's


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, {"error": {"message": "model 'm' not found", "type": "not_found_error"}}, "404: model 'm' not found"),
        (403, {"error": {"message": "Stop: your region is not supported"}}, "check the key|name the environment"),
        (401, {"error": {"message": "Invalid seed of the key"}}, "401: Invalid seed of the key"),
    ],
    ids=["Ollama, a model that was not pulled", "a country", "a key"],
)
def test_what_is_wrong_for_all_calls_takes_no_setting_away(
    status: int, body: Any, words: str, service: Service
) -> None:
    service.script = lambda n, request: Reply(status, body)
    server = client(service, [], [], concurrency=1)
    with pytest.raises(ModelError, match=words):
        ask(server, 1)
    server.close()
    assert len(service.requests) == 1


def test_tgi_s_overload_is_waited_for(service: Service) -> None:
    """router/src/server.rs: 429 of the type overloaded; 424 of the type generation."""
    overloaded = [Reply(429, tgi("Model is overloaded", "overloaded")), Reply(424, tgi("Request failed", "generation"))]
    service.script = lambda n, request: overloaded[n] if n < 2 else behave(WILD["Ollama"])(n, request)
    server = client(service, [], [], concurrency=1)
    (answer,) = ask(server, 1)
    server.close()
    assert answer.text == ANSWER and len(service.pauses) == 2


def test_every_row_says_where_its_behaviour_is_written_down() -> None:
    assert all(len(wild.source) > 20 and ("/" in wild.source or "#" in wild.source) for wild in WILD.values())
    assert json.dumps(sorted(WILD))
