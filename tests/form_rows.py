"""Rows of every form, and what each says: shared by the tests of what is trained and by those that hold it against
TRL's own processing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from published import Published, tokenizer_of

from openbezoar.rows.records import Row

# The end of a turn is what its speaker says last, as templates with generation marks have it for TRL.
CHATML = Published(
    template=(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    whole="",
    lead="",
    end="<|im_end|>",
    special=("<|im_start|>", "<|im_end|>"),
    bos="",
    eos="<|im_end|>",
)

Spoken = list[tuple[str, str]]
"""(role, what is said) in order"""

SYSTEM, ASK, TELL = ("system", "Be brief."), ("user", "Name a sea."), ("assistant", "The Baltic.")
NO, MORE, THEN = ("assistant", "No."), ("user", "And a\nlake?"), ("assistant", "Ladoga,\n\nin Russia.")
LONG: Spoken = [SYSTEM, ASK, TELL, MORE, THEN]


def messages(said: Spoken) -> list[Row]:
    return [{"role": role, "content": content} for role, content in said]


def shared(said: Spoken) -> list[Row]:
    """ShareGPT's."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[role], "value": content} for role, content in said]


def hh(said: Spoken) -> str:
    """HH-RLHF's."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[role]}: {content}" for role, content in said)


# name: (row, what is said, places of the answers that are learnt)
EXAMPLES: dict[str, tuple[Row, Spoken, tuple[int, ...]]] = {
    "instruction": ({"instruction": ASK[1], "response": TELL[1]}, [ASK, TELL], (1,)),
    "alpaca": (
        {"instruction": "Name a sea.", "input": "Of Europe.", "output": TELL[1], "text": "Below is …"},
        [("user", "Name a sea.\n\nOf Europe."), TELL],
        (1,),
    ),
    "alpaca without input": ({"instruction": ASK[1], "input": "", "output": TELL[1]}, [ASK, TELL], (1,)),
    "dolly": (
        {"instruction": "Name a sea.", "context": "Of Europe.", "response": TELL[1], "category": "closed_qa"},
        [("user", "Name a sea.\n\nOf Europe."), TELL],
        (1,),
    ),
    "prompt and completion": ({"prompt": ASK[1], "completion": TELL[1]}, [ASK, TELL], (1,)),
    "prompt and response": ({"prompt": ASK[1], "response": TELL[1]}, [ASK, TELL], (1,)),
    "completion of messages": (
        {"prompt": messages(LONG[:4]), "completion": messages(LONG[4:])},
        LONG,
        (4,),
    ),
    "completion of turns": ({"prompt": messages(LONG[:2]), "completion": messages(LONG[2:])}, LONG, (2, 4)),
    "openorca": (
        {"id": "x", "system_prompt": SYSTEM[1], "question": ASK[1], "response": TELL[1]},
        [SYSTEM, ASK, TELL],
        (2,),
    ),
    "question and answer": ({"question": ASK[1], "answer": TELL[1]}, [ASK, TELL], (1,)),
    "task": ({"input": ASK[1], "target": TELL[1]}, [ASK, TELL], (1,)),
    "flan": ({"inputs": ASK[1], "targets": TELL[1], "task": "t"}, [ASK, TELL], (1,)),
    "messages": ({"messages": messages(LONG)}, LONG, (2, 4)),
    "tulu 3 sft": ({"id": "x", "messages": messages(LONG[1:]), "source": "s"}, LONG[1:], (1, 3)),
    "ultrachat": (
        {"prompt": ASK[1], "prompt_id": "x", "messages": messages(LONG[1:])},
        LONG[1:],
        (1, 3),
    ),
    "smoltalk 2": (
        {
            "messages": messages(LONG[1:]),
            "chat_template_kwargs": {
                "custom_instructions": SYSTEM[1],
                "enable_thinking": False,
                "python_tools": [],
                "xml_tools": None,
            },
            "source": "s",
        },
        LONG,
        (2, 4),
    ),
    "openai": (
        {"messages": [{**m, "weight": 0} if m["content"] == TELL[1] else {**m, "name": "x"} for m in messages(LONG)]},
        LONG,
        (4,),
    ),
    "parts": (
        {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages(LONG)]},
        LONG,
        (2, 4),
    ),
    "agentinstruct": ({"messages": json.dumps(messages(LONG))}, LONG, (2, 4)),
    "sharegpt": ({"id": "x", "conversations": shared(LONG[1:])}, LONG[1:], (1, 3)),
    "openhermes": (
        {"conversations": shared(LONG), "system_prompt": SYSTEM[1], "source": "s", "hash": None},
        LONG,
        (2, 4),
    ),
    "conversation": ({"conversation": messages(LONG)}, LONG, (2, 4)),
    "lima": ({"conversations": [content for _, content in LONG[1:]], "source": "s"}, LONG[1:], (1, 3)),
}
PAIRED = [ASK, TELL, MORE, THEN], [ASK, TELL, MORE, NO]
# name: (row, what is said with the answer that is preferred, and with the other)
PAIRS: dict[str, tuple[Row, tuple[Spoken, Spoken]]] = {
    "hh": ({"chosen": hh(PAIRED[0]), "rejected": hh(PAIRED[1])}, PAIRED),
    "rm-static": (
        {"prompt": hh(PAIRED[0][:3]) + "\n\nAssistant:", "chosen": f" {THEN[1]}", "rejected": f" {NO[1]}"},
        PAIRED,
    ),
    "texts": ({"prompt": ASK[1], "chosen": TELL[1], "rejected": NO[1]}, ([ASK, TELL], [ASK, NO])),
    "orca_dpo_pairs": (
        {"system": SYSTEM[1], "question": ASK[1], "chosen": TELL[1], "rejected": NO[1]},
        ([SYSTEM, ASK, TELL], [SYSTEM, ASK, NO]),
    ),
    "argilla": (
        {"system": SYSTEM[1], "input": ASK[1], "chosen": TELL[1], "rejected": NO[1], "rating": [9, 2]},
        ([SYSTEM, ASK, TELL], [SYSTEM, ASK, NO]),
    ),
    "ultrafeedback": (
        {
            "prompt": ASK[1],
            "prompt_id": "x",
            "chosen": messages([ASK, TELL]),
            "rejected": messages([ASK, NO]),
            "messages": messages([ASK, TELL]),
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        ([ASK, TELL], [ASK, NO]),
    ),
    "tulu 3 preferences": (
        {
            "id": "x",
            "source": "s",
            "prompt": ASK[1],
            "chosen": messages(PAIRED[0]),
            "rejected": messages(PAIRED[1]),
            "chosen_rating": 5.0,
            "rejected_rating": 2.0,
            "chosen_model": "m",
        },
        PAIRED,
    ),
    "implicit prompt": (
        {"chosen": messages([SYSTEM, *PAIRED[0]]), "rejected": messages([SYSTEM, *PAIRED[1]])},
        ([SYSTEM, *PAIRED[0]], [SYSTEM, *PAIRED[1]]),
    ),
    "explicit prompt": (
        {"prompt": messages(PAIRED[0][:3]), "chosen": messages([THEN]), "rejected": messages([NO])},
        PAIRED,
    ),
    "last messages": (
        {"prompt": ASK[1], "chosen": messages([TELL])[0], "rejected": messages([NO])[0]},
        ([ASK, TELL], [ASK, NO]),
    ),
    "helpsteer 3": (
        {
            "domain": "d",
            "context": messages(PAIRED[0][:3]),
            "response1": NO[1],
            "response2": THEN[1],
            "overall_preference": 2,
        },
        PAIRED,
    ),
}
UNPAIRED: dict[str, tuple[Row, Spoken, bool]] = {
    "texts": ({"prompt": ASK[1], "completion": TELL[1], "label": True}, [ASK, TELL], True),
    "messages": ({"prompt": messages([ASK]), "completion": messages([NO]), "label": False}, [ASK, NO], False),
    "numbers": ({"prompt": messages(LONG[:4]), "completion": messages(LONG[4:]), "label": 1}, LONG, True),
}


def chatml(tiny: Path) -> Any:
    """The tiny model's tokenizer with the template above."""
    return tokenizer_of(tiny, CHATML)


def ids_and_mask(tokenizer: Any, said: Spoken, learnt: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """ChatML written out by hand: token ids, and 1 where an answer and its end are."""
    ids: list[int] = []
    mask: list[int] = []
    for place, (role, content) in enumerate(said):
        for text, scored in ((f"<|im_start|>{role}\n", False), (f"{content}<|im_end|>", place in learnt)):
            tokens = tokenizer(text, add_special_tokens=False).input_ids
            ids += tokens
            mask += [int(scored)] * len(tokens)
    return ids, mask
