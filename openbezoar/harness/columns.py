"""Plain rows → the columns that lm-eval's own task definitions read. See docs/data.md.

Reads nothing and writes nothing. A row without its fields raises DataError naming file,
row and field. The rows' text is brought to the form that the official data sets have, so
that the official prompt comes out once it is filled in: BoolQ's prompt adds the question
mark, COPA's the connective, HellaSwag's definition removes the WikiHow marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from openbezoar.errors import DataError, fields_of, shown
from openbezoar.rows.records import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Fields:
    """The checked fields of one row."""

    row: Mapping[str, Any]
    where: str  # file and row, for errors

    def wrong(self, name: str, expected: str) -> DataError:
        state = f"it is {shown(self.row[name])}" if name in self.row else f"the row has {fields_of(self.row)}"
        return DataError(
            f"{self.where}: field '{name}': expected {expected}, {state}; 'openbezoar docs data' has the fields"
        )

    def text(self, name: str) -> str:
        """A text that is not blank."""
        value = self.row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(name, "a text")
        return value

    def choices(self, n: int | None = None) -> list[str]:
        """Two answers or more, or exactly ``n``."""
        value = self.row.get("choices")
        if (
            not isinstance(value, list)
            or not all(isinstance(c, str) and c for c in value)
            or not (len(value) == n if n else len(value) >= 2)
        ):
            raise self.wrong("choices", f"a list of {n or '2 or more'} texts")
        return value

    def gold(self, n: int) -> int:
        """Index of the right one of ``n`` answers."""
        value = self.row.get("gold")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < n:
            raise self.wrong("gold", f"the right answer's index, 0 to {n - 1}")
        return value

    def inner(self, name: str) -> Fields:
        """The fields of an object inside the row."""
        value = self.row.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object with 'choices'")
        return Fields(value, f"{self.where}: {name}")


def arc(f: Fields) -> Row:
    """``allenai/ai2_arc``."""
    choices = f.choices()
    if len(choices) > len(LETTERS):
        raise f.wrong("choices", f"at most {len(LETTERS)} texts")
    return {
        "question": f.text("question"),
        "choices": {"text": choices, "label": list(LETTERS[: len(choices)])},
        "answerKey": LETTERS[f.gold(len(choices))],
    }


def openbookqa(f: Fields) -> Row:
    """``allenai/openbookqa``."""
    row = arc(f)
    return {"question_stem": row.pop("question"), **row}


def boolq(f: Fields) -> Row:
    """``aps/super_glue``, boolq: questions end without a question mark; choices are no and yes."""
    if "choices" in f.row and [c.lower() for c in f.choices(2)] != ["no", "yes"]:
        raise f.wrong("choices", '["no", "yes"]')
    return {
        "passage": f.text("passage"),
        "question": f.text("question").rstrip().removesuffix("?").rstrip(),
        "label": f.gold(2),
    }


_SENTENCE_END = re.compile(r"[.?!][\"')]*\s+(?=[a-z])")


def hellaswag(f: Fields) -> Row:
    """``Rowan/hellaswag``: ctx_b is the unfinished last sentence of a video caption, which lm-eval capitalises.

    Rows need not have the ``activity_label`` that the official context begins with.
    """
    choices, context = f.choices(4), f.text("question").strip()
    unfinished = [] if "[" in context else list(_SENTENCE_END.finditer(context))
    cut = unfinished[-1].end() if unfinished else len(context)
    first, second = context[:cut].rstrip(), context[cut:]
    label = f.row.get("activity_label")
    if label is None:
        # lm-eval joins label, colon and context, then deletes everything in brackets:
        # a bracket around label and colon leaves the context alone.
        label, first = "[", "]" + first.removeprefix("[header]").lstrip()
    return {"activity_label": str(label), "ctx_a": first, "ctx_b": second, "endings": choices, "label": str(f.gold(4))}


def mmlu(f: Fields) -> Row:
    """``cais/mmlu``, one subject."""
    return {"question": f.text("question"), "choices": f.choices(4), "answer": f.gold(4)}


def piqa(f: Fields) -> Row:
    """``baber/piqa``."""
    first, second = f.choices(2)
    return {"goal": f.text("question"), "sol1": first, "sol2": second, "label": f.gold(2)}


def rte(f: Fields) -> Row:
    """``nyu-mll/glue``, rte: 0 is entailed (True), 1 is not (False)."""
    return {"sentence1": f.text("premise"), "sentence2": f.text("hypothesis"), "label": f.gold(2)}


def winogrande(f: Fields) -> Row:
    """``allenai/winogrande``: one blank, written '_'."""
    sentence, (first, second) = f.text("sentence"), f.choices(2)
    if sentence.count("_") != 1:
        raise f.wrong("sentence", "a text with one '_'")
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(f.gold(2) + 1)}


_CONNECTIVES = {"because": "cause", "therefore": "effect"}


def copa(f: Fields) -> Row:
    """``aps/super_glue``, copa: lm-eval drops the premise's full stop and adds the connective."""
    premise, _, connective = f.text("question").strip().rpartition(" ")
    if connective not in _CONNECTIVES or not premise:
        raise f.wrong("question", "a text that ends with 'because' or 'therefore'")
    first, second = f.choices(2)
    return {
        "premise": premise.rstrip(" ,.") + ".",
        "question": _CONNECTIVES[connective],
        "choice1": first,
        "choice2": second,
        "label": f.gold(2),
    }


