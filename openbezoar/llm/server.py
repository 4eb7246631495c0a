"""A model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, transformers serve, or a hosted one.

Sends prompts to ``spec.servers`` with the key in the environment variable ``spec.key``
names; writes nothing. Requests run side by side, lost ones are sent again (to another
address if there is one), and answers come back in the order of the prompts. How many are
under way at which address is decided in ``endpoints.py``; how a request travels is
``transport.py``'s, what is in it ``settings.py``'s, what a reply says ``replies.py``'s, and
what a refusal means ``refusals.py``'s.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from openbezoar.errors import ModelError
from openbezoar.llm import Call, Completion, Sampling, Samplings, each
from openbezoar.llm.cuts import CUT, CutPrompts
from openbezoar.llm.endpoints import Clock, Endpoint, Endpoints
from openbezoar.llm.refusals import REASONS, Fault, fault_beside, fault_of, meaning
from openbezoar.llm.replies import Malformed, largest, parsed, prompt_characters, read
from openbezoar.llm.settings import SYSTEM, RawPrompt, Request, Settings, cut_at_stop
from openbezoar.llm.side_by_side import CalledOff, side_by_side
from openbezoar.llm.transport import MOVED, Gone, Late, Reply, Transport, redirected
from openbezoar.progress import duration, visible
from openbezoar.recipe.blocks import ServerModel
from openbezoar.rows.records import Turn

LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 600.0  # seconds that a server's Retry-After is followed up to
TOO_LONG_ASKED = 3600.0  # seconds from which a wait is a limit a day rather than a minute: nobody sits that out
FIRST_TRIES = 3  # to an address that has never answered: it is not there, rather than busy
FIRST_REFUSALS = 3  # for reasons that may be a request's own, before any answer: then they are not
WORTH_SAYING = 5.0  # seconds of waiting
SAID_EVERY = 30.0  # seconds between two lines about waiting
MASKED = 8  # characters of a key in a row that are not shown


@dataclass(frozen=True)
class _Lost:
    """No answer this time. kind: what the call is counted under if that stays so."""

    words: str
    kind: Literal["malformed", "failed", ""]  # "": nobody was there
    wait: float | None = None
    busy: bool = False


class ServerLLM:
    """An LLM over HTTP. Seeds are passed on; whether they are honoured is the server's affair."""

    def __init__(
        self,
        name: str,
        spec: ServerModel,
        clock: Clock | None = None,
        say: Callable[[str], None] = lambda text: None,
        count: Callable[[str], None] = lambda reason: None,
        lost: Callable[[Call], None] = lambda call: None,
        transport: Any = None,
        encode: Callable[[Call], RawPrompt] | None = None,
        settings: Settings | None = None,
        ours: bool = False,
    ) -> None:
        """say: told in one line what is waited for, left out or refused. count: told of what is
        asked again, under its reason.

        lost: told of a call that was sent without an answer that could be used, and that may be on the bill.
        transport: in place of one of its own; it is closed with this. encode: makes a raw prompt of every call.
        settings: what is known of the server already, in place of ``encode``. ours: it serves nobody else.
        """
        self.name, self.spec = name, spec
        self.where = f"model '{name}' ({spec.model} at {', '.join(spec.servers)})"
        if spec.wrapper is not None and "{prompt}" not in spec.wrapper:
            raise ModelError(
                f"model '{name}': its wrapper has no {{prompt}}; expected text such as '<human>: {{prompt}}\\n<bot>:'"
            )
        self._key = _key(name, spec)
        self._clock, self._say, self._count, self._on_the_bill = clock or Clock(), say, count, lost
        self._transport = transport or Transport(self._key, spec.timeout, spec.concurrency)
        self._endpoints = Endpoints([Endpoint(url, spec.concurrency, ours) for url in spec.servers], self._clock)
        self._settings = settings or Settings(spec.model, spec.wrapper, encode, spec.refused_settings == "leave_out")
        self._cuts = CutPrompts()
        self._lock = threading.Lock()
        self._asked_at: dict[object, float] = {}  # requests that there is no reply to yet
        self._refused_first, self._said_at, self._said = 0, -math.inf, set[str]()
        self.words: dict[str, str] = {}  # with which it last turned down one call, by the reason

    @property
    def width(self) -> int:
        """Most requests that can be under way."""
        return self.spec.concurrency * len(self.spec.servers)

    # ------------------------------------------------------------------------ the protocol

    def chat(
        self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]
    ) -> list[Completion]:
        """Answers by the server's chat template; by ``spec.wrapper`` and raw completion if there is one."""
        return self._all(
            [
                Call("chat", tuple(c), s, seed)
                for c, s, seed in zip(conversations, each(sampling, len(conversations)), seeds, strict=True)
            ]
        )

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Continuations of raw texts."""
        return self._all(
            [
                Call("complete", p, s, seed)
                for p, s, seed in zip(prompts, each(sampling, len(prompts)), seeds, strict=True)
            ]
        )

    def choice_logprobs(
        self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]
    ) -> list[list[float]]:
        """Log-probabilities by the likeliest tokens that the server tells; raises ModelError if it tells none."""
        answers = self._all([Call("choices", tuple(c), Sampling(1), 0, prefix, tuple(choices)) for c in conversations])
        return [list(answer.logprobs or ()) for answer in answers]

    def close(self) -> None:
        """Let go of the connections."""
        self._transport.close()

    def _all(self, calls: Sequence[Call]) -> list[Completion]:
        return side_by_side(len(calls), lambda place, off: self.answer(calls[place], off), self.width, name=self.name)

    def probe(self, call: Call, more: Mapping[str, Any]) -> Any:
        """The first address's reply to a call as JSON, asked once with further fields; None if it gives none."""
        request = self._settings.request(call)
        body = json.dumps({**json.loads(request.body), **more}).encode()
        try:
            reply = self._transport.post(self.spec.servers[0] + request.path, body, largest(call, body, 1))
            return parsed(reply.body) if reply.status == 200 else None
        except (Malformed, Late, Gone):
            return None

    # ------------------------------------------------------------------------ one call

    def answer(self, call: Call, off: threading.Event) -> Completion:
        """One answer, sending again what was lost.

        A call that the server turns down alone is an answer of 'error' with the reason in
        ``refused``. Raises ModelError when the tries are used up or a server says no to all.
        """
        tries, last, first = 0, None, self._clock.now()
        while True:
            endpoint = self._endpoints.take(off, last)
            begun, request = self._clock.now(), self._settings.request(call)
            try:
                came = self._once(endpoint.url, request, call, off)
            except BaseException:
                self._endpoints.lost(endpoint, begun)
                raise
            if isinstance(came, Completion) and not came.refused:
                self._settings.answered(request)
                return replace(came, seconds=round(self._endpoints.answer(endpoint, begun, came.tokens), 6))
            if not isinstance(came, _Lost):
                self._endpoints.replied(endpoint)
                if came is not None:
                    return came
                continue
            tries, last = tries + 1, endpoint
            seconds = pause(tries, came.wait, call.seed)
            hold = seconds if came.busy or came.wait is not None else None
            elsewhere = self._endpoints.lost(endpoint, begun, busy=came.busy, gone=not came.kind, hold=hold)
            if tries > self.spec.retries or (
                not self._endpoints.answered and tries >= FIRST_TRIES * len(self.spec.servers)
            ):
                return self._given_up(call, came, tries, first)
            if not elsewhere:
                self._waits(seconds, came, tries, first)
                if self._clock.wait(seconds, off):
                    raise CalledOff

    def _once(self, url: str, request: Request, call: Call, off: threading.Event) -> Completion | _Lost | None:
        """An answer, a loss, or None where the call is to be sent in another way at once. Raises
        ModelError for what every request would get.
        """
        try:
            with self._unheard():
                reply = self._transport.post(
                    url + request.path, request.body, largest(call, request.body, request.likeliest)
                )
            if not 200 <= reply.status < 300:
                self._endpoints.answered = True
                return self._refusal(url, request, call, fault_of(reply.status, reply.body), reply, off)
            value = parsed(reply.body)
            if (fault := fault_beside(reply.status, value)) is not None:
                return self._refusal(url, request, call, fault, reply, off)
            answer, tells = read(value, call, "" if self.spec.wrapper else call.prefix)
        except Malformed as error:
            with self._lock:
                self._count(f"replies of {self.name} that are not the API's, asked again")
            self._on_the_bill(call)
            return _Lost(self._tidy(str(error)), "malformed")
        except Late as error:
            self._on_the_bill(call)
            return _Lost(str(error), "failed", busy=True)
        except Gone as error:
            if error.sent:
                self._on_the_bill(call)
            return _Lost(self._tidy(str(error)), "")
        if not tells:
            self._on_the_bill(call)
            raise self._no_logprobs()
        if request.unsent:
            text, cut = cut_at_stop(answer.text, request.unsent)
            answer = replace(answer, text=text, finish="stop" if cut and answer.finish == "length" else answer.finish)
        if self._cuts.heard(answer.prompt_tokens, prompt_characters(call)):
            answer = replace(answer, notes=(*answer.notes, CUT))
            self._once_said(
                CUT,
                f"{self.where}: it read {answer.prompt_tokens:,} tokens of prompts of different lengths, so it seems to"
                " cut them to its window and not to say so; give it a larger one (Ollama: OLLAMA_CONTEXT_LENGTH)",
            )
        return replace(answer, left_out=request.left_out)

    def _refusal(
        self, url: str, request: Request, call: Call, fault: Fault, reply: Reply, off: threading.Event
    ) -> Completion | _Lost | None:
        """What becomes of a call that was refused; as ``_once``."""
        if fault.status in MOVED:
            to = self._tidy(redirected(url + request.path, reply))
            raise ModelError(
                f"{self.where}: it redirects to {to}, where nothing is sent; if that is the right server, write its"
                " address as 'server'"
            )
        words, means = f"{fault.status or 'an error in its reply'}: {self._tidy(fault.message)}", meaning(fault)
        if means == "quota":
            raise ModelError(
                f"{self.where}: there is nothing left to pay with, it says {words}. Top up, then run again: every"
                " answer is kept"
            )
        about_settings = means in ("request", "wait") or fault.status == 403
        if about_settings and (name := self._settings.named(fault, request)) is not None:
            self._without(name, fault, request, call, words)
            return None
        if means == "wait":
            wait = retry_after(reply.headers.get("retry-after"))
            if wait is not None and wait > TOO_LONG_ASKED and len(self.spec.servers) == 1:
                raise ModelError(
                    f"{self.where}: it wants to be left alone for {duration(wait)}, it says {words}. Run again then:"
                    " every answer is kept"
                )
            return _Lost(words, "failed", wait, fault.status in (408, 429, 503))
        if means == "every request" or (means == "request" and self._refuses_all(off)):
            raise ModelError(f"{self.where}: it refuses the request with {words}{_remedy(fault.status, self.spec)}")
        return self._refused(call, means, words)

    def _without(self, name: str, fault: Fault, request: Request, call: Call, words: str) -> None:
        """Send a call without the setting that its refusal names, or in the other way that there is."""
        way = self._settings.adapt(name, fault, request, needed=call.kind == "choices")
        if way is None:
            raise self._no_logprobs()
        if way is False:
            if self.spec.refused_settings == "stop":
                raise ModelError(
                    f"{self.where}: it refuses '{name}' with {words}; change it, or set refused_settings: leave_out"
                )
            if self._settings.unsaid(name):
                how = "the system message begins the first user turn" if name == SYSTEM else "it is asked without"
                self._say(f"{self.where}: it refuses '{name}' ({words}); {how} from now on, and answers say so")

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """While a request is under way that there is no reply to."""
        mine = object()
        with self._lock:
            self._asked_at[mine] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._asked_at[mine]

    def _refuses_all(self, off: threading.Event) -> bool:
        """Whether a refusal that may be one request's own cannot be: several came, and never an
        answer, not even to what is under way.

        A refusal overtakes an answer that takes its time, so that is waited for.
        """
        now = time.monotonic()
        with self._lock:
            self._refused_first += 1
            several = self._refused_first >= FIRST_REFUSALS
        while several and self._endpoints.last_answer == -math.inf and not off.is_set():
            with self._lock:
                if not any(begun < now for begun in self._asked_at.values()):
                    return True
            off.wait(0.02)
        return False

    def _refused(self, call: Call, kind: str, words: str) -> Completion:
        prompt = call.prompt if isinstance(call.prompt, str) else call.prompt[-1].content
        self.words[kind] = words
        end = visible(" ".join(prompt.split()))[-60:]
        self._once_said(
            kind,
            f"{self.where}: one call goes without an answer, counted under '{REASONS[kind]}': {words} (its prompt ends"
            f" in '{end}')",
        )
        return Completion("", "error", 0, 0, refused=kind)

    def _given_up(self, call: Call, lost: _Lost, tries: int, first: float) -> Completion:
        """A call whose tries are used up: its own fault if others were answered meanwhile. Raises
        ModelError if none was.
        """
        if lost.kind and self._endpoints.last_answer > first:
            return self._refused(call, lost.kind, f"no answer after {tries} tries, the last one: {lost.words}")
        raise ModelError(
            f"{self.where}: no answer after {tries} tries; the last one: {lost.words}. Check that the server runs and"
            " is reachable, then run again: every answer is kept"
        )

    # ------------------------------------------------------------------------ words

    def _waits(self, seconds: float, lost: _Lost, tries: int, first: float) -> None:
        """Say that a call waits, and why, when that has taken or will take a while; once for all that wait together."""
        now = self._clock.now()
        with self._lock:
            if max(seconds, now - first) < WORTH_SAYING or now - self._said_at < SAID_EVERY:
                return
            self._said_at = now
        self._say(
            f"{self.where}: waiting {seconds:.0f} s to ask again, try {tries} of {1 + self.spec.retries}: {lost.words}"
        )

    def _once_said(self, key: str, text: str) -> None:
        with self._lock:
            if key in self._said:
                return
            self._said.add(key)
        self._say(text)

    def _no_logprobs(self) -> ModelError:
        return ModelError(
            f"{self.where}: it tells no log-probabilities of its tokens; use mode: text, or a local model"
        )

    def _tidy(self, text: str) -> str:
        """A server's words on one line, without the key or any longer part of it."""
        line = visible(" ".join(text.split()))
        key = self._key or ""
        if key in line:
            line = line.replace(key, "(key)") if key else line
        parts = sorted({key[i : i + MASKED] for i in range(len(key) - MASKED + 1)})
        hidden = [at for part in parts for at in _places(line, part)]
        for at in sorted(hidden, reverse=True):
            line = line[:at] + "*" * MASKED + line[at + MASKED :]
        return line if len(line) <= 300 else line[:297] + "..."


