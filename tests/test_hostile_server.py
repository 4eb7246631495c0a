"""A filter step whose judge is a hostile server, through the command line: whatever comes, exit
code 0 or 2, one line, nothing lost, everything counted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
from hostile import GOOD, Hostile, Outcome

from openbezoar.errors import ModelError
from openbezoar.llm import Sampling
from openbezoar.llm.calls import CallStore
from openbezoar.llm.server import ServerLLM
from openbezoar.recipe.blocks import ServerModel
from openbezoar.rows.records import Turn

ASKED_AGAIN = "replies of judge that are not the API's, asked again"


def written(tmp_path: Path, name: str = "rows") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / f"runs/t/kept/{name}.jsonl").read_text().splitlines()]


def one_line(said: str, *words: str) -> None:
    """The last line is the error, and there is no traceback."""
    last = said.strip().splitlines()[-1]
    assert last.startswith("openbezoar: step kept: model 'judge'") and "Traceback" not in said and len(last) < 900
    assert all(word in last for word in words), last


# ----------------------------------------------------------------------------- malformed


@pytest.mark.parametrize("fault", hostile.MALFORMED)
def test_a_malformed_reply_is_counted_and_asked_again_and_if_it_stays_so_one_line(
    fault: str, judged: Callable[..., Outcome], hostile_server: Hostile
) -> None:
    hostile_server.body = hostile.MALFORMED[fault]
    hostile_server.headers = {"Content-Encoding": hostile.ENCODED[fault]} if fault in hostile.ENCODED else {}
    hostile_server.strikes = lambda number, prompt: number == 0
    code, _, manifest = judged(rows=1)
    assert code == 0 and manifest["counts"] == {ASKED_AGAIN: 1} and manifest["numbers"]["kept"] == 1
    hostile_server.strikes = lambda number, prompt: True
    client = ServerLLM("judge", ServerModel(server=hostile_server.url, model="m", retries=1))
    with pytest.raises(ModelError, match="no answer after 2 tries; the last one: ") as caught:
        client.chat([[Turn("user", "q")]], Sampling(160), [1])
    client.close()
    assert len(str(caught.value)) < 900 and "\n" not in str(caught.value) and len(hostile_server.requests) == 4


def test_malformed_replies_to_the_end_stop_the_command_with_one_line_and_keep_nothing(
    judged: Callable[..., Outcome], hostile_server: Hostile, tmp_path: Path
) -> None:
    hostile_server.body, hostile_server.strikes = hostile.MALFORMED["choice empty"], lambda number, prompt: True
    code, said, _ = judged(rows=1)
    assert code == 2 and len(hostile_server.requests) == 3
    one_line(said, "no answer after 3 tries; the last one: choices.0: neither a message nor a text")
    store = CallStore(tmp_path / "runs")
    (spent,) = store.accounts().values()
    assert store.size() == [] and spent.calls == 0 and spent.unanswered == 3  # they may be on the bill


@pytest.mark.parametrize("fault", hostile.STREAMS)
def test_a_reply_that_does_not_end_or_is_cut_holds_nobody_up(
    fault: str, judged: Callable[..., Outcome], hostile_server: Hostile
) -> None:
    hostile_server.stream, hostile_server.strikes = hostile.STREAMS[fault], lambda number, prompt: number == 0
    code, _, manifest = judged(rows=1, model={"timeout": 0.3})
    assert code == 0 and manifest["numbers"]["kept"] == 1 and len(hostile_server.requests) == 2


def test_a_row_whose_reply_stays_malformed_is_unscored_where_others_are_answered(
    judged: Callable[..., Outcome], hostile_server: Hostile, tmp_path: Path
) -> None:
    # so that the others are answered meanwhile
    hostile_server.body = lambda text: [time.sleep(0.1), hostile.MALFORMED["cut JSON"](text)][1]
    hostile_server.strikes = lambda number, prompt: "river 1" in prompt
    code, said, manifest = judged(rows=5)
    assert code == 0 and "one call goes without an answer, counted under 'no reply to it could be read'" in said
    assert [(row["id"], row["unscored"], row["refused"]) for row in written(tmp_path, "unscored")] == [
        ("r1", "judge_error", "malformed")
    ]
    assert (
        manifest["numbers"]["kept"] == 4
        and manifest["counts"]["calls of judge without an answer: no reply to it could be read"] == 1
    )


# ---------------------------------------------------------------------------- put right


@pytest.mark.parametrize("fault", hostile.PUT_RIGHT)
def test_a_text_that_came_is_used_and_what_is_wrong_beside_it_put_right_and_counted(
    fault: str, judged: Callable[..., Outcome], hostile_server: Hostile, tmp_path: Path
) -> None:
    hostile_server.body, hostile_server.strikes = hostile.PUT_RIGHT[fault], lambda number, prompt: True
    code, _, manifest = judged(rows=2)
    (note,) = manifest["counts"]
    assert (
        code == 0
        and manifest["numbers"]["kept"] == 2
        and manifest["counts"][note] == 2
        and len(hostile_server.requests) == 2
    )
    assert note == "replies of judge: " + (
        "half characters replaced"
        if fault == "half a character"
        else "tokens that the server cannot have counted right, estimated"
    )
    (spent,) = CallStore(tmp_path / "runs").accounts().values()
    assert 2 * 30 < spent.prompt_tokens < 2000 and 2 * 10 < spent.tokens < 200
    for row in written(tmp_path):
        row["reason"].encode()


@pytest.mark.parametrize("fault", hostile.AS_GOOD)
def test_other_forms_of_a_good_reply_are_read(
    fault: str, judged: Callable[..., Outcome], hostile_server: Hostile, tmp_path: Path
) -> None:
    hostile_server.body, hostile_server.strikes = hostile.AS_GOOD[fault], lambda number, prompt: True
    code, _, manifest = judged(rows=1)
    thoughts = {"judge: thoughts left out": 1} if "ing" in fault else {}
    assert code == 0 and manifest["counts"] == thoughts and written(tmp_path)[0]["rating"] == 8
    ((answer,),) = CallStore(tmp_path / "runs").find(keys(tmp_path)).values()
    assert answer.text == GOOD and answer.thoughts == ("Rating: 1?" if "ing" in fault else "")


def keys(tmp_path: Path) -> list[str]:
    import sqlite3

    with sqlite3.connect(tmp_path / "runs/.calls.sqlite") as db:
        return [key for (key,) in db.execute("SELECT key FROM calls")]


def test_counts_that_lie_defeat_no_budget(judged: Callable[..., Outcome], hostile_server: Hostile) -> None:
    hostile_server.body, hostile_server.strikes = hostile.PUT_RIGHT["negative counts"], lambda number, prompt: True
    code, said, _ = judged(rows=40, top={"budget": {"tokens": 1500}}, model={"concurrency": 1})
    assert code == 2 and "the budget of 1,500 tokens is used up" in said and len(hostile_server.requests) < 12


# --------------------------------------------------------------------- log-probabilities

TEN = 10**400
LOGPROBS: dict[str, dict[str, Any]] = {
    "null": {"logprob": None},
    "a text": {"logprob": "-0.1"},
    "NaN": {"logprob": math.nan},
    "above certainty": {"logprob": 3.0},
    "without end": {"logprob": math.inf},
    "400 digits": {"logprob": -TEN},
    "token a number": {"token": 7},
    "likeliest a number": {"top_logprobs": 3},
    "likeliest texts": {"top_logprobs": ["7"]},
    "a likely one above certainty": {"top_logprobs": [{"token": "8", "logprob": 1e9}]},
    "a likely one NaN": {"top_logprobs": [{"token": "8", "logprob": math.nan}]},
}


@pytest.mark.parametrize("fault", LOGPROBS)
def test_log_probabilities_that_are_none_are_malformed(
    fault: str, judged: Callable[..., Outcome], hostile_server: Hostile
) -> None:
    hostile_server.strikes = lambda number, prompt: number == 0
    hostile_server.body = lambda text: hostile.logprobs(text, **LOGPROBS[fault])
    hostile_server.say = lambda prompt: "7"
    good = hostile.logprobs("7", top_logprobs=[{"token": "7", "logprob": -0.1}, {"token": "9", "logprob": None}])
    hostile_server.refuses = lambda request: (200, good) if len(hostile_server.requests) > 1 else None
    code, _, manifest = judged(rows=1, mode="probability")
    assert code == 0 and manifest["numbers"]["kept"] == 1 and manifest["counts"][ASKED_AGAIN] == 1
    # The good reply tells two tokens of nine choices, which is counted beside it.
    assert all("choices" in reason for reason in manifest["counts"] if reason != ASKED_AGAIN)


def test_thousands_of_empty_tokens_are_weighed_too(judged: Callable[..., Outcome], hostile_server: Hostile) -> None:
    empty = {"token": "", "logprob": 0.0, "top_logprobs": []}
    seven = {"token": "7", "logprob": -0.1, "top_logprobs": [{"token": "7", "logprob": -0.1}]}
    hostile_server.strikes = lambda number, prompt: True
    hostile_server.body = lambda text: hostile.reply("7", logprobs={"content": [empty] * 5000 + [seven]})
    assert judged(rows=1, mode="probability")[0] == 0


# ----------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hidden@HOST/v1",
        "http://me:hid/den@HOST/v1",
        "http://me:1hidden/x@HOST/v1",
        "http://me:hid@den@HOST/v1",
        "http://me:hid?den@HOST/v1",
        "http://hidden@HOST/v1",
        "http://HOST/v1?key=hidden",
        "http://HOST/v1#hidden",
        "http://HOST/v1 hidden",
        "http://HOST\\hidden",
        "http://HOST/v1\nhidden",
        "http://HOST:hidden/v1",
        "http://me%3Ahidden%40HOST/v1",
        "http:///hidden",
        "ftp://HOST/hidden",
    ],
)
def test_an_address_with_a_user_a_query_or_no_host_is_refused_and_not_shown(
    address: str, judged: Callable[..., Outcome], hostile_server: Hostile
) -> None:
    host = hostile_server.url.removeprefix("http://").removesuffix("/v1")
    code, said, _ = judged(model={"server": address.replace("HOST", host)})
    assert (
        code == 2
        and "models.judge.server: " in said
        and "hid" not in said
        and "den" not in said
        and hostile_server.requests == []
    )
    code, said, _ = judged(model={"server": [hostile_server.url, address.replace("HOST", host)]})
    assert code == 2 and "hid" not in said and "den" not in said and hostile_server.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_prompt_and_no_key_go_where_a_redirect_leads(
    status: int, judged: Callable[..., Outcome], hostile_server: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-0123456789")
    other = Hostile(lambda prompt: GOOD)
    try:
        hostile_server.status, hostile_server.headers = (
            status,
            {"Location": f"{other.url}/secret-path?token=sk-very-secret-0123456789"},
        )
        hostile_server.body, hostile_server.strikes = lambda text: b"", lambda number, prompt: True
        code, said, _ = judged(model={"key": "MY_KEY"})
        assert code == 2 and other.requests == [] and "secret" not in said
        one_line(said, f"it redirects to {other.url.removesuffix('/v1')}, where nothing is sent")
    finally:
        other.close()


def test_a_redirect_within_the_same_origin_is_followed(judged: Callable[..., Outcome], hostile_server: Hostile) -> None:
    hostile_server.status, hostile_server.headers = 307, {"Location": "/v1/chat/completions/"}
    hostile_server.body, hostile_server.strikes = lambda text: b"", lambda number, prompt: number == 0
    assert judged(rows=1)[0] == 0 and len(hostile_server.requests) == 2
    hostile_server.strikes = lambda number, prompt: True
    code, said, _ = judged(rows=2)
    assert code == 2 and "more than 2 redirects" in said


@pytest.mark.parametrize("form", ["{key}", "Bearer {key}", "'{head}' is unknown", "key={tail}&x", "{key}{key}"])
def test_no_part_of_a_key_is_shown(
    form: str, judged: Callable[..., Outcome], hostile_server: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", key)
    text = form.format(key=key, head=key[:18], tail=key[6:])
    hostile_server.status, hostile_server.body = 401, lambda _: {"error": {"message": f"Incorrect API key: {text}"}}
    hostile_server.strikes = lambda number, prompt: True
    code, said, _ = judged(model={"key": "MY_KEY"})
    assert code == 2 and "refuses the request with 401" in said and "secret" not in said and "0123456" not in said
    assert hostile_server.seen[0]["authorization"] == f"Bearer {key}"


@pytest.mark.parametrize("key", ["two words", "ключ", "line\nbreak", "tab\tbed", "\x00"])
def test_a_key_that_no_header_can_hold_is_one_line(
    key: str, judged: Callable[..., Outcome], hostile_server: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\x00" not in key:
        monkeypatch.setenv("MY_KEY", key)
    code, said, _ = judged(model={"key": "MY_KEY"})
    assert code == 2 and "$MY_KEY" in said and key not in said and hostile_server.requests == []
