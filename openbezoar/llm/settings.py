"""What a server is sent for a call: the API's settings, less those that it has refused. Reads and writes nothing.

Servers differ in what they take: judges that sample at temperature 1 only, newer names for
the token limit, no seeds. Of stop strings all are sent four at most. A setting that a refusal names is put
in another way where there is one (the limit's other name, fewer likeliest tokens) and else
left out from then on, in all steps of a run (``learnt``); answers say which were.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from openbezoar.llm import Call, Sampling
from openbezoar.llm.refusals import Fault
from openbezoar.llm.replies import asked_tokens, mended
from openbezoar.recipe.blocks import ServerModel
from openbezoar.rows.records import Turn

LIKELIEST = (20, 5)  # tokens asked for at a place; some servers tell fewer
LIMITS = ("max_tokens", "max_completion_tokens")
STOPS = 4  # strings at most, as the API has it (vLLM 0.32 refuses a fifth); answers are cut here at the others
# no setting, but refused like one, by models whose template has none; then the system message
# begins the first user turn
SYSTEM = "system role"
# of two that exclude each other the first goes
NAMES = (SYSTEM, "top_logprobs", "logprobs", "top_p", "seed", "stop", "temperature", *LIMITS)
ENGLISH = ("stop", "seed", "temperature")  # words that a message may hold without meaning the setting
ALSO = {"top_logprobs": ("top_n_tokens",)}  # what a server calls a setting (TGI)
_ABOUT_ROLES = re.compile(
    r"system\W{0,3} (?:role|message|prompt)s?\b.{0,40}(?:support|allow|permit|invalid)"
    r"|role\b.{0,40}(?:support|allow|permit).{0,20}\bsystem\b"
    r"|only user\b[^.]{0,30}\broles? (?:is|are) (?:supported|allowed)"
    r"|(?:system|developer) instructions? (?:is|are) not (?:enabled|supported|allowed)"
    r"|roles must alternate",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"unsupported|not supported|does(?: not|n't) support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed"
    r"|deprecated|removed",
    re.IGNORECASE,
)
_ABOUT_SETTINGS = re.compile(
    r"support|unknown|unrecogni[sz]ed|invalid|unexpected|permitted|allowed|must|cannot|can't|only|deprecated"
    r"|parameter|argument|field|option|property|sequence",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Request:
    """A call as it is sent. sent: the settings in it. left_out: those that it would have had.
    likeliest: tokens asked for at a place. unsent: stop strings that its answer is to be cut at here.
    """

    path: str
    body: bytes
    sent: Mapping[str, Any]
    left_out: tuple[str, ...]
    likeliest: int
    unsent: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawPrompt:
    """A call for raw completions, whatever it was: a text or token ids, where its answer ends, the most tokens that
    it has, further fields of the request.
    """

    prompt: str | list[int]
    stop: tuple[str, ...]
    max_new_tokens: int
    more: Mapping[str, Any] = field(default_factory=dict)


class Settings:
    """What one model's server takes; learnt from its refusals, for all threads."""

    def __init__(
        self,
        model: str,
        wrapper: str | None,
        encode: Callable[[Call], RawPrompt] | None = None,
        leaves_out: bool = True,
    ) -> None:
        """encode: makes a raw prompt of every call. leaves_out: whether what is refused is left out from then on."""
        self.model, self.wrapper, self.encode, self.leaves_out = model, wrapper, encode, leaves_out
        self.left_out: set[str] = set()
        self._said: set[str] = set()
        self._limit, self._likeliest = 0, 0  # places in LIMITS and LIKELIEST
        self._taken: set[tuple[str, str]] = set()  # settings with values that were in requests that got an answer
        self._lock = threading.Lock()

    def request(self, call: Call) -> Request:
        """A call as it is sent now. A conversation for a wrapped server is sent as text, and begins
        its answer with the call's prefix.
        """
        with self._lock:
            limit, likeliest, left_out = LIMITS[self._limit], LIKELIEST[self._likeliest], set(self.left_out)
        sampling, prompt = call.sampling, call.prompt
        if call.kind == "choices":
            sampling = Sampling(asked_tokens(call), logprobs=True)
        settings: dict[str, Any] = {
            limit: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": call.seed % 2**31,
        }
        if sampling.temperature > 0:
            settings["top_p"] = sampling.top_p
        stop = list(sampling.stop)
        if not isinstance(prompt, str) and self.wrapper is not None:
            prompt = wrapped(self.wrapper, prompt) + (f" {call.prefix}" if call.prefix else "")
            stop = [*dict.fromkeys((*stop, *wrapper_stop(self.wrapper)))]
        given: Any = prompt
        if self.encode is not None:
            encoded = self.encode(call)
            given, stop = encoded.prompt, list(encoded.stop)
            settings |= {limit: encoded.max_new_tokens, **encoded.more}
        if stop:
            settings["stop"] = stop[:STOPS]
        raw = isinstance(prompt, str) or self.encode is not None
        if raw:
            settings["max_tokens"] = settings.pop(limit)  # the raw form has no other name
        if sampling.logprobs:
            settings |= {"logprobs": likeliest} if raw else {"logprobs": True, "top_logprobs": likeliest}
        if not raw and not isinstance(prompt, str):
            if prompt and prompt[0].role == "system":
                settings[SYSTEM] = True
                prompt = folded(prompt) if SYSTEM in left_out else prompt
            prompt_field: dict[str, Any] = {"messages": [turn.as_dict() for turn in prompt]}
        else:
            prompt_field = {"prompt": given}
        allowed = {name: value for name, value in settings.items() if name not in left_out}
        # A half of a surrogate pair, which no server can read, would make the whole request unreadable.
        body = mended(
            json.dumps(
                {
                    "model": self.model,
                    **prompt_field,
                    **{name: value for name, value in allowed.items() if name != SYSTEM},
                },
                ensure_ascii=False,
            )
        )[0].encode()
        path = "/completions" if raw else "/chat/completions"
        unsent = tuple(stop[STOPS:] if "stop" in allowed else stop)
        return Request(path, body, allowed, tuple(sorted(settings.keys() - allowed.keys())), likeliest, unsent)

    def answered(self, request: Request) -> None:
        """A request got an answer, so that nothing in it is refused as such."""
        with self._lock:
            self._taken |= _values(request)

    def named(self, fault: Fault, request: Request) -> str | None:
        """The setting that a refusal of a request is about; not one that was taken with the same value before."""
        # OpenAI forbids log-probabilities to a key or of a model (403); of all else that says that the key is wrong
        names = tuple(name for name in NAMES if "logprobs" in name) if fault.status == 403 else NAMES
        if fault.status not in (0, 400, 403, 422) and not 500 <= fault.status < 600:
            return None
        with self._lock:
            open_ = {name for name, value in _values(request) if name in names and (name, value) not in self._taken}
        if param := next((part for part in fault.param.split(".") if part in open_), None):
            return param
        return next((name for name in names if name in open_ and _names(fault.message, name)), None)

    def adapt(self, name: str, fault: Fault, request: Request, *, needed: bool) -> bool | None:
        """Another way to send what was refused: True if there is one that leaves nothing out, False
        if the setting is left out, None if it is needed.
        """
        with self._lock:
            # A limit that is too large has no other name; one that is not known mostly has, said or not.
            if (
                name == "max_tokens"
                and request.path == "/chat/completions"
                and (LIMITS[1] in fault.message or _UNKNOWN.search(fault.message))
            ):
                self._limit = 1
                return True
            if name in ("logprobs", "top_logprobs"):
                if request.likeliest != LIKELIEST[-1]:
                    self._likeliest = len(LIKELIEST) - 1
                    return True
                if needed:
                    return None
            if self.leaves_out:
                self.left_out.add(name)
            return False

    def unsaid(self, name: str) -> bool:
        """Whether this is the first word about a setting."""
        with self._lock:
            first = name not in self._said
            self._said.add(name)
        return first


