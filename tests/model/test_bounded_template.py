"""Templates that do not end, or make gigabytes, are stopped early; all others render as transformers has them."""

# ruff: noqa: E501
import tracemalloc

import pytest
from small_tokenizers import CHATML, byte_level, talk
from trainer_templates import TEMPLATES
from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

from hf_safefilter.errors import ModelError
from hf_safefilter.model import bounded_template
from hf_safefilter.model.bounded_template import TooMuch, compiled, refill
from hf_safefilter.model.chat_template import ChatTemplate
from hf_safefilter.model.tokens import tokenise

TURNS = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}] * 3
GIVEN = {"bos_token": "<bos>", "eos_token": "<eos>"}
SHOWS = "{% for m in messages %}{{ m.content }}{% endfor %}"


def render(template, turns=TURNS):
    return _render_with_assistant_indices(template, turns, None, None, True, **GIVEN)


@pytest.mark.parametrize("name", TEMPLATES)
def test_within_its_limits_a_template_renders_as_transformers_has_it(name):
    ours, theirs = compiled(TEMPLATES[name]), _compile_jinja_template(TEMPLATES[name])
    refill(ours)
    assert render(ours) == render(theirs)


ODDITIES = (
    "{% macro twice(x) %}{{ x }}-{{ x }}{% endmacro -%}",
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}",
    "{% set ns.n = ns.n + 2 %}{% else %}none{% endfor %}{{ ns.n ** 3 % 7 }} {{ twice('a' ~ 1 ~ none) }} {{ 'x' * 3 }}",
    "{%- for a in [[1, [2]], 3] recursive %}<{{ loop(a) if a is iterable else a }}>{% endfor %}",
    "{{ '%s|%5.1f' % ('a', 2.5) }}{% set block %}b{{ 1 + 1 }}{% endset %}{{ block }}",
    "{{ messages | map(attribute='role') | unique | join('+') }} {{ [3, 1] | sort }} {{ 'a,b'.split(',') | tojson(indent=2) }}",
    "{{ 'q' in ['q'] and [1, [2]] == [1, [2]] }} {{ missing }} {{ none }} {{ 1.0 }} {{ true }} {{ range(3) | sum }}",
    "{% filter upper %}low{% endfilter %} {{ 'abc' | replace('b', 'xx') | center(9) | indent(2) }}{{ 'a'.replace('', '-') }}",
    "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% macro caller_of() %}[{{ caller(5) }}]{% endmacro %}{% call(x) caller_of() %}{{ x }}{% endcall %}",
    "{{ '{:>5}'.format('a') }}{{ {'a': 1}.items() | list }}{{ ['a', 'b'] | join }}{{ ','.join(['a']) }}{{ 'a' | string | length }}",
)


