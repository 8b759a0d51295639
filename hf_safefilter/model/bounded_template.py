"""Chat templates from strangers, compiled so that no rendering takes more than so many steps and letters.

The environment is transformers' own, with the same results; what is added counts. Each turn of a loop, call, filter and
test is a step, what is written or made is measured before it is made, and a rendering over its limits is ended with
`TooMuch`. Nothing is computed when a template is compiled.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from jinja2 import Template

STEPS = 500_000
"""Steps of one rendering: a thousand turns take a hundred thousand in the longest templates that are in use."""

LETTERS = 20_000_000
"""Characters of one value, and of everything that one rendering writes."""

ITEMS = 1_000_000
"""Items in one value, those inside items included."""

SECONDS = 30.0
"""Processor time of one rendering, for what steps do not measure."""

_DIGITS = 16_000  # bits of a whole number
_AT_ONCE = 200  # characters or items that are looked through in a step, and items one by one
_ONE_BY_ONE = 20
_WIDTH = re.compile(r"\d{6,}")  # in a format: a width or precision that nobody prints
_DEEP = frozenset(("tojson", "string", "pprint", "join", "sort", "unique", "format", "sum", "groupby", "xmlattr",
                   "urlencode", "wordcount", "center", "indent", "replace", "format_map"))  # fmt: skip
"""Filters and methods that go through all that is inside a value."""


class TooMuch(TemplateError):
    """A template goes on for longer, or writes more, than any conversation needs."""


class _Budget:
    """What is left of a rendering's limits."""

    def __init__(self) -> None:
        self.refill()

    def refill(self) -> None:
        self.steps, self.letters, self.until = STEPS, LETTERS, time.thread_time() + SECONDS

    def spend(self, steps: int = 1) -> None:
        before, self.steps = self.steps, self.steps - steps
        if self.steps < 0:
            raise TooMuch(f"it does not end in {STEPS} steps")
        if before // 64 != self.steps // 64 and time.thread_time() > self.until:
            raise TooMuch(f"it does not end in {SECONDS:g} seconds")

    def write(self, letters: int) -> None:
        self.letters -= letters
        if self.letters < 0:
            raise TooMuch(f"it writes more than {LETTERS} characters")


def _require_small(size: int) -> None:
    if size > LETTERS:
        raise TooMuch(f"it makes a value of more than {LETTERS} characters")


def _size(value: Any) -> tuple[int, int]:
    """Characters and items in a value, those of shared parts each time."""
    letters, items, stack = 0, 0, [value]
    while stack:
        inner = stack.pop()
        items += 1
        if isinstance(inner, (str, bytes)):
            letters += len(inner)
        elif isinstance(inner, dict):
            stack += [*inner, *inner.values()]
        elif isinstance(inner, (list, tuple, set, frozenset)):
            stack += inner
        elif isinstance(inner, int):
            letters += inner.bit_length() // 3
        if items + len(stack) > ITEMS:
            raise TooMuch(f"it makes a value of more than {ITEMS} items")
    _require_small(letters)
    return letters, items


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 0


