"""Conversation → text → token ids, by one chat template that training, inference and the release share.

The template is Jinja, as tokenizers carry it, so that what a release's
``apply_chat_template`` renders is by construction what was trained. Two things are kept
apart: the *prompt* (as it is sent at inference) and the *answer*, which begins exactly where
the prompt ends and closes with the end-of-turn tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from pydantic import ValidationError

from openbezoar.dialogue import templates
from openbezoar.dialogue.answer_form import ASK, ONE, AnswerForm, form_of
from openbezoar.dialogue.heads import complete, has
from openbezoar.dialogue.pieces import PieceEncoder
from openbezoar.dialogue.tokens import Frame
from openbezoar.errors import ModelError, RecipeError
from openbezoar.machine.textfiles import read_text
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import one_line
from openbezoar.rows.records import Turn

# The system message and the format are facts of the released models' prompt [card].
SYSTEM = (
    "Below is an instruction that describes a task, optionally paired with an input that provides further context "
    "following that instruction. Write a response that appropriately completes the request."
)

FOLDED = "system message put before the first user's"
"""What conversations are counted under whose template has no place for their system message."""

STOP = ("### System:", "### Instruction:", "### Response:")

# {BOS}, {SYSTEM} and {END} are filled in by Formatter. An empty system message leaves the block out.
# Whether a line feed follows '### Response:' in the paper is not known; here it does.
_OPENBEZOAR = (
    "{BOS}{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}{%- set turns ="
    " messages[1:] -%}{%- else -%}{%- set system = {SYSTEM} -%}{%- set turns = messages -%}{%- endif -%}{%- if system"
    " -%}{{ '### System:\\n' + system + '\\n\\n' }}{%- endif -%}{%- for turn in turns -%}{%- if turn['role'] == 'user'"
    " -%}{{ '### Instruction:\\n' + turn['content'] + '\\n\\n' }}{%- elif turn['role'] == 'assistant' -%}{{ '###"
    " Response:\\n' + turn['content'] + {END} }}{%- if not loop.last -%}{{ '\\n\\n' }}{%- endif -%}{%- endif -%}{%-"
    " endfor -%}{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"
)


Prompt = str | Mapping[str, Any]
"""How a conversation becomes a text: ``own`` (the tokenizer's chat template), ``openbezoar`` or a template's file;
or a mapping with the keys of a recipe's ``prompt``.
"""


def prompt_of(tokenizer: Any, prompt: Prompt | None) -> PromptSpec:
    """The prompt that is meant: the one given, else the tokenizer's own template, else the project's.

    Raises RecipeError for one that is none.
    """
    if prompt is None:
        prompt = "own" if tokenizer.chat_template else "openbezoar"
    try:
        return PromptSpec.model_validate({"template": prompt} if isinstance(prompt, str) else prompt)
    except ValidationError as error:
        raise RecipeError(one_line(error, "prompt", PromptSpec)) from None


class Formatter:
    """One tokenizer with one prompt format. A template that is a file has its whole path in ``spec``.

    jinja: the template, with what it takes to render every conversation alike on any day, also
    one with a system message; a release carries it. Raises ModelError for a tokenizer without
    an end-of-sequence token, and for a template that is not there.
    """

    def __init__(self, tokenizer: Any, spec: PromptSpec) -> None:
        self.tokenizer, self.spec = tokenizer, spec
        self._pieces = PieceEncoder(tokenizer)
        if tokenizer.eos_token is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token; a model could not learn to stop"
            )
        self.adds_bos = tokenizer.bos_token_id is not None and Frame.of(tokenizer).before[:1] == (
            tokenizer.bos_token_id,
        )
        self.tokens = {name: getattr(token, "content", token) for name, token in tokenizer.special_tokens_map.items()}
        self.folds_system = False
        self.prompt_notes: tuple[str, ...] = ()  # of these, what concerns prompts alone
        self.jinja, self.stop = self._template()
        self._last: tuple[tuple[Turn, ...], str] | None = None
        self.boundary_shifts = 0  # answers whose first token would have merged with the prompt's last

    def _template(self) -> tuple[str, tuple[str, ...]]:
        kind = self.spec.template
        if kind == "openbezoar":
            end = self.tokenizer.eos_token if self.spec.append_eos else ""
            bos = "{{ bos_token }}" if self.adds_bos else ""
            system = self.spec.system if self.spec.system is not None else SYSTEM
            return (
                _OPENBEZOAR.replace("{BOS}", bos)
                .replace("{SYSTEM}", templates.literal(system))
                .replace("{END}", templates.literal(end)),
                STOP,
            )
        if kind == "own":
            template = templates.chosen(self.tokenizer.chat_template, self.tokenizer.name_or_path)
            if template is None:
                raise ModelError(
                    f"{self.tokenizer.name_or_path}: the model has no chat template of its own; use prompt: {{template:"
                    " openbezoar}"
                )
            # a release's template is the trained one
            return self._completed(template), tuple(stop for stop in STOP if stop in template)
        path = Path(kind).expanduser()
        if not path.is_file():
            raise ModelError(f"prompt.template: '{kind}' is neither 'openbezoar', 'own' nor a file ({path})")
        return self._completed(read_text(path, ModelError)), ()

    def _completed(self, template: str) -> str:
        """A foreign template with the date, the system message and the opening of an answer put
        right where it needs it.
        """
        completed = complete(template, self.tokens, self.spec.system)
        self.folds_system, self.prompt_notes = completed.folds_system, completed.notes
        return completed.text

    @property
    def notes(self) -> tuple[str, ...]:
        """What the model's own template does otherwise than one would think, a line each, to be
        told where it is trained or scored.
        """
        return (*self.prompt_notes, *self.form.notes)

    @property
    def opens_thought(self) -> str:
        """The mark of a thought that the template's prompts end in, with its blanks; "" if they do not."""
        return self.form.opened

    @property
    def default_system(self) -> str | None:
        """The system message when a conversation brings none; None where the template decides."""
        if self.spec.system is not None:
            return self.spec.system
        return SYSTEM if self.spec.template == "openbezoar" else None

    def _render(self, turns: Sequence[Turn], generation: bool) -> str:
        messages = [turn.as_dict() for turn in turns]
        try:
            return templates.render(self.jinja, messages, self.tokens, generation)
        # by raise_exception too, as templates do that want user and assistant to take turns
        except TemplateError as error:
            shown = ", ".join(message["role"] for message in messages)
            raise ModelError(
                f"{self.tokenizer.name_or_path}: the chat template '{self.spec.template}' refuses a conversation of"
                f" {shown} ({' '.join(str(error).split())}); mend the template, or name another as prompt:"
                " {template: …}"
            ) from None

    def prompt_text(self, turns: Sequence[Turn]) -> str:
        """The text that is sent at inference; it ends where the answer begins."""
        # A pair asks for its prompt three times in a row.
        if self._last is None or self._last[0] != tuple(turns):
            self._last = tuple(turns), self._render(turns, True)
        return self._last[1]

    def _ids(self, text: str) -> list[int]:
        # The template writes a beginning-of-sequence token where the tokenizer wants one; never twice.
        return self._pieces.ids(text)

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of ``prompt_text``, one beginning-of-sequence token at most."""
        return self._ids(self.prompt_text(turns))

    @cached_property
    def form(self) -> AnswerForm:
        """What the template writes around an answer in a finished conversation, held against its prompts."""
        if self.spec.template == "openbezoar":
            return AnswerForm(end=self.tokenizer.eos_token)
        if not has(self._render(ONE, True), ASK):
            raise ModelError(
                f"{self.tokenizer.name_or_path}: the chat template '{self.spec.template}' leaves the user's words out"
                " of its prompt; mend the template, or name another as prompt: {template: …}"
            )
        return form_of(self._render, self.tokenizer.eos_token)

    @property
    def end_text(self) -> str:
        """What closes an answer, as the template writes it; empty if the recipe trains no end."""
        return self.form.end if self.spec.append_eos else ""

    @property
    def lead(self) -> str:
        """What stands between a prompt and the words of an answer, such as an empty thought; "" with most templates."""
        return self.form.lead

    @cached_property
    def end_ids(self) -> list[int]:
        """Token ids of ``end_text``."""
        return self._ids(self.end_text) if self.end_text else []

    def answer_ids(
        self, turns: Sequence[Turn], answer: str, prompt_ids: Sequence[int] | None = None, cut: bool = False
    ) -> list[int]:
        """Ids of the answer after ``turns`` as the template writes it there, closed by the end-of-turn tokens unless
        it was cut off.

        They are what follows the prompt's ids in the ids of the whole text; where a token
        would span the border they are the answer's own ids, and the case is counted.
        """
        prompt = list(prompt_ids) if prompt_ids is not None else self.prompt_ids(turns)
        answer = self.form.written(answer)
        whole = self._ids(self.prompt_text(turns) + answer)
        if whole[: len(prompt)] == prompt:
            ids = whole[len(prompt) :]
        else:
            self.boundary_shifts += 1
            ids = self._ids(answer)
        return ids if cut else ids + self.end_ids

    def finished_ids(self, turns: Sequence[Turn], answer: str) -> list[int]:
        """Ids of the whole conversation as the template writes it once the answer is there, to its last character."""
        if self.form.reopens:  # what it writes then begins another answer
            prompt = self.prompt_ids(turns)
            return prompt + self.answer_ids(turns, answer, prompt)
        return self._ids(self._render((*turns, Turn("assistant", answer)), False))

    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which generation ends: the tokenizer's own end and the template's."""
        ends = {self.tokenizer.eos_token_id, *self.end_ids[-1:]}
        return tuple(sorted(i for i in ends if i is not None))
