"""Chat templates: which one a tokenizer has, and how one is rendered. Reads and writes nothing.

A template is a program that comes with a model. It is run in Jinja's sandbox, with the
filters, tests and globals that transformers gives it, and with an account of what it does:
every loop, call, operation and piece of text is charged before it is carried out, so that a
template that would loop for ever or build more text than fits into memory ends as one that is
wrong does, in one line. What it may do grows with the conversation it is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from functools import lru_cache, wraps
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from openbezoar.errors import ModelError, brief

TODAY = date(2024, 7, 26)
"""The day that templates are told. A prompt that changed overnight would be another than the one that was trained
and that answers were kept under; Llama 3.1's template names this day where it has no clock."""
LONGEST = 1_000_000  # characters of a template; the longest that models carry have some ten thousand
WORK = 2_000_000  # steps and characters that any conversation may take: a second or so
# and more for each character of a conversation, which a template may look through for each of its
# turns
WORK_A_CHARACTER = 64
CALL = 8  # steps that a call counts as


def chosen(template: Any, where: str) -> str | None:
    """The text of the one template that conversations are rendered with; None if there is none.

    template: a tokenizer's field: a text, several by name, or the same as a list of {name,
    template}. Of several it is the one called 'default', or the only one. Raises ModelError
    for anything else, and for several of which none is the default.
    """
    if template is None or template == "":
        return None
    if isinstance(template, str):
        return template
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        template = {entry.get("name"): entry.get("template") for entry in template}
    if not isinstance(template, dict) or not all(isinstance(part, str) for entry in template.items() for part in entry):
        raise ModelError(
            f"{where}: the tokenizer's chat template is no text ({type(template).__name__}); mend it, or name one as"
            " prompt: {template: FILE}"
        )
    if not template:
        return None
    if "default" not in template and len(template) > 1:
        names = ", ".join(map(repr, template))
        raise ModelError(
            f"{where}: the tokenizer has several chat templates ({names}) and none is the default; write one to a file"
            " and name that as prompt: {template: FILE}"
        )
    return str(template.get("default") or next(iter(template.values())))


