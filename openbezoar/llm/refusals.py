"""What a server's refusal means: for this one request, for every request, or for now. Reads and writes nothing.

Servers say the same in many words and under several codes; what is looked for here was
collected from OpenAI's API and its kin, vLLM, llama.cpp, Ollama, TGI, SGLang, LM Studio and
gateways before them. Only their own words are looked at, never a request that they repeat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

REASONS = {
    "too long": "a prompt over the model's window",
    "content": "its content was refused",
    "request": "the server refused it",
    "malformed": "no reply to it could be read",
    "failed": "no reply to it came",
}
"""Why one call has no answer, as counted."""

LONGEST = 4096  # characters of a fault's words that are looked at

Meaning = Literal["quota", "too long", "content", "every request", "wait", "request"]

_WINDOW = re.compile(
    r"context[ _-]?(?:length|window|size|limit)|context the overflows|exceeds? (?:the )?(?:model'?s )?context"
    r"|(?:maximum|max) (?:prompt|model|sequence|input|total)[ _](?:length|tokens)|max_model_len|reduce (?:the"
    r" length|your prompt)"
    r"|too many (?:input )?tokens|too large for model with|inputs`? tokens \+"
    r" `?max_new_tokens|max_(?:completion_)?tokens must be at least 1, got -"
    r"|exceed_context|string_above_max_length|ContextWindowExceeded|tokens_limit_reached|request_too_large"
    r"|(?:prompt|inputs?|messages?|conversation|token count)\b[^.!?]{0,80}\b(?:too"
    r" (?:long|large|big)|exceeds?|exceeded|longer than|must have less|larger than)"
    r"|(?:request|body|payload|entity)\b[^.!?]{0,30}\btoo (?:long|large|big)",
    re.IGNORECASE,
)
_CONTENT = re.compile(
    r"content[ _-]?(?:filter|policy|moderation|management policy)|ResponsibleAI|usage polic|safety"
    r" (?:system|filter|polic)|flagged|moderation"
    r"|data_?inspection_?failed|content exists risk|inappropriate content|violat\w+ [^.]{0,40}polic|prohibited"
    r" content|policy_violation|\binvalid_prompt\b",
    re.IGNORECASE,
)
_QUOTA = re.compile(
    r"insufficient[ _](?:quota|balance|funds|credits?)|exceeded your current quota|billing|out of credits?|credit"
    r" balance|(?:no|not enough|run out of) credits?"
    r"|payment required|quota[ _](?:exceeded|exhausted)|spend(?:ing)? limit|account (?:is )?(?:not"
    r" active|deactivated|suspended|overdue)|in arrears",
    re.IGNORECASE,
)
_PER_TIME = re.compile(
    r"per (?:second|minute|hour|day)|\b[RT]P[SMHD]\b|rate[ _-]?limit|try again in|retry (?:after|in)", re.IGNORECASE
)


@dataclass(frozen=True)
class Fault:
    """What a server says in place of an answer. status: HTTP's, or the one in the reply's body; 0: it says none."""

    status: int
    message: str
    code: str = ""  # codes and types, together
    param: str = ""  # a setting, or the way to it in the request: body.seed

    @property
    def words(self) -> str:
        """All that it says."""
        return f"{self.code} {self.message}"


def fault_of(status: int, body: bytes) -> Fault:
    """The fault in the body of a reply that is no answer."""
    text = body.decode("utf-8", "replace").strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        words = re.sub(r"<(?:script|style)[^>]*>[^<]*|<[^>]*>", " ", text[:LONGEST], flags=re.IGNORECASE).split()
        return Fault(status, " ".join(words) or "no reason given")
    return fault_in(status, value) or Fault(status, "no reason given")


def fault_beside(status: int, value: Any) -> Fault | None:
    """The fault in a reply that HTTP calls good: in place of its choices, beside them, or in the
    first of them; None if it has none.
    """
    if not isinstance(value, dict):
        return None
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, dict) and first.get("error"):
        return fault_in(status, {"error": first["error"]})
    return fault_in(status, value) if value.get("error") or "choices" not in value else None


def fault_in(status: int, value: Any) -> Fault | None:
    """The fault in a reply's JSON, in any of the forms in use; None if it has none. A status of the
    body's own counts where HTTP's says that all is well.
    """
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, str):
        return Fault(status, value[:LONGEST])
    if not isinstance(value, dict):
        return None
    fault = next((value[key] for key in ("error", "detail", "errors", "message") if value.get(key)), None)
    if fault is None:
        return None
    inside = fault if isinstance(fault, list) else [fault]
    parts: list[Any] = [value, *(part for part in inside if isinstance(part, dict))]
    parts += [one for part in parts[1:] if isinstance(part.get("detail"), list) for one in part["detail"]]
    parts = [part for part in parts if isinstance(part, dict)]
    message = "; ".join(dict.fromkeys(_texts(parts, ("message", "msg", "error", "detail")))) or "no reason given"
    code = " ".join(dict.fromkeys(_texts(parts, ("code", "type", "error_type", "status"))))
    # of a gateway, what the server behind it said
    if isinstance(fault, dict) and isinstance(fault.get("metadata"), dict):
        message += "".join(f": {text}" for text in _texts([fault["metadata"]], ("raw",)))
    param = next(_texts(parts, ("param",)), "") or next(
        (".".join(map(str, p["loc"])) for p in parts if isinstance(p.get("loc"), list) and p["loc"]), ""
    )
    own = next((int(n) for n in _texts(parts, ("code", "status", "status_code")) if re.fullmatch(r"[45]\d\d", n)), 0)
    return Fault(own if 200 <= status < 300 else status, message[:LONGEST], code[:LONGEST], param[:LONGEST])


def _texts(parts: list[dict[str, Any]], keys: tuple[str, ...]) -> Iterator[str]:
    for part in parts:
        for key in keys:
            if isinstance(part.get(key), (str, int)) and not isinstance(part[key], bool):
                text = str(part[key]) if isinstance(part[key], str) or abs(part[key]) < 1000 else ""
                if text:
                    yield text


def meaning(fault: Fault) -> Meaning:
    """What a fault means; 'request' where it can only be told by what becomes of other requests."""
    status, words = fault.status, fault.words
    # A limit on a time's requests says where to pay for more, and passes by itself.
    if status == 402 or (
        status in (0, 400, 403, 429)
        and _QUOTA.search(words)
        and ("insufficient" in fault.code or not _PER_TIME.search(fault.message))
    ):
        return "quota"
    if status == 413 or (status not in (401, 404) and _WINDOW.search(words)):
        return "too long"
    if status in (0, 400, 403, 422, 451) and _CONTENT.search(words):
        return "content"
    if status in (0, 408, 409, 424, 425, 429) or (status >= 500 and status not in (501, 505)):
        return "wait"
    return "request" if status in (400, 422, 451) else "every request"