def social_iqa(f: Fields) -> Row:
    """``lighteval/siqa``: the prompt joins context and question by a space, so where they part does not show."""
    context, _, question = f.text("question").strip().rpartition(" ")
    a, b, c = f.choices(3)
    return {
        "context": context,
        "question": question,
        "answerA": a,
        "answerB": b,
        "answerC": c,
        "label": str(f.gold(3) + 1),
    }


def lambada(f: Fields) -> Row:
    """``EleutherAI/lambada_openai``: the last word of the text is to be found."""
    word = f.text("continuation").strip()
    if " " in word:
        raise f.wrong("continuation", "one word")
    return {"text": f"{f.text('context').rstrip()} {word}"}


def gsm8k(f: Fields) -> Row:
    """``openai/gsm8k``: the answer ends with '#### n'."""
    answer = f.text("answer")
    if "####" not in answer:
        raise f.wrong("answer", "a worked answer that ends with '#### n'")
    return {"question": f.text("question"), "answer": answer}


def ifeval(f: Fields) -> Row:
    """``google/IFEval``: the prompt, the names of its instructions, and the settings of each of them."""
    names, settings = f.row.get("instruction_id_list"), f.row.get("kwargs")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise f.wrong("instruction_id_list", "the instructions' names")
    if (
        not isinstance(settings, list)
        or len(settings) != len(names)
        or not all(isinstance(one, dict) for one in settings)
    ):
        raise f.wrong("kwargs", f"an object for each of the {len(names)} instructions")
    return {
        "key": f.row.get("key", f.row.get("id")),
        "prompt": f.text("prompt"),
        "instruction_id_list": names,
        "kwargs": settings,
    }


def truthfulqa_mc1(f: Fields) -> Row:
    """``truthfulqa/truthful_qa``, multiple_choice: lm-eval takes the first choice for the right one."""
    mc1 = f.inner("mc1")
    choices = mc1.choices()
    right = choices[mc1.gold(len(choices))]
    ordered = [right, *(c for i, c in enumerate(choices) if i != mc1.row["gold"])]
    return {
        "question": f.text("question"),
        "mc1_targets": {"choices": ordered, "labels": [1] + [0] * (len(ordered) - 1)},
    }


def truthfulqa_mc2(f: Fields) -> Row:
    """``truthfulqa/truthful_qa``, multiple_choice: any number of right choices."""
    mc2 = f.inner("mc2")
    choices, labels = mc2.row.get("choices"), mc2.row.get("labels")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise mc2.wrong("choices", "a list of texts")
    if not isinstance(labels, list) or len(labels) != len(choices) or not set(labels) <= {0, 1} or 1 not in labels:
        raise mc2.wrong("labels", "1 or 0 for each choice, one 1 at least")
    return {"question": f.text("question"), "mc2_targets": {"choices": choices, "labels": labels}}


Columns = Callable[[Fields], Row]