def _places(line: str, part: str) -> list[int]:
    return [match.start() for match in re.finditer(f"(?={re.escape(part)})", line)]


def _key(name: str, spec: ServerModel) -> str | None:
    if spec.key is None:
        return None
    # A name only: somebody may have put the key itself there.
    named = (
        f"${spec.key}"
        if re.fullmatch(r"[A-Z][A-Z0-9_]*", spec.key)
        else "that 'key' names (is it a name, such as OPENAI_API_KEY?)"
    )
    if not (value := os.environ.get(spec.key, "").strip()):
        raise ModelError(
            f"model '{name}': the environment variable {named} is not set; expected the key for {spec.servers[0]} in"
            " it: export it, then run again"
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ModelError(
            f"model '{name}': the environment variable {named} holds what is no key: expected one line of ASCII without"
            " spaces; export it again"
        )
    return value


def _remedy(status: int, spec: ServerModel) -> str:
    if status in (401, 403):
        return (
            f"; check the key in ${spec.key}"
            if spec.key
            else "; name the environment variable that holds a key, as 'key'"
        )
    return "; check the model's name and the base URL (it mostly ends with /v1)" if status in (404, 405) else ""


def retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait: its Retry-After, in seconds or as a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
            seconds = (when - datetime.now(UTC if when.tzinfo else None)).total_seconds()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def pause(tries: int, wait: float | None, seed: int) -> float:
    """Seconds before the next try: at least what the server asked for, else doubling; jitter keeps requests apart."""
    jitter = random.Random(f"{seed}/{tries}").random()
    if wait is not None:
        return min(wait, LONGEST_ASKED) + jitter
    return float(min(2 ** (tries - 1), LONGEST_WAIT)) * (0.5 + jitter / 2)
