"""Where what a model says begins, after what it thought aloud. Takes text, gives text; never
raises, in time linear in the text's length.

Reasoning models write their thoughts before their answer, between marks that differ by family;
a chat template may have written the opening mark already, so that only the closing one is in
the reply. What is said begins after the thoughts. A thought that is not closed was cut off:
then nothing was said. An answer *about* such marks keeps them: a mark counts where a thought
can begin (first of all, or on a line of its own, outside of code), not in quotation marks, and
a closing one not where its sentence goes on after it.

Marks as the families' chat templates and vLLM's reasoning parsers have them (docs.vllm.ai, ``vllm.reasoning``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_PAIRS = {
    # R1, Qwen, Seed-OSS, MiniMax, LongCat
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "seed:think", "mm:think", "longcat_think")},
    "[THINK]": "[/THINK]",  # Magistral
    "\u25c1think\u25b7": "\u25c1/think\u25b7",  # Kimi-VL
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1, OpenThinker
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|channel>": "<channel|>",  # Gemma 4
    "<unused94>": "<unused95>",  # MedGemma
    "[unused16]": "[unused17]",  # openPangu
    "<|think|>": "<|/think|>",
}
# Words that stand between angle brackets in plain answers too: thoughts only where an answer begins with them.
_WORDS = {f"<{name}>": f"</{name}>" for name in ("thought", "thoughts", "reasoning", "reflection", "scratchpad")}
_CLOSES = {close.lower(): opened.lower() for opened, close in (_PAIRS | _WORDS).items()}
_OPENS = {opened.lower(): close for opened, close in (_PAIRS | _WORDS).items()}
_STRONG = {opened.lower() for opened in _PAIRS}
_MARK = re.compile("|".join(map(re.escape, (*_PAIRS, *_WORDS, *_PAIRS.values(), *_WORDS.values()))), re.IGNORECASE)

# Granite 3.2 has sentences in place of marks.
_THOUGHT_PROCESS = re.compile(r"\s*+Here(?:'s| is) my thought process:", re.IGNORECASE)
_RESPONSE = re.compile(r"Here(?:'s| is) my response:", re.IGNORECASE)

# gpt-oss writes messages in channels, of which only 'final' is for the reader
# (cookbook.openai.com/articles/openai-harmony).
_CHANNEL = re.compile(r"<\|channel\|>\s*+(\w++)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>")
_CHANNELS = re.compile(r"\s*+(?:<\|start\|>)?(?:assistant)?\s*+<\|channel\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
# the same without its special tokens
_BARE_CHANNELS = re.compile(r"\s*+analysis(?=[A-Z]|.*?assistantfinal)", re.DOTALL)
_HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")

_SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
_AROUND = re.compile("|".join(map(re.escape, _SOLUTION)))
_WRAPPERS = ("answer", "response", "output", "final_answer", "solution")
_WRAPPED = re.compile(rf"<({'|'.join(_WRAPPERS)})>", re.IGNORECASE)
_LINE = 24  # characters before a mark that are looked at for the beginning of its line
_GOES_ON = re.compile(r" ?[,.;:!?)](?=\s|$)")
_QUOTES = frozenset("`\"'“‘«")


@dataclass(frozen=True)
class SplitReply:
    """A reply taken apart. whole: every thought was closed."""

    answer: str
    thoughts: str = ""
    whole: bool = True


def split(text: str) -> SplitReply:
    """What was said and what was thought. A reply without thoughts is said as it stands."""
    if _CHANNELS.match(text) or (text.lstrip()[:8].lower() == "analysis" and _BARE_CHANNELS.match(text)):
        return _channels(text)
    if opened := _THOUGHT_PROCESS.match(text):
        closed = _RESPONSE.search(text, opened.end())
        return (
            SplitReply(text[closed.end() :].strip(), text[opened.end() : closed.start()].strip())
            if closed
            else SplitReply("", text[opened.end() :].strip(), False)
        )
    answer, thoughts, whole = _marked(text)
    if thoughts is None:
        return SplitReply(text) if not _AROUND.search(text) else SplitReply(_AROUND.sub("", text).strip())
    return SplitReply(_unwrapped(_AROUND.sub("", answer).strip()), thoughts.strip(), whole)


def without_thoughts(text: str) -> str:
    """What was said."""
    return split(text).answer


def mentions(text: str) -> bool:
    """Whether a text has any such mark in it, as a question about them has."""
    return _MARK.search(text) is not None or "<|channel|>" in text


def opening(prompt: str) -> str:
    """The mark of a thought that a prompt ends in, with the blanks after it; "" if it ends in none."""
    bare = prompt.rstrip()
    mark = next((o for o in _OPENS if bare[-len(o) :].lower() == o), "")
    return prompt[len(bare) - len(mark) :] if mark else ""


def closing(opened: str) -> str:
    """What follows an opening mark (and its blanks) where nothing is thought: the closing mark and a blank line."""
    return f"\n{_OPENS[opened.strip().lower()]}\n\n"


def begins(text: str) -> str:
    """The mark with which a text begins to think, with the blanks around it; "" if it does not."""
    bare = text.lstrip()
    mark = next((o for o in (*_OPENS, "<|channel|>") if bare[: len(o)].lower() == o), "")
    if not mark:
        return ""
    rest = bare[len(mark) :]
    return text[: len(text) - len(rest.lstrip())]


def closes(text: str) -> bool:
    """Whether a text closes a thought that it did not open, as after a prompt that ends in one."""
    reply = _marked(text)
    return reply[1] is not None and not begins(text) and reply[2]


def shown(thoughts: str, answer: str) -> str:
    """Thoughts that were told apart from an answer and the answer as one text again."""
    return f"<think>\n{thoughts}\n</think>\n\n{answer}"


def marks_among(tokens: Iterable[str]) -> set[str]:
    """Those of a tokenizer's special tokens without which thoughts would read as what is said."""
    known = {*_OPENS, *_CLOSES, *(token.lower() for token in (*_HARMONY, *_SOLUTION))}
    return {token for token in tokens if token.strip().lower() in known}


