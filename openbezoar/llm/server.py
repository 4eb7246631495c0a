"""A model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, transformers serve, or a hosted one.

Sends prompts to ``spec.servers`` with the key in the environment variable ``spec.key``
names; writes nothing. Requests run side by side, lost ones are sent again (to another
address if there is one), and answers come back in the order of the prompts. How many are
under way at which address is decided in ``endpoints.py``.
"""

from __future__ import annotations

import math
import os
import random
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from openbezoar.errors import ModelError
from openbezoar.llm import Call, Completion, Sampling, Samplings, each
from openbezoar.llm.budget import CHARACTERS_A_TOKEN, CHOICE_TOKENS, prompt_tokens
from openbezoar.llm.choices import tokens_of, weigh
from openbezoar.llm.endpoints import Clock, Endpoint, Endpoints
from openbezoar.llm.side_by_side import CalledOff, side_by_side
from openbezoar.recipe import ServerModel
from openbezoar.records import Turn

if TYPE_CHECKING:
    from openai import OpenAI

LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 600.0  # seconds that a server's Retry-After is followed up to
FIRST_TRIES = 3  # to an address that has never answered: it is not there, rather than busy
LIKELIEST = (20, 5)  # tokens asked for at a place; some servers tell fewer


class Server:
    """An LLM over HTTP. Seeds are passed on; whether they are honoured is the server's affair."""

    def __init__(self, name: str, spec: ServerModel, clock: Clock | None = None) -> None:
        self.name, self.spec = name, spec
        self.where = f"model '{name}' ({spec.model} at {', '.join(map(shown, spec.servers))})"
        if spec.wrapper is not None and "{prompt}" not in spec.wrapper:
            raise ModelError(f"model '{name}': its wrapper has no {{prompt}}; expected text such as '<human>: {{prompt}}\\n<bot>:'")
        self._key = _key(name, spec)
        self._clock = clock or Clock()
        self._endpoints = Endpoints([Endpoint(shown(url), _client(url, spec, self._key), spec.concurrency) for url in spec.servers], self._clock)
        self._limit_name = "max_tokens"
        self._likeliest = LIKELIEST[0]

    @property
    def width(self) -> int:
        """Most requests that can be under way."""
        return self.spec.concurrency * len(self.spec.servers)

    # ------------------------------------------------------------------------ the protocol

    def chat(self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Answers by the server's chat template; by ``spec.wrapper`` and raw completion if there is one."""
        return self._all([Call("chat", tuple(c), s, seed) for c, s, seed in zip(conversations, each(sampling, len(conversations)), seeds, strict=True)])

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Continuations of raw texts."""
        return self._all([Call("complete", p, s, seed) for p, s, seed in zip(prompts, each(sampling, len(prompts)), seeds, strict=True)])

    def choice_logprobs(self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]) -> list[list[float]]:
        """Log-probabilities by the likeliest tokens that the server tells; raises ModelError if it tells none."""
        answers = self._all([Call("choices", tuple(c), Sampling(1), 0, prefix, tuple(choices)) for c in conversations])
        return [list(answer.logprobs or ()) for answer in answers]

    def close(self) -> None:
        """Let go of the connections."""
        for endpoint in self._endpoints.all:
            endpoint.client.close()

    def _all(self, calls: Sequence[Call]) -> list[Completion]:
        return side_by_side(len(calls), lambda place, off: self.answer(calls[place], off), self.width, self.name)

    # ------------------------------------------------------------------------ one call

    def answer(self, call: Call, off: threading.Event) -> Completion:
        """One answer, sending again what was lost. Raises ModelError when the tries are used up or a server says no."""
        import openai

        tries, last = 0, None
        while True:
            endpoint = self._endpoints.take(off, last)
            begun, busy, gone, asked = self._clock.now(), False, False, None
            sent = self._limit_name, self._likeliest
            try:
                completion = self._read(self._send(endpoint.client, call, *sent), call)
                return replace(completion, seconds=round(self._endpoints.answer(endpoint, begun, completion.tokens), 6))
            except openai.APIStatusError as error:
                code = error.status_code
                if code not in (408, 409, 425, 429) and code < 500:
                    self._endpoints.answer(endpoint, begun, 0)
                    if refuses_content(error):
                        return Completion("", "error", 0, 0)
                    if self._adapts(error, sent):
                        continue
                    raise ModelError(f"{self.where}: it refuses the request with {code}: {self._said(error)}{_remedy(code, self.spec)}") from None
                lost, asked, busy = f"{code}: {self._said(error)}", retry_after(error), code in (408, 429, 503)
                self._endpoints.answered = True
            except (openai.APIConnectionError, openai.APIResponseValidationError, _Malformed) as error:
                lost, busy = self._lost(error), isinstance(error, openai.APITimeoutError)
                gone = isinstance(error, openai.APIConnectionError) and not busy
            except BaseException:
                self._endpoints.lost(endpoint, begun)
                raise
            tries, last = tries + 1, endpoint
            seconds = pause(tries, asked, call.seed)
            elsewhere = self._endpoints.lost(endpoint, begun, busy=busy, gone=gone, hold=seconds if busy or asked is not None else None)
            if tries > self.spec.retries or (not self._endpoints.answered and tries >= FIRST_TRIES * len(self.spec.servers)):
                raise ModelError(
                    f"{self.where}: no answer after {tries} tries; the last one: {lost}. Check that the server runs and is reachable, then run again: every answer is kept"
                )
            if not elsewhere and self._clock.wait(seconds, off):
                raise CalledOff

    def _send(self, client: Any, call: Call, limit_name: str, likeliest: int) -> Any:
        """One request. A conversation for a wrapped server is sent as text, and begins its answer with the call's prefix."""
        sampling, prompt, wrapper = call.sampling, call.prompt, self.spec.wrapper
        if call.kind == "choices":
            sampling = Sampling(CHOICE_TOKENS, logprobs=True)
        settings = _settings(sampling, call.seed)
        if not isinstance(prompt, str) and wrapper is not None:
            prompt = wrapped(wrapper, prompt) + (f" {call.prefix}" if call.prefix else "")
            settings["stop"] = [*dict.fromkeys((*sampling.stop, *wrapper_stop(wrapper)))]
        if isinstance(prompt, str):
            if sampling.logprobs:
                settings["logprobs"] = likeliest
            return client.completions.create(model=self.spec.model, prompt=prompt, **settings)
        if sampling.logprobs:
            settings |= {"logprobs": True, "top_logprobs": likeliest}
        settings[limit_name] = settings.pop("max_tokens")
        return client.chat.completions.create(model=self.spec.model, messages=[turn.as_dict() for turn in prompt], **settings)

    def _read(self, reply: Any, call: Call) -> Completion:
        choices = getattr(reply, "choices", None)
        if not choices:
            raise _Malformed("a reply without 'choices'; is the address the API's base, such as http://HOST/v1?")
        choice, usage = choices[0], getattr(reply, "usage", None)
        message = getattr(choice, "message", None)
        text = (message.content if message is not None else getattr(choice, "text", None)) or ""
        reason = choice.finish_reason
        finish: Literal["stop", "length", "error"] = "error" if reason == "content_filter" else "length" if reason == "length" else "stop"
        tokens = tokens_of(choice) if call.sampling.logprobs or call.kind == "choices" else []
        logprobs = tuple(token.logprob for token in tokens) or None
        if call.kind == "choices":
            if text and not any(token.likeliest for token in tokens):
                raise self._no_logprobs()
            logprobs = tuple(weigh(tokens, "" if self.spec.wrapper else call.prefix, call.choices))
        if usage is None:  # nobody counted; a budget must not be blind to it
            return Completion(str(text), finish, prompt_tokens(call), math.ceil(len(text) / CHARACTERS_A_TOKEN), logprobs)
        return Completion(str(text), finish, usage.prompt_tokens or 0, usage.completion_tokens or 0, logprobs)

    def _no_logprobs(self) -> ModelError:
        return ModelError(f"{self.where}: it tells no log-probabilities of its tokens; use mode: text, or a local model")

    def _adapts(self, error: Any, sent: tuple[str, int]) -> bool:
        """Whether the request can be put in another way than it was sent; that way is used from now on, by all threads."""
        if error.status_code not in (400, 422):
            return False
        if "logprobs" in str(error):
            if sent[1] == LIKELIEST[-1]:
                raise self._no_logprobs() from None
            self._likeliest = LIKELIEST[-1]
            return True
        if sent[0] == "max_tokens" and "max_completion_tokens" in str(error):
            self._limit_name = "max_completion_tokens"
            return True
        return False

    def _lost(self, error: Exception) -> str:
        import openai

        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.spec.timeout:g} s"
        return self._tidy(str(error.__cause__ or error) or type(error).__name__)

    def _said(self, error: Any) -> str:
        body = error.body if isinstance(error.body, dict) else {}
        said = body.get("message") or error.response.text or "no reason given"
        return self._tidy(str(said))

    def _tidy(self, text: str) -> str:
        """A server's words on one line, without the key."""
        line = " ".join(text.split())
        if self._key:
            line = line.replace(self._key, "(key)")
        return line if len(line) <= 300 else line[:297] + "..."