def _checked_call(name: str, subject: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> int:
    """Steps that a filter or method takes; raises if what it makes of its arguments would be too large."""
    values = (*args, *options.values())
    widths = [abs(value) for value in values if isinstance(value, int)]
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson"):
        lines = 1 + (
            _length(subject) if name in ("expandtabs", "indent", "tojson") and max(widths, default=0) > 64 else 0
        )
        _require_small(lines * max(widths, default=0))
    _require_small(max(widths, default=0))
    if name in ("format", "format_map") and isinstance(subject, str) and _WIDTH.search(subject):
        raise TooMuch("it formats a value with a width that nobody prints")
    if name == "replace" and isinstance(subject, str) and len(args) >= 2 and all(isinstance(a, str) for a in args[:2]):
        _require_small(len(subject) + (subject.count(args[0]) if args[0] else len(subject) + 1) * len(args[1]))
    steps = 1 + (_length(subject) + sum(map(_length, values))) // _AT_ONCE
    if name not in _DEEP:
        return steps
    letters, items = _size([subject, *values])
    if name == "join":  # as a filter of its list, or as a method of what stands between
        _require_small(
            letters + max(_length(subject), *map(_length, values), 0) * max(map(_length, (subject, *values)))
        )
    return steps + items // _ONE_BY_ONE


class _Counting(NodeTransformer):
    """Puts the counters of `_BoundedEnvironment` into a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(True), "_step"), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_filter(nodes.Const(True), "_step"), node.test)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filter(_constant(child), "_emitted") for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), "_joined")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if not any(isinstance(side, nodes.Const) for side in (node.expr, *(operand.expr for operand in node.ops))):
            node.expr = _filter(node.expr, "_looked_through")
            for operand in node.ops:
                operand.expr = _filter(operand.expr, "_looked_through")
        return node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno or 1)


def _constant(node: nodes.Expr) -> nodes.Expr:
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment with a budget.

    Args:
        made: The environment that transformers has made.
    """

    intercepted_binops = frozenset(("*", "+", "%", "**"))

    def __init__(self, made: ImmutableSandboxedEnvironment) -> None:
        self.__dict__.update(vars(made))  # its extensions, settings and globals
        self.budget = _Budget()
        self.optimized, self.cache = False, None
        self.globals = {name: value for name, value in made.globals.items() if name != "lipsum"}
        filters, tests = (cast("Mapping[str, Callable[..., Any]]", known) for known in (made.filters, made.tests))
        self.filters = {name: self._counted(name, function) for name, function in filters.items()}
        self.tests = {name: self._counted(name, function) for name, function in tests.items()}
        for name in ("_step", "_emitted", "_joined", "_looked_through"):
            self.filters[name] = pass_context(functools.partial(_without_context, getattr(self, name)))

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Counting().visit(source), *args, **options)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # before the value comes the context

        @functools.wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            if name in _DEEP and len(args) > first and isinstance(args[first], Iterator):
                args = (*args[:first], list(args[first]), *args[first + 1 :])
            subject = args[first] if len(args) > first else None
            self.budget.spend(_checked_call(name, subject, args[first + 1 :], options))
            return self._small(function(*args, **options))

        return counted

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:  # noqa: N805, D102
        subject = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # the sandbox wraps `format`
        __self.budget.spend(_checked_call(getattr(__obj, "__name__", ""), subject, args, options))
        return __self._small(super().call(__context, __obj, *args, **options))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: D102
        self.budget.spend(1 + (_length(left) + _length(right)) // _AT_ONCE)
        if operator == "+":
            _require_small(_length(left) + _length(right))
        elif operator == "%" and isinstance(left, str):
            self.budget.spend(_checked_call("format", left, right if isinstance(right, tuple) else (right,), {}))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if operator in ("**", "*") and bits > _DIGITS:
                raise TooMuch("it computes with numbers that have thousands of digits")
        elif operator == "*":
            times = left if isinstance(left, int) else right
            _require_small(max(_length(left), _length(right)) * (times if isinstance(times, int) else 1))
        made = super().call_binop(context, operator, left, right)
        return made if operator == "+" else self._small(made)  # a sum is as large as what it was counted by

    def _small(self, value: Any) -> Any:
        """What was made, if it is no larger than any value may be; all that is made counts together, too."""
        _require_small(_length(value))
        self.budget.spend(_length(value) // _AT_ONCE)
        return value

    def _step(self, value: Any) -> Any:
        self.budget.spend()
        return value

    def _emitted(self, value: Any) -> Any:
        letters, items = (len(value), 1) if isinstance(value, str) else _size(value)
        self.budget.spend(1 + items // _ONE_BY_ONE)
        self.budget.write(letters)
        return value

    def _joined(self, values: list[Any]) -> str:
        self.budget.spend(1 + _size(values)[1] // _ONE_BY_ONE)
        return "".join(map(str, values))

    def _looked_through(self, value: Any) -> Any:
        if not isinstance(value, (str, int, float, type(None))):
            self.budget.spend(_size(value)[1] // _ONE_BY_ONE)
        return value


def _without_context(function: Callable[[Any], Any], _context: Any, value: Any) -> Any:
    return function(value)


def compiled(source: str) -> Template:
    """A template that renders as transformers would have it, within the limits.

    Raises:
        TemplateSyntaxError: The source is not valid Jinja.
        RecursionError: It is nested too deeply to be compiled.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _BoundedEnvironment(_compile_jinja_template("").environment).from_string(source)


def refill(template: Template) -> None:
    """Begin a rendering: its limits are whole again."""
    template.environment.budget.refill()  # type: ignore[attr-defined]  # it is one of ours