def test_everything_that_jinja_has_renders_the_same():
    source = "\n".join(ODDITIES)
    ours = compiled(source)
    refill(ours)
    assert render(ours) == render(_compile_jinja_template(source))


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "tests of loops": "{% for i in range(99999) %}{% for j in range(99999) if 0 %}{% endfor %}{% endfor %}",
    "recursive loops": "{% for i in [1] recursive %}{% if loop.depth < 40 %}{{ loop([1]) }}{{ loop([1]) }}{% endif %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "filters": "{% set r = range(99999)|list %}{% for i in r %}{{ r|sum }}{% endfor %}",
    "tests": "{% set r = range(99999)|list %}{{ r|select('in', r)|list|length }}",
    "lookups": "{% set r = range(99999)|list %}{% for i in r %}{{ i in r }}{% endfor %}",
}
LARGE = {
    "times": "{% set x = 'a' * 1000000000 %}{{ x * 10 }}",
    "times, reversed": "{{ 1000000000 * 'ab' }}",
    "lists": "{% set x = [0] * 1000000000 %}",
    "constant filter": "{{ 'a'|center(1000000000) }}",
    "method": "{{ 'a'.ljust(1000000000) }}{{ 'a'.zfill(1000000000) }}",
    "tabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "doubled": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "added": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "nested": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nested json": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x|tojson|length }}",
    "compared": "{% set a = namespace(x=[1]) %}{% set b = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}{{ a.x == b.x }}",
    "replaced": "{% set ns = namespace(x='a') %}{% for i in range(9) %}{% set ns.x = ns.x.replace('a', 'aaaaaaaaaa') %}{% endfor %}",
    "replaced, filter": "{% set ns = namespace(x='a') %}{% for i in range(9) %}{% set ns.x = ns.x|replace('a', 'aaaaaaaaaa') %}"
    "{% endfor %}",
    "joined": "{% set s = 'a' * 10000 %}{{ ('b' * 10000)|list|join(s)|length }}{{ s.join('c' * 10000)|length }}",
    "summed": "{% set r = range(99999)|list %}{{ ([r] * 9999)|sum(start=[])|length }}",
    "formatted": "{{ '%1000000000d' % 1 }}",
    "formatted by star": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "format method, nested": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "kept": "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = ns.x + ['a' * 4999999] %}{% endfor %}",
    "powers": "{% set x = 9 ** 999999999 %}",
    "products": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "indented": "{% set x = 'a\\n' * 1000000 %}{{ x|indent(1000) }}",
    "indented json": "{{ [[1, 2], [3]]|tojson(indent=1000000000) }}",
    "written often": "{% set x = 'a' * 100000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "template text": "{% for i in range(99999) %}" + "a" * 10_000 + "{% endfor %}",
    "macro text": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + "{% set x = 'a' %}" + "{% set x = f(x) %}" * 60,
}  # fmt: skip


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_what_does_not_end_is_stopped_before_it_has_taken_memory(name, monkeypatch):
    monkeypatch.setattr(bounded_template, "STEPS", 20_000)
    monkeypatch.setattr(bounded_template, "LETTERS", 5_000_000)
    monkeypatch.setattr(bounded_template, "ITEMS", 200_000)
    tracemalloc.start()
    try:
        template = compiled((ENDLESS | LARGE)[name] + SHOWS)
        refill(template)
        with pytest.raises(TooMuch):
            render(template)
        assert tracemalloc.get_traced_memory()[1] < 400_000_000
    finally:
        tracemalloc.stop()


def test_the_time_is_looked_at_whatever_a_step_costs(monkeypatch):
    monkeypatch.setattr(bounded_template, "SECONDS", -1)
    for first in range(64):
        budget = bounded_template._Budget()
        budget.steps -= first
        with pytest.raises(TooMuch, match="seconds"):
            budget.spend(64)


def test_each_rendering_has_all_of_the_limits(monkeypatch):
    monkeypatch.setattr(bounded_template, "STEPS", 100)
    template = compiled(SHOWS)
    for _ in range(50):
        refill(template)
        assert render(template)[0] == "How?So." * 3
    with pytest.raises(TooMuch):
        render(template, TURNS * 50)


@pytest.mark.parametrize("name", ["loops", "times"])
def test_a_model_with_such_a_template_is_refused_before_any_row(name):
    tokenizer = byte_level(CHATML)
    with pytest.raises(ModelError, match="for a conversation of one or two turns it (does not end|makes)"):
        ChatTemplate(tokenizer, (ENDLESS | LARGE)[name] + SHOWS)


def test_a_row_that_such_a_template_waits_for_is_not_read(monkeypatch):
    monkeypatch.setattr(bounded_template, "STEPS", 2000)
    bomb = "{% for m in messages %}{% if 'bomb' in m.content %}" + ENDLESS["loops"] + "{% endif %}{% endfor %}"
    tokenizer = byte_level(bomb + CHATML)
    said = [talk(("user", "Hello?"), ("assistant", word)) for word in ("Hi.", "A bomb.", "Hi again.")]
    assert [row.reason for row in tokenise(tokenizer, said)] == ["", "template_refused", ""]


@pytest.mark.parametrize(
    "source", ["{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "{% if 1 %}" * 2000 + "{% endif %}" * 2000, "x" * 2_000_000],
    ids=["brackets", "blocks", "long"],
)  # fmt: skip
def test_a_source_too_deep_or_too_long_is_an_error(source):
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate(byte_level(CHATML), source)
