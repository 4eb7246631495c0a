"""Chat templates of seven families, and two more: what each writes, as facts, and a template of ours that writes it.

The facts are of a conversation with a system message and three exchanges (``TALK``): the text of
the finished conversation, and what stands before, and after, the words of an answer at the place
where it was said. A template is as short as that behaviour allows. Special tokens are those that
the family's tokenizer never cuts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from openbezoar.dialogue.templates import TODAY

TALK = (
    ("system", "Be brief."),
    ("user", "Name a sea."),
    ("assistant", "The Baltic."),
    ("user", "And a\nlake?"),
    ("assistant", "Ladoga,\n\nin Russia."),
    ("user", "A river."),
    ("assistant", "The Don."),
)
DAY, LONG_DAY = TODAY.strftime("%d %b %Y"), TODAY.strftime("%d %B %Y")


class Published(NamedTuple):
    """template: ours. whole: what the family's own writes of ``TALK``. lead, end: around an answer
    where it is said. special: its control tokens. bos, eos: as the tokenizer has them.
    """

    template: str
    whole: str
    lead: str
    end: str
    special: tuple[str, ...]
    bos: str
    eos: str


def _loop(body: str, opening: str, before: str = "") -> str:
    return (
        f"{before}{{%- for m in messages %}}{body}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{- {opening!r} }}}}{{%- endif %}}"
    )


_CHATML = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_TURNS = ("<start_of_turn>", "<end_of_turn>")
_INST = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")


def _system_apart(otherwise: str = "") -> str:
    """Takes the system message, or another text where there is none, out of the messages."""
    return (
        f"{{%- set rule = messages[0].content if messages[0].role == 'system' else {otherwise!r} %}}"
        "{%- if messages[0].role == 'system' %}{%- set messages = messages[1:] %}{%- endif %}"
    )


PUBLISHED = {
    # Llama 3.2: dates in the system block, every message trimmed.
    "llama3.2": Published(
        _loop(
            "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "{{- bos_token }}" + _system_apart() + "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting"
            " Knowledge Date: December 2023\\nToday Date: ' + strftime_now('%d %b %Y') + '\\n\\n' + rule | trim +"
            " '<|eot_id|>' }}",
        ),
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December"
            f" 2023\nToday Date: {DAY}\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nName a sea.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nThe Baltic.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nAnd a\nlake?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nLadoga,\n\nin Russia.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nA river.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nThe Don.<|eot_id|>"
        ),
        "",
        "<|eot_id|>",
        _HEADERS,
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    # Qwen 3: an empty thought before the answer to the last question, none before earlier answers.
    "qwen3": Published(
        _loop(
            "{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
            "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{{- m.content + '<|im_end|>\\n' }}",
            "<|im_start|>assistant\n",
            "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
            "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}",
        ),
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a sea.<|im_end|>\n"
            "<|im_start|>assistant\nThe Baltic.<|im_end|>\n<|im_start|>user\nAnd a\nlake?<|im_end|>\n"
            "<|im_start|>assistant\nLadoga,\n\nin Russia.<|im_end|>\n<|im_start|>user\nA river.<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\nThe Don.<|im_end|>\n"
        ),
        "<think>\n\n</think>\n\n",
        "<|im_end|>",
        (*_CHATML, "<|endoftext|>"),
        "",
        "<|im_end|>",
    ),
    # Gemma 3: no system role; its words go before the first question.
    "gemma3": Published(
        _loop(
            "{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (rule + '\\n\\n' if"
            " loop.first and rule else '') + m.content | trim + '<end_of_turn>\\n' }}",
            "<start_of_turn>model\n",
            "{{- bos_token }}" + _system_apart(),
        ),
        (
            "<bos><start_of_turn>user\nBe brief.\n\nName a sea.<end_of_turn>\n"
            "<start_of_turn>model\nThe Baltic.<end_of_turn>\n<start_of_turn>user\nAnd a\nlake?<end_of_turn>\n"
            "<start_of_turn>model\nLadoga,\n\nin Russia.<end_of_turn>\n<start_of_turn>user\nA river.<end_of_turn>\n"
            "<start_of_turn>model\nThe Don.<end_of_turn>\n"
        ),
        "",
        "<end_of_turn>",
        ("<bos>", "<eos>", *_TURNS),
        "<bos>",
        "<eos>",
    ),
    # Phi-4: a separator in place of the line feed, the opening of an answer after every question.
    "phi4": Published(
        (
            "{% for m in messages %}{{ ('' if m.role == 'assistant' else '<|im_start|>' + m.role + '<|im_sep|>') +"
            " m.content + '<|im_end|>' + ('<|im_start|>assistant<|im_sep|>' if m.role == 'user' else '') }}{% endfor %}"
        ),
        (
            "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Name a sea.<|im_end|>"
            "<|im_start|>assistant<|im_sep|>The Baltic.<|im_end|><|im_start|>user<|im_sep|>And a\nlake?<|im_end|>"
            "<|im_start|>assistant<|im_sep|>Ladoga,\n\nin Russia.<|im_end|><|im_start|>user<|im_sep|>A river.<|im_end|>"
            "<|im_start|>assistant<|im_sep|>The Don.<|im_end|>"
        ),
        "",
        "<|im_end|>",
        (*_CHATML, "<|im_sep|>", "<|endoftext|>"),
        "<|endoftext|>",
        "<|im_end|>",
    ),
    # SmolLM 2: ChatML, with a system message of its own where there is none.
    "smollm2": Published(
        _loop(
            "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}",
            "<|im_start|>assistant\n",
            "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful AI assistant named"
            " SmolLM, trained by Hugging Face<|im_end|>\\n' }}{%- endif %}",
        ),
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a sea.<|im_end|>\n"
            "<|im_start|>assistant\nThe Baltic.<|im_end|>\n<|im_start|>user\nAnd a\nlake?<|im_end|>\n"
            "<|im_start|>assistant\nLadoga,\n\nin Russia.<|im_end|>\n<|im_start|>user\nA river.<|im_end|>\n"
            "<|im_start|>assistant\nThe Don.<|im_end|>\n"
        ),
        "",
        "<|im_end|>",
        (*_CHATML, "<|endoftext|>"),
        "<|im_start|>",
        "<|im_end|>",
    ),
    # SmolLM 3: dates and the mode of reasoning in the system block, which holds the system message.
    "smollm3": Published(
        _loop(
            "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}",
            "<|im_start|>assistant\n",
            _system_apart("You are a helpful AI assistant named SmolLM, trained by Hugging Face.")
            + "{{- '<|im_start|>system\\n## Metadata\\n\\nKnowledge Cutoff Date: June 2025\\nToday Date: ' +"
            " strftime_now('%d %B %Y') + '\\nReasoning Mode: /think\\n\\n## Custom Instructions\\n\\n' + rule +"
            " '\\n\\n<|im_end|>\\n' }}",
        ),
        (
            f"<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: {LONG_DAY}\nReasoning"
            " Mode: /think\n\n## Custom Instructions\n\nBe brief.\n\n<|im_end|>\n"
            "<|im_start|>user\nName a sea.<|im_end|>\n<|im_start|>assistant\nThe Baltic.<|im_end|>\n"
            "<|im_start|>user\nAnd a\nlake?<|im_end|>\n<|im_start|>assistant\nLadoga,\n\nin Russia.<|im_end|>\n"
            "<|im_start|>user\nA river.<|im_end|>\n<|im_start|>assistant\nThe Don.<|im_end|>\n"
        ),
        "",
        "<|im_end|>",
        (*_CHATML, "<|end_of_text|>"),
        "<|begin_of_text|>",
        "<|im_end|>",
    ),
    # Mistral v0.3: the system message goes before the last question, if that is the last turn.
    "mistral-v0.3": Published(
        _loop(
            "{{- '[INST] ' + (rule + '\\n\\n' if loop.last and rule else '') + m.content + '[/INST]' if m.role =="
            " 'user' else ' ' + m.content + eos_token }}",
            "",
            "{{- bos_token }}" + _system_apart(),
        ),
        (
            "<s>[INST] Name a sea.[/INST] The Baltic.</s>[INST] And a\nlake?[/INST] Ladoga,\n\nin Russia.</s>"
            "[INST] A river.[/INST] The Don.</s>"
        ),
        " ",
        "</s>",
        ("<s>", "</s>", *_INST),
        "<s>",
        "</s>",
    ),
    # Mistral's template of version 7: a block for the system message, no blanks.
    "mistral-v7": Published(
        _loop(
            "{{- {'system': '[SYSTEM_PROMPT]', 'user': '[INST]', 'assistant': ''}[m.role] + m.content + {'system':"
            " '[/SYSTEM_PROMPT]', 'user': '[/INST]', 'assistant': eos_token}[m.role] }}",
            "",
            "{{- bos_token }}",
        ),
        (
            "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Name a sea.[/INST]The Baltic.</s>"
            "[INST]And a\nlake?[/INST]Ladoga,\n\nin Russia.</s>[INST]A river.[/INST]The Don.</s>"
        ),
        "",
        "</s>",
        ("<s>", "</s>", *_INST),
        "<s>",
        "</s>",
    ),
    # OLMo 2: a line feed after every end but the last.
    "olmo2": Published(
        _loop(
            "{{- '<|' + m.role + '|>\\n' + m.content + (eos_token if m.role == 'assistant' else '') + ('' if m.role =="
            " 'assistant' and loop.last else '\\n') }}",
            "<|assistant|>\n",
            "{{- bos_token }}",
        ),
        (
            "<|endoftext|><|system|>\nBe brief.\n<|user|>\nName a sea.\n<|assistant|>\nThe Baltic.<|endoftext|>\n"
            "<|user|>\nAnd a\nlake?\n<|assistant|>\nLadoga,\n\nin Russia.<|endoftext|>\n"
            "<|user|>\nA river.\n<|assistant|>\nThe Don.<|endoftext|>"
        ),
        "",
        "<|endoftext|>",
        ("<|endoftext|>",),
        "<|endoftext|>",
        "<|endoftext|>",
    ),
}


def tokenizer_of(folder: Path, family: Published) -> Any:
    """The tokenizer in a folder with a family's template, control tokens, beginning and end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.bos_token, tokenizer.eos_token = family.bos or None, family.eos
    tokenizer.chat_template = family.template
    return tokenizer