def held(text: str) -> int:
    """How many characters at the end of a growing reply may still turn out to be a mark."""
    tail = text[-_LONGEST:].lower()
    return max(begun(tail, mark) for mark in _ALL)


def begun(text: str, mark: str) -> int:
    """How many characters of a mark's beginning a text ends with."""
    return next((n for n in range(min(len(mark), len(text)), 0, -1) if text.endswith(mark[:n])), 0)


_ALL = (
    *_OPENS,
    *_CLOSES,
    *(mark.lower() for mark in (*_HARMONY, *_SOLUTION)),
    *(f"<{slash}{name}>" for name in _WRAPPERS for slash in ("", "/")),
    "here is my thought process:",
    "here's my thought process:",
)
_LONGEST = max(map(len, _ALL))


# ------------------------------------------------------------------------------- the parts


def _marked(text: str) -> tuple[str, str | None, bool]:
    """(what was said, what was thought or None where no mark counts, whether every thought was closed)."""
    answer: list[str] = []
    thoughts: list[str] = []
    inside, counted = "", False
    pos = looked = fences = 0
    named = -1  # where an opening mark ended that the line speaks of
    spoke = uttered = False  # whether anything but blanks was said up to here; up to the last thought
    for match in _MARK.finditer(text):
        mark = match[0].lower()
        if inside:
            if _CLOSES.get(mark) == inside:
                thoughts.append(text[pos : match.start()])
                inside, pos, looked, spoke, fences = "", match.end(), match.end(), uttered, 0
            continue
        before = text[looked : match.start()]
        fences, spoke, looked = fences + before.count("```"), spoke or bool(before.strip()), match.end()
        if text[match.start() - 1 : match.start()] in _QUOTES or fences % 2:
            spoke = True
        elif mark in _OPENS:
            if not spoke or (mark in _STRONG and _begins_a_line(text, match.start())):
                answer.append(text[pos : match.start()])
                inside, pos, counted, uttered = mark, match.end(), True, spoke
            else:
                spoke, named = True, match.end()
        elif _CLOSES[mark] in _STRONG and not _is_named(text, match, named):  # opened before the reply began
            thoughts += [*answer, text[pos : match.start()]]
            answer, pos, spoke, uttered, fences, counted = [], match.end(), False, False, 0, True
    (thoughts if inside else answer).append(text[pos:])
    return "".join(answer), "\n\n".join(filter(None, map(str.strip, thoughts))) if counted else None, not inside


def _is_named(text: str, close: re.Match[str], opened: int) -> bool:
    """Whether a sentence goes on after a closing mark, or the line that it is in speaks of the
    opening one too: then it is spoken of.
    """
    return _GOES_ON.match(text, close.end()) is not None or (opened >= 0 and "\n" not in text[opened : close.start()])


def _begins_a_line(text: str, place: int) -> bool:
    line = text[max(0, place - _LINE) : place].rpartition("\n")
    return bool(line[1]) and not line[2].strip()


def _channels(text: str) -> SplitReply:
    """A reply in channels; without a final one the thoughts were cut off."""
    if not _CHANNELS.match(text):
        _, _, rest = text.partition("analysis")
        thought, mark, final = rest.rpartition("assistantfinal")
        return SplitReply(final.strip(), thought.strip()) if mark else SplitReply("", rest.strip(), False)
    answer: list[str] = []
    thoughts: list[str] = []
    finals = 0
    for match in _CHANNEL.finditer(text):
        end = _CHANNEL_END.search(text, match.end())
        part = text[match.end() : end.start() if end else len(text)].strip()
        for_reader = match[1].lower() == "final"
        finals += for_reader
        (answer if for_reader else thoughts).append(part)
    return SplitReply("\n\n".join(filter(None, answer)), "\n\n".join(filter(None, thoughts)), bool(finals))


def _unwrapped(text: str) -> str:
    """What was said without tags that enclose the whole of it, as <answer> does after <reasoning>."""
    opened = _WRAPPED.match(text)
    if not opened:
        return text
    inner, close = text[opened.end() :].rstrip(), f"</{opened[1].lower()}>"
    if inner.lower().endswith(close):
        inner = inner[: -len(close)]
    return inner.strip() if close not in inner.lower() else text
