"""Rows of instructions as those read them that take nothing else: filters, seeds, judges of single answers.
Takes rows, writes nothing.
"""

from __future__ import annotations

from openbezoar.errors import DataError
from openbezoar.rows.fields import beside, check_beside, one_of, text_in
from openbezoar.rows.known import CONTEXT, INSTRUCTION, Fields

_USES = frozenset({"system", *CONTEXT})


def check_instruction(row: Fields, where: str, uses: frozenset[str] = _USES) -> None:
    """Raises DataError for an instruction that is no text or empty, and for fields beside it that would be overlooked.

    uses: the fields of ``BESIDE`` that become part of what is asked.
    """
    if not text_in(row, INSTRUCTION, where).strip():
        raise DataError(f"{where}: the instruction is empty; drop the row or fill it in")
    for name in sorted(uses):
        beside(row, name, where)
    one_of(row, CONTEXT, where)
    check_beside(row, where, uses, prompt=instruction_text(row))


def instruction_text(row: Fields) -> str:
    """Instruction and context (or Alpaca's input) as one text, a blank line between (as in the Evol-Instruct seeds)."""
    context = next((row[name] for name in CONTEXT if isinstance(row.get(name), str) and row[name].strip()), None)
    return with_context(str(row["instruction"]), context or row.get("context") or "")


def asked_text(row: Fields) -> str:
    """All that was asked as one text, for a judge to see: the row's own system message goes before its instruction."""
    system = row.get("system")
    return f"{system}\n\n{instruction_text(row)}" if system else instruction_text(row)


def judged_text(row: Fields, names: tuple[str, ...], where: str) -> str:
    """``asked_text`` of a row that people have judged: its prompt may have other names, and
    ``input`` counts as its context.

    Raises DataError if it has none, or says more than can be shown.
    """
    context = "context" if beside(row, "context", where).strip() or not beside(row, "input", where) else "input"
    fields = {
        "instruction": text_in(row, names, where),
        "context": beside(row, context, where),
        "system": beside(row, "system", where),
    }
    check_beside(row, where, frozenset({"system", context}), prompt=asked_text(fields))
    return asked_text(fields)


def with_context(instruction: str, context: str) -> str:
    """Two texts as one, a blank line between; the first alone without the second."""
    return f"{instruction}\n\n{context}" if context else instruction
