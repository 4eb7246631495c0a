"""A model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, or a hosted one.

Sends prompts to ``spec.server`` with the key in the environment variable ``spec.key``
names; writes nothing. Requests run side by side, lost ones are sent again, and answers
come back in the order of the prompts.
"""

from __future__ import annotations

import os
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from openbezoar.errors import ModelError, missing_extra
from openbezoar.llm import Completion, Sampling, Samplings, each
from openbezoar.recipe import ServerModel
from openbezoar.records import Turn

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 600.0  # seconds that a server's Retry-After is followed up to
FIRST_TRIES = 3  # to a server that has never answered: it is not there, rather than busy


class Server:
    """An LLM over HTTP. Seeds are passed on; whether they are honoured is the server's affair.

    wait: pauses between tries, ``True`` if the work was called off meanwhile; for tests.
    """

    def __init__(self, name: str, spec: ServerModel, wait: Callable[[float], bool] | None = None) -> None:
        self.name, self.spec = name, spec
        self.where = f"model '{name}' ({spec.model} at {spec.server})"
        if spec.wrapper is not None and "{prompt}" not in spec.wrapper:
            raise ModelError(f"model '{name}': its wrapper has no {{prompt}}; expected text such as '<human>: {{prompt}}\\n<bot>:'")
        self._key = _key(name, spec)
        self._client = _client(spec, self._key)
        self._wait = wait
        self._answered = False
        self._limit_name = "max_tokens"

    # ------------------------------------------------------------------------ the protocol

    def chat(self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Answers by the server's chat template; by ``spec.wrapper`` and raw completion if there is one."""
        wrapper = self.spec.wrapper
        if wrapper is not None:
            return self._raw([wrapped(wrapper, turns) for turns in conversations], sampling, seeds, wrapper_stop(wrapper))
        return self._all(self._chat_one, [[turn.as_dict() for turn in turns] for turns in conversations], sampling, seeds)

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Continuations of raw texts."""
        return self._raw(prompts, sampling, seeds, ())

    def choice_logprobs(self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]) -> list[list[float]]:
        """Never possible here: raises ModelError."""
        raise ModelError(f"{self.where}: a server gives no log-probabilities of chosen answers; use mode: text, or a local model")

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    # ------------------------------------------------------------------------ one request

    def _raw(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int], stop: tuple[str, ...]) -> list[Completion]:
        def one(prompt: str, settings: dict[str, Any]) -> Any:
            settings["stop"] = [*dict.fromkeys((*settings.get("stop", ()), *stop))]
            return self._client.completions.create(model=self.spec.model, prompt=prompt, **settings)

        return self._all(one, prompts, sampling, seeds)

    def _chat_one(self, messages: list[dict[str, str]], settings: dict[str, Any]) -> Any:
        limit = settings.pop("max_tokens")
        create: Any = self._client.chat.completions.create  # its type wants one class a role
        return create(model=self.spec.model, messages=messages, **{self._limit_name: limit}, **settings)

    def _all(self, send: Callable[[T, dict[str, Any]], Any], items: Sequence[T], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Every item's answer, at most ``concurrency`` requests at a time. The first failure ends all of them."""
        todo = deque(enumerate(zip(items, each(sampling, len(items)), seeds, strict=True)))
        done: SimpleQueue[tuple[int, Completion | BaseException]] = SimpleQueue()
        off = threading.Event()

        def work() -> None:
            while todo and not off.is_set():
                try:
                    place, (item, drawn, seed) = todo.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    done.put((place, self._answer(send, item, _settings(drawn, seed), off)))
                except BaseException as error:
                    done.put((place, error))

        # Threads of their own rather than a pool: a program that is interrupted does not wait for slow replies.
        for number in range(min(self.spec.concurrency, len(items))):
            threading.Thread(target=work, name=f"{self.name}-{number}", daemon=True).start()
        answers: dict[int, Completion] = {}
        try:
            while len(answers) < len(items):
                place, answer = done.get()
                if isinstance(answer, BaseException):
                    raise answer
                answers[place] = answer
        finally:
            off.set()
        return [answers[place] for place in range(len(items))]

    def _answer(self, send: Callable[[T, dict[str, Any]], Any], item: T, settings: dict[str, Any], off: threading.Event) -> Completion:
        """One answer, sending again what was lost. Raises ModelError when the tries are used up or the server says no."""
        import openai

        tries = 0
        while True:
            try:
                completion = self._read(send(item, dict(settings)))
                self._answered = True
                return completion
            except openai.APIStatusError as error:
                self._answered = True
                if refuses_content(error):
                    return Completion("", "error", 0, 0)
                if self._renames_limit(error):
                    continue
                if error.status_code not in (408, 409, 425, 429) and error.status_code < 500:
                    raise ModelError(
                        f"{self.where}: it refuses the request with {error.status_code}: {self._said(error)}{_remedy(error.status_code, self.spec)}"
                    ) from None
                lost, asked = f"{error.status_code}: {self._said(error)}", retry_after(error)
            except (openai.APIConnectionError, openai.APIResponseValidationError, _Malformed) as error:
                lost, asked = self._lost(error), None
            tries += 1
            if tries > self.spec.retries or (not self._answered and tries >= FIRST_TRIES):
                raise ModelError(
                    f"{self.where}: no answer after {tries} tries; the last one: {lost}. Check that the server runs and is reachable, then run again: finished batches are kept"
                )
            if (self._wait or off.wait)(pause(tries, asked, settings["seed"])):
                raise ModelError(f"{self.where}: called off")

    def _read(self, reply: Any) -> Completion:
        choices = getattr(reply, "choices", None)
        if not choices:
            raise _Malformed("a reply without 'choices'; is the address the API's base, such as http://HOST/v1?")
        choice, usage = choices[0], getattr(reply, "usage", None)
        message = getattr(choice, "message", None)
        text = (message.content if message is not None else getattr(choice, "text", None)) or ""
        reason = choice.finish_reason
        finish: Literal["stop", "length", "error"] = "error" if reason == "content_filter" else "length" if reason == "length" else "stop"
        return Completion(str(text), finish, getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0)

    def _renames_limit(self, error: Any) -> bool:
        """Whether the server knows the token limit only by its newer name, which is used from now on."""
        if error.status_code != 400 or self._limit_name != "max_tokens" or "max_completion_tokens" not in str(error):
            return False
        self._limit_name = "max_completion_tokens"
        return True

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
        raise ModelError(f"model '{name}': the environment variable {named} is not set; expected the key for {spec.server} in it: export it, then run again")
    return value


def _client(spec: ServerModel, key: str | None) -> OpenAI:
    try:
        from openai import OpenAI
    except ImportError:
        raise missing_extra("openai", "server") from None
    return OpenAI(base_url=spec.server, api_key=key or "none", timeout=spec.timeout, max_retries=0)


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