class _Malformed(Exception):
    """A reply that is not the API's."""


def _key(name: str, spec: ServerModel) -> str | None:
    if spec.key is None:
        return None
    if not (value := os.environ.get(spec.key, "").strip()):
        # A name only: somebody may have put the key itself there.
        named = f"${spec.key}" if re.fullmatch(r"[A-Z][A-Z0-9_]*", spec.key) else "that 'key' names (is it a name, such as OPENAI_API_KEY?)"
        raise ModelError(
            f"model '{name}': the environment variable {named} is not set; expected the key for {shown(spec.servers[0])} in it: export it, then run again"
        )
    return value


def shown(url: str) -> str:
    """An address as it may be shown: without a user's name and password, and without a query, where keys are put too."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def _client(url: str, spec: ServerModel, key: str | None) -> OpenAI:
    from openai import OpenAI

    return OpenAI(base_url=url, api_key=key or "none", timeout=spec.timeout, max_retries=0)


def _settings(sampling: Sampling, seed: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "seed": seed % 2**31}
    if sampling.temperature > 0:
        settings["top_p"] = sampling.top_p
    if sampling.stop:
        settings["stop"] = list(sampling.stop)
    return settings


def _remedy(status: int, spec: ServerModel) -> str:
    if status in (401, 403):
        return f"; check the key in ${spec.key}" if spec.key else "; name the environment variable that holds a key, as 'key'"
    return "; check the model's name and the base URL (it mostly ends with /v1)" if status == 404 else ""


def refuses_content(error: Any) -> bool:
    """Whether a server declines the content, by the codes that OpenAI and Azure use; nothing else is an answer of 'error'."""
    body = error.body if isinstance(error.body, dict) else {}
    return error.status_code in (400, 403) and str(body.get("code")) in ("content_filter", "content_policy_violation")


def retry_after(error: Any) -> float | None:
    """Seconds that the server asks to wait: its Retry-After, in seconds or as a date."""
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when - datetime.now(UTC if when.tzinfo else None)).total_seconds())


def pause(tries: int, asked: float | None, seed: int) -> float:
    """Seconds before the next try: at least what the server asked for, else doubling; jitter keeps requests apart."""
    jitter = random.Random(f"{seed}/{tries}").random()
    if asked is not None:
        return min(asked, LONGEST_ASKED) + jitter
    return float(min(2 ** (tries - 1), LONGEST_WAIT)) * (0.5 + jitter / 2)


def wrapped(wrapper: str, turns: Sequence[Turn]) -> str:
    """A conversation as one text: each user turn in the wrapper, the system message before the first."""
    system = "".join(t.content + "\n\n" for t in turns if t.role == "system" and t.content)
    text = ""
    for turn in turns:
        if turn.role == "user":
            text += wrapper.replace("{prompt}", system + turn.content)
            system = ""
        elif turn.role == "assistant":
            text += f" {turn.content}\n"
    return text


def wrapper_stop(wrapper: str) -> tuple[str, ...]:
    """Where an answer ends: at the text with which the wrapper opens a user's turn."""
    opening = wrapper.split("{prompt}")[0].strip()
    return (opening,) if opening else ()
