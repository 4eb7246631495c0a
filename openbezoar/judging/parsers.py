"""What a judge's reply says: a rating, a verdict, or a filter's status, rating and reason.

Reads text, writes nothing, never raises, takes time linear in the text's length. What
cannot be read is None, which callers count as unscored; it is never a zero or a middle
rating. What is thought aloud is no verdict, and neither is what a reply repeats of the
judge's instructions: ``[[A]]" if assistant A …`` up to the end of the sentence, and
``for instance: Verdict: [[C]]``.

A rating is what stands in the last well-formed ``[[…]]``. Well formed means: one number,
perhaps after a label ("Rating:"), perhaps over ten ("8/10", "8 out of 10"), perhaps in
asterisks. The choices in doubtful cases:

- ``[[7.5]]``, ``[[10.0]]``, ``[[1e1]]``, ``[[+8]]``, ``[[８]]``: numbers, and taken as such;
- ``[[0]]``, ``[[-3]]``, ``[[47]]``: numbers out of range, so None, whatever stood before;
- ``[[4/5]]``, ``[[80/100]]``: a rating on another scale, so None, whatever stood before;
- ``[[7-8]]``, ``[[1, 2]]``, ``[[7,5]]``, ``[[rating]]``, ``[[nan]]``, ``[[8]/10]``: no rating, passed over;
- ``[[[8]]]``: holds ``[[8]]``, so 8; ``[[ [8] ]]`` and ``[8]`` hold single brackets only.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

from openbezoar.dialogue import thoughts

Verdict = Literal["A", "B", "tie"]
Status = Literal["accept", "reject"]

LOWEST, HIGHEST = 1.0, 10.0

# Possessive quantifiers (*+): a text of open brackets or blanks is scanned once, not once a start.
_BRACKETS = re.compile(r"\[\[([^\[\]]*+)\]\]")
_VERDICT = re.compile(r"\[\[\s*+([ABC])\s*+\]\]", re.IGNORECASE)
_YES_NO = re.compile(r"\[\[\s*+(yes|no)\s*+\]\]", re.IGNORECASE)
_REPEATED = re.compile(
    r"\[\[[^\[\]\n]*+\]\][\"'”’*`)]{0,3}+[ \t]++(?:if|for\ a\ tie)\b[^\n.]*+"
    r"|\bfor\ (?:instance|example)[:,]?+[ \t]*+[\"'“‘*`]{0,3}+(?:\w++:?+["
    r" \t]*+){0,2}+[\"'“‘*`]{0,3}+\[\[[^\[\]\n]*+\]\]"
)
_NUMBER = r"[+\-−]?(?:\d++(?:\.\d*+)?|\.\d++)(?:e[+\-]?\d++)?"
_RATING = re.compile(
    r"(?:(?:\w++\s++){0,3}(?:rating|score|grade)\s*+(?:is\s|[:=])?\s*+)?"
    rf"(?P<number>{_NUMBER})"
    rf"(?:\s*+(?:/|out\s++of\b)\s*+(?P<scale>{_NUMBER}))?",
    re.IGNORECASE,
)


def parse_rating(text: str) -> float | None:
    """The rating from 1 to 10 in the last well-formed ``[[…]]``; None if there is none, or it is out of range."""
    for inner in reversed(_BRACKETS.findall(_stated(text))):
        rating = _rating(inner)
        if rating is not None:
            return rating if LOWEST <= rating <= HIGHEST else None
    return None


def parse_verdict(text: str) -> Verdict | None:
    """The last of ``[[A]]``, ``[[B]]`` and ``[[C]]`` (a tie); None if there is none."""
    verdicts = _VERDICT.findall(_stated(text))
    return _VERDICTS[verdicts[-1].upper()] if verdicts else None


def parse_yes_no(text: str) -> bool | None:
    """The last of ``[[yes]]`` and ``[[no]]``, case and inner spaces ignored; None if there is none."""
    words = _YES_NO.findall(_stated(text))
    return words[-1].lower() == "yes" if words else None


def _stated(text: str) -> str:
    """A reply without thoughts, and without what it repeats of its instructions."""
    return _REPEATED.sub("", thoughts.without_thoughts(text or ""))


_VERDICTS: dict[str, Verdict] = {"A": "A", "B": "B", "C": "tie"}


def _rating(inner: str) -> float | None:
    """The number that a rating's text states, inf if it is on another scale than ten, None if it states none."""
    match = _RATING.fullmatch(inner.strip().strip("*").strip())
    if not match:
        return None
    scale = match["scale"]
    return _float(match["number"]) if scale is None or _float(scale) == HIGHEST else math.inf