_LEARNT: WeakKeyDictionary[object, dict[Any, Settings]] = WeakKeyDictionary()
_learning = threading.Lock()


def learnt(run: object, name: str, spec: ServerModel) -> Settings:
    """What is known of a model's server in a run: the same for all of its steps, so that each refusal is met once."""
    key = (name, spec.servers, spec.model, spec.wrapper, spec.refused_settings)
    with _learning:
        known = _LEARNT.setdefault(run, {})
        if key not in known:
            known[key] = Settings(spec.model, spec.wrapper, leaves_out=spec.refused_settings == "leave_out")
        return known[key]


def _values(request: Request) -> set[tuple[str, str]]:
    """Its settings with their values; all seeds are one."""
    return {(name, "" if name == "seed" else json.dumps(value)) for name, value in request.sent.items()}


def _names(message: str, name: str) -> bool:
    """Whether a message names a setting, rather than using its word."""
    if name == SYSTEM:
        return bool(_ABOUT_ROLES.search(message))
    words = "|".join(word.replace("_", "_?") for word in (name, *ALSO.get(name, ())))  # some write topLogprobs
    if re.search(rf"['\"`\[(](?:{words})['\"`\])]", message, re.IGNORECASE):
        return True
    return bool(
        re.search(rf"(?<![\w.-])(?:{words})(?![\w-])", message, re.IGNORECASE)
        and (name not in ENGLISH or _ABOUT_SETTINGS.search(message))
    )


def folded(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """A conversation whose system message begins its first user turn."""
    system, *rest = turns
    if not system.content.strip():
        return tuple(rest)
    if not rest or rest[0].role != "user":
        return (Turn("user", system.content), *rest)
    return (Turn("user", f"{system.content}\n\n{rest[0].content}"), *rest[1:])


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of its stop strings, and whether there was one: for a server that
    was not told of them.
    """
    cut = min((at for s in stop if s and (at := text.find(s)) >= 0), default=-1)
    return (text, False) if cut < 0 else (text[:cut], True)


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
