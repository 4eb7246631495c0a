"""Conversation → text → token ids, by one chat template that training, inference and the release share.

The template is Jinja, as tokenizers carry it, so that what a release's
``apply_chat_template`` renders is by construction what was trained. Two things are kept
apart: the *prompt* (as it is sent at inference) and the *answer*, which begins exactly where
the prompt ends and closes with the end-of-turn tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from openbezoar.errors import ModelError
from openbezoar.recipe import PromptSpec
from openbezoar.records import Turn
from openbezoar.textfiles import read_text
from openbezoar.tokens import Frame

# The system message and the format are facts of the released models' prompt [card].
SYSTEM = (
    "Below is an instruction that describes a task, optionally paired with an input that provides further context "
    "following that instruction. Write a response that appropriately completes the request."
)

STOP = ("### System:", "### Instruction:", "### Response:")

# {BOS}, {SYSTEM} and {END} are filled in by Formatter. An empty system message leaves the block out.
# Whether a line feed follows '### Response:' in the paper is not known; here it does.
_OPENBEZOAR = (
    "{BOS}{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = {SYSTEM} -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- if system -%}{{ '### System:\\n' + system + '\\n\\n' }}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}{{ '### Instruction:\\n' + turn['content'] + '\\n\\n' }}"
    "{%- elif turn['role'] == 'assistant' -%}{{ '### Response:\\n' + turn['content'] + {END} }}{%- if not loop.last -%}{{ '\\n\\n' }}{%- endif -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"
)


class Formatter:
    """One tokenizer with one prompt format. A template that is a file has its whole path in ``spec``.

    Raises ModelError for a tokenizer without an end-of-sequence token, and for a template that is not there.
    """

    def __init__(self, tokenizer: Any, spec: PromptSpec) -> None:
        self.tokenizer, self.spec = tokenizer, spec
        if tokenizer.eos_token is None:
            raise ModelError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token; a model could not learn to stop")
        self.adds_bos = tokenizer.bos_token_id is not None and Frame.of(tokenizer).before[:1] == (tokenizer.bos_token_id,)
        self.jinja, self.stop = self._template()
        self._last: tuple[tuple[Turn, ...], str] | None = None
        self.boundary_shifts = 0  # answers whose first token would have merged with the prompt's last

    def _template(self) -> tuple[str, tuple[str, ...]]:
        kind = self.spec.template
        if kind == "openbezoar":
            end = self.tokenizer.eos_token if self.spec.append_eos else ""
            bos = "{{ bos_token }}" if self.adds_bos else ""
            system = self.spec.system if self.spec.system is not None else SYSTEM
            return _OPENBEZOAR.replace("{BOS}", bos).replace("{SYSTEM}", _literal(system)).replace("{END}", _literal(end)), STOP
        if kind == "own":
            if not self.tokenizer.chat_template:
                raise ModelError(f"{self.tokenizer.name_or_path}: the model has no chat template of its own; use prompt: {{template: openbezoar}}")
            template = str(self.tokenizer.chat_template)
            return template, tuple(stop for stop in STOP if stop in template)  # a release's template is the trained one
        path = Path(kind).expanduser()
        if not path.is_file():
            raise ModelError(f"prompt.template: '{kind}' is neither 'openbezoar', 'own' nor a file ({path})")
        return read_text(path, ModelError), ()

    @property
    def default_system(self) -> str | None:
        """The system message when a conversation brings none; None where the template decides."""
        if self.spec.system is not None:
            return self.spec.system
        return SYSTEM if self.spec.template == "openbezoar" else None

    def _render(self, turns: Sequence[Turn], generation: bool) -> str:
        messages = [turn.as_dict() for turn in turns]
        if self.spec.system is not None and (not messages or messages[0]["role"] != "system"):
            messages.insert(0, {"role": "system", "content": self.spec.system})
        try:
            return str(self.tokenizer.apply_chat_template(messages, chat_template=self.jinja, tokenize=False, add_generation_prompt=generation))
        except TemplateError as error:  # by raise_exception too, as templates without a system role do
            shown = ", ".join(message["role"] for message in messages)
            raise ModelError(
                f"{self.tokenizer.name_or_path}: the chat template '{self.spec.template}' refuses a conversation of {shown} ({' '.join(str(error).split())}); "
                "mend the template, or name another as prompt: {template: …}"
            ) from None

    def prompt_text(self, turns: Sequence[Turn]) -> str:
        """The text that is sent at inference; it ends where the answer begins."""
        # A pair asks for its prompt three times in a row.
        if self._last is None or self._last[0] != tuple(turns):
            self._last = tuple(turns), self._render(turns, True)
        return self._last[1]

    def _ids(self, text: str) -> list[int]:
        # The template writes a beginning-of-sequence token where the tokenizer wants one; never twice.
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of ``prompt_text``, one beginning-of-sequence token at most."""
        return self._ids(self.prompt_text(turns))

    @cached_property
    def end_text(self) -> str:
        """What closes an answer, as the template writes it; empty if the recipe trains no end."""
        if not self.spec.append_eos:
            return ""
        probe = (Turn("user", "x"), Turn("assistant", "\u2021y"))
        tail = self._render(probe, False).rpartition("\u2021y")[2]
        # A template may write a line feed after its end-of-turn token; generation stops before it.
        return tail.rstrip("\n") or self.tokenizer.eos_token

    @cached_property
    def end_ids(self) -> list[int]:
        """Token ids of ``end_text``."""
        return self._ids(self.end_text) if self.end_text else []

    def answer_ids(self, turns: Sequence[Turn], answer: str, prompt_ids: Sequence[int] | None = None) -> list[int]:
        """Ids of the answer after ``turns``, closed by the end-of-turn tokens.

        They are what follows the prompt's ids in the ids of the whole text; where a token
        would span the border they are the answer's own ids, and the case is counted.
        """
        prompt = list(prompt_ids) if prompt_ids is not None else self.prompt_ids(turns)
        whole = self._ids(self.prompt_text(turns) + answer)
        if whole[: len(prompt)] == prompt:
            ids = whole[len(prompt) :]
        else:
            self.boundary_shifts += 1
            ids = self._ids(answer)
        return ids + self.end_ids

    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which generation ends: the tokenizer's own end and the template's."""
        ends = {self.tokenizer.eos_token_id, *self.end_ids[-1:]}
        return tuple(sorted(i for i in ends if i is not None))


def _literal(text: str) -> str:
    """A Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