def _float(number: str) -> float:
    try:
        return float(number.replace("−", "-"))
    except (ValueError, OverflowError):
        return math.inf


# ------------------------------------------------------------------------ the filter's reply

_ACCEPT = {"accept", "accepted", "keep", "kept", "yes", "pass", "good"}
_REJECT = {"reject", "rejected", "drop", "discard", "no", "fail", "bad"}
_WORDS = re.compile(r"[a-z]++")
_FIELD = re.compile(
    r"(?:^[ \t>*#_\-\"'{,]*+|[{,;|]\s*+[*\"']*+)(status|verdict|rating|score|reason)\b[ \t*_\"']*+[:=][ \t*]*+",
    re.IGNORECASE | re.MULTILINE,
)
_LOOSE_FIELD = re.compile(
    r"(?<![\w/])(status|verdict|decision|rating|score|reason)\b[ \t*_\"']*+(?:[:=：|>]|-(?=\s)|is\s)[ \t*|\"']*+",
    re.IGNORECASE,
)
_OF_TEN = re.compile(r"\s*+\(?+\s*+(?:out\s++)?of\s++(?:10|ten)\b\s*+\)?+", re.IGNORECASE)
_OBJECTS_TRIED = 32
_FIELD_NAMES = {"verdict": "status", "decision": "status", "score": "rating"}


def parse_filter_reply(text: str) -> tuple[Status, float, str] | None:
    """Status, rating and reason in a filter judge's reply; None if status or rating cannot be read.

    Understands a JSON object anywhere in the reply, or lines "Status: …", "Rating: …",
    "Reason: …" in any order and dress, or, where that fails, the three words anywhere, in a
    sentence, a table or tags; where a field is given twice the last counts. What is
    thought aloud is no verdict. The reason may be missing ("" then) and may run over several lines.
    """
    text = thoughts.without_thoughts(text or "")
    for fields in (*_json_objects(text), _labelled(text, _FIELD), _labelled(text, _LOOSE_FIELD)):
        status, rating = _status(fields.get("status")), _field_rating(fields.get("rating"))
        if status is not None and rating is not None:
            reason = fields.get("reason")
            return status, rating, reason.strip() if isinstance(reason, str) else ""
    return None


def _json_objects(text: str) -> list[dict[str, Any]]:
    """JSON objects in a text, the last first, keys in lower case."""
    starts = [match.start() for match in re.finditer(r"\{", text)]
    decoder, found = json.JSONDecoder(), []
    # Tried from the end and only so often: each try may read the whole rest of the text.
    for start in reversed(starts[-_OBJECTS_TRIED:]):
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        found.append(_named({str(k).strip().lower(): v for k, v in value.items()}))
    return found


def _labelled(text: str, field: re.Pattern[str]) -> dict[str, Any]:
    matches = list(field.finditer(text))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    return _named(
        {match[1].lower(): text[match.end() : end].strip() for match, end in zip(matches, ends, strict=False)}
    )


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields under one name each; a field's own name goes before its synonym."""
    return {
        **{_FIELD_NAMES.get(k, k): v for k, v in fields.items() if k in _FIELD_NAMES},
        **{k: v for k, v in fields.items() if k not in _FIELD_NAMES},
    }


def _status(value: Any) -> Status | None:
    """The one verdict that the words allow: "accept or reject" and "not acceptable" state none."""
    if not isinstance(value, str):
        return None
    words = set(_WORDS.findall(_first_line(value).lower()))
    accept, reject = bool(words & _ACCEPT), bool(words & _REJECT)
    if accept == reject or "not" in words:
        return None
    return "accept" if accept else "reject"


def _field_rating(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        line = _first_line(value)
        rating = parse_rating(line) if "[[" in line else _leading_rating(line)
    else:
        rating = float(value) if abs(value) <= HIGHEST else None
    return rating if rating is not None and LOWEST <= rating <= HIGHEST else None


def _leading_rating(line: str) -> float | None:
    """The number a line begins with; None if more numbers follow, as in "7-8" or "1 to 10", other
    than the scale's ten.
    """
    line = line.lstrip("\"'* ")
    match = _RATING.match(line)
    if not match or any(c.isdigit() for c in _OF_TEN.sub("", line[match.end() :], count=1)):
        return None
    return _rating(match[0])


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