def render(template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, Any], generation: bool) -> str:
    """A conversation as text. tokens: the tokenizer's special tokens by name (``bos_token``, ...).

    Raises jinja2's TemplateError, with one line, for whatever goes wrong in the template or would not end.
    """
    room = WORK + WORK_A_CHARACTER * sum(len(text) for message in messages for text in message.values())
    try:
        compiled = _compiled(template)
        with _account(room):
            return "".join(
                compiled.generate(
                    messages=[dict(m) for m in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=generation,
                    **tokens,
                )
            )
    except TemplateError:
        raise
    # a template may divide by zero, call itself without end, or be nested too deeply to be compiled
    except Exception as error:
        raise TemplateError(brief(error)) from None


def literal(text: str) -> str:
    """A text as Jinja writes one."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


# ------------------------------------------------------------------------------- the account


class TooMuch(TemplateError):
    """A template would do more than a conversation can need."""


_left: ContextVar[list[int] | None] = ContextVar("left", default=None)
_date_formats: ContextVar[dict[str, None] | None] = ContextVar("asked", default=None)


@contextmanager
def _account(room: int) -> Iterator[None]:
    token = _left.set([room])
    try:
        yield
    finally:
        _left.reset(token)


@contextmanager
def dates_asked() -> Iterator[dict[str, None]]:
    """Collects the formats in which templates ask what day it is."""
    formats: dict[str, None] = {}
    token = _date_formats.set(formats)
    try:
        yield formats
    finally:
        _date_formats.reset(token)


def _charge(steps: int) -> None:
    left = _left.get()
    if left is not None:
        left[0] -= steps
        if left[0] < 0:
            raise TooMuch("it loops, or builds more text than a conversation of this length can need")


def _weight(value: Any, most: int) -> int:
    """Characters that a value would be as text, and things in it, counted up to a little over ``most``."""
    seen, waiting = 0, [value]
    while waiting and seen <= most:
        item = waiting.pop()
        seen += 1
        if isinstance(item, int):
            seen += item.bit_length() // 3
        elif isinstance(item, (str, range, Mapping, list, tuple, set, frozenset)):
            seen += len(item)
            if seen <= most and isinstance(item, Mapping):
                waiting += [part for entry in item.items() for part in entry]
            elif seen <= most and not isinstance(item, (str, range)):
                waiting += item
    return seen


def _pay(*values: Any) -> int:
    """Charge for values that something is about to be done with; their weight."""
    left = _left.get()
    weight = sum(_weight(value, left[0] if left else WORK) for value in values)
    _charge(CALL + weight)
    return weight


# Look at the things in a list, not into them.
_SHALLOW = {
    "length",
    "count",
    "first",
    "last",
    "default",
    "d",
    "list",
    "reverse",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "map",
    "items",
    "attr",
}
_WIDE = {
    "center",
    "ljust",
    "rjust",
    "zfill",
    "indent",
    "batch",
    "slice",
    "expandtabs",
    "generate_lorem_ipsum",
    "truncate",
    "wordwrap",
    "to_bytes",
    "tojson",
}
_FORMATS = {"format", "format_map", "%", "_strftime_now"}
_FORMAT_WIDTH = re.compile(r"\d{5}|\*|:[^{}]*\{")  # a large width, or one that is a value


def _guard(name: str, values: Sequence[Any]) -> None:
    """Charge for a call with these values, a method's own text first, as much as it may make of them."""
    if name in _SHALLOW:
        _charge(CALL + (len(values[0]) if name != "length" and isinstance(values[0], (list, tuple, range)) else 0))
        return
    weight = _pay(*values)
    texts = [len(value) for value in values if isinstance(value, str)]
    if name in _FORMATS and any(isinstance(value, str) and _FORMAT_WIDTH.search(value) for value in values):
        raise TooMuch(f"'{name}' asks for a width that is too large, or not written out")
    if name in _WIDE:
        widths = [abs(n) for n in values[1:] if isinstance(n, (int, float)) and not isinstance(n, bool)]
        unit = 1_000 if name == "generate_lorem_ipsum" else 1
        if name in ("indent", "batch", "slice", "expandtabs", "tojson"):
            unit = weight
        _charge(int(sum(widths)) * unit)
    if name == "replace" and len(texts) > 2:
        _charge(texts[0] // max(1, texts[1]) * texts[2] + texts[2])
    elif name == "join":
        _charge(sum(texts) * max((len(v) for v in values if isinstance(v, (list, tuple, range))), default=0))
    elif name in ("wordwrap", "indent", "urlize", "translate"):
        _charge(texts[0] * (weight - texts[0]) if texts else 0)


# --------------------------------------------------------------------------- the environment


class _Counting(CodeGenerator):
    """Jinja's compiler, which leaves '~' to the environment as it does the other operators."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment, with an account of what is done in it."""

    code_generator_class = _Counting
    intercepted_binops = frozenset({"+", "-", "*", "**", "/", "//", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, once its result is known to be no larger than allowed."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _charge(left.bit_length() * max(0, right))
        elif operator == "*":
            _charge(_times(left, right))
        elif operator == "%" and isinstance(left, str):
            _guard("%", (left, right))
        elif not isinstance(left, list):  # of lists only the things are copied
            _pay(left, right)
        else:
            _charge(len(left) + CALL)
        return super().call_binop(context, operator, left, right)

    def joined(self, parts: Iterable[Any]) -> str:
        """The texts of values, one after another."""
        parts = list(parts)
        _pay(*parts)
        return "".join(map(str, parts))

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Call a function or method, as the sandbox allows it."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox has a 'format' of its own around a text's
        _guard(str(getattr(method, "__name__", "")), (getattr(method, "__self__", None), *args, *kwargs.values()))
        value = super().call(__context, __obj, *args, **kwargs)
        _charge(len(value) if isinstance(value, str) else 0)
        return value


def _times(left: Any, right: Any) -> int:
    """How large the product of two values is: a text or list repeated, or the bits of a number."""
    for many, number in ((left, right), (right, left)):
        if isinstance(number, int) and isinstance(many, (str, list, tuple)):
            return len(many) * max(0, number)
    return sum(value.bit_length() for value in (left, right) if isinstance(value, int))


class _Generation(Extension):
    """The tag {% generation %}, with which templates mark what a model says; it changes no text."""

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """What stands between the tags, in a scope of its own as transformers has it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """Python's dict as a template may use it: called, or ``fromkeys``."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's namespace without names of Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"a namespace may hold no {name!r}")


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    if (formats := _date_formats.get()) is not None:
        formats[format] = None
    return TODAY.strftime(format)


def _counted(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is charged for; what Jinja hands to it first besides values (a context, the
    environment) is free.
    """
    passed = 1 if hasattr(filter_, "jinja_pass_arg") else 0

    @wraps(filter_)
    def charged(*args: Any, **kwargs: Any) -> Any:
        _guard(name, (*args[passed:], *kwargs.values()))
        return filter_(*args, **kwargs)

    return charged


@pass_context
def _output(context: Context, value: Any) -> Any:
    """What an expression writes is charged; that it asks for the context keeps Jinja from working
    constants out beforehand.
    """
    _pay(value)
    return value


def _items(values: Any) -> list[Any]:
    """What a loop goes over, charged by its rounds."""
    items = list(values)
    _charge(CALL * len(items))
    return items


def _held(value: Any) -> Any:
    """A value that is put together, compared or cut, charged by all that is in it: so no list can
    hold itself many times over.
    """
    _pay(value)
    return value


@pass_context
def _written(context: Context, characters: int) -> str:
    """What a template writes in any case, charged where it writes it."""
    _charge(characters)
    return ""


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False, finalize=_output
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    environment.filters = {name: _counted(name, filter_) for name, filter_ in environment.filters.items()}
    environment.filters |= {"_items": _items, "_held": _held, "_written": _written}
    return environment


class _Charging(NodeTransformer):
    """Puts the charges into a template that Jinja has read."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_items")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        if written := sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData)):
            node.nodes.append(_filtered(nodes.Const(written), "_written"))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_held")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_held")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, "_held")
        return node

    def _put_together(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filtered(node, "_held")

    visit_List = visit_Tuple = visit_Dict = _put_together


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    if len(template) > LONGEST:
        raise TemplateError(f"it has {len(template)} characters; expected {LONGEST} at most")
    environment = _environment()
    tree = _Charging().visit(environment.parse(template))
    return Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


def _filtered(value: Any, name: str, *args: nodes.Expr) -> nodes.Expr:
    node = nodes.Filter(value, name, list(args), [], None, None)
    node.set_lineno(value.lineno)
    return node
