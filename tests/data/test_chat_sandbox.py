"""Templates of anybody: bounded in time and size, and without a way out."""

import time

import pytest

pytest.importorskip("jinja2")
from atlas_jax.data import chat_sandbox

TOO_MUCH = [
  "{{ 'a' * 10**9 }}", "{{ 'a'.ljust(10**9) }}", "{{ 'a' | center(10**9) }}", "{{ '%999999999d' % 1 }}",
  "{{ '%*d' % (999999999, 1) }}", "{{ '{:999999999}'.format(1) }}", "{{ '{:{}}'.format(1, 999999999) }}",
  "{{ 'ab'.replace('', 'b' * 60000000) }}", "{{ 2 ** 999999999 }}", "{{ (1).to_bytes(999999999, 'big') }}",
  "{{ ('x' * 900000).join(range(99999) | map('string')) }}", "{{ {'a': 1} | tojson(indent=99999999) }}",
  "{{ '\t'.expandtabs(99999999) }}", "{{ 'abc'.translate({97: 'x' * 60000000}) }}",
  "{{ range(99999) | map('string') | map('center', 90000) | join }}",
  "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
  "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
  "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
  "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
  "{% set ns.x = y %}{% endfor %}",
  "{% macro f(a) %}{{ f(a ~ a) }}{% endmacro %}{{ f('aaaa') }}", "{{ range(10**9) }}",
]  # fmt: skip
WAYS_OUT = ["{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% include 'x' %}",
            "{% import '/etc/passwd' as x %}", "{{ messages.append(1) }}", "{{ lipsum(9) }}",
            "{{ (messages | attr('__class__')).mro() }}"]  # fmt: skip


@pytest.mark.parametrize("source", TOO_MUCH)
def test_what_would_fill_the_memory_is_refused_before(source):
  began = time.monotonic()
  with pytest.raises(chat_sandbox.TemplateRefusal):
    chat_sandbox.render(chat_sandbox.compiled(source), messages=[])
  assert time.monotonic() - began < 8


def test_what_would_take_for_ever_is_stopped(monkeypatch):
  monkeypatch.setattr(chat_sandbox, "SECONDS", 0.2)
  loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
  lazy = "{{ range(99999) | map('string') | map('length') | map('string') | select('eq', 'x') | list }}" * 50
  for source in (loops, lazy):
    with pytest.raises(chat_sandbox.TemplateRefusal, match="it takes more than 0.2 s"):
      chat_sandbox.render(chat_sandbox.compiled(source))


@pytest.mark.parametrize("source", WAYS_OUT)
def test_there_is_no_way_out(source):
  with pytest.raises(chat_sandbox.TemplateRefusal):
    chat_sandbox.render(chat_sandbox.compiled(source), messages=[])


BREAKS = ["{{ 1 / 0 }}", "{{ messages[0].x.y }}", "{{ none + 1 }}", "{{ [1, 'a'] | sort }}",
          "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"]  # fmt: skip


@pytest.mark.parametrize("source", BREAKS)
def test_whatever_a_template_raises_is_one_line(source):
  with pytest.raises(chat_sandbox.TemplateRefusal) as raised:
    chat_sandbox.render(chat_sandbox.compiled(source), messages=[{}])
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["{% if", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
                                    "{% for i in x %}" * 60 + "{% endfor %}" * 60, "x" * (2**20 + 1),
                                    "{% break %}"])  # fmt: skip
def test_what_is_no_template_is_refused_with_a_line(source):
  with pytest.raises(ValueError, match="the chat template") as raised:
    chat_sandbox.compiled(source)
  assert "\n" not in str(raised.value)


def test_bounds_change_nothing_that_a_template_means():
  source = ("{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + 1 %}"
            "{{ loop.index ~ ':' ~ m.role ~ none }}{% endfor %}{{ ns.n }}"
            "{% macro f(a, b=2) %}<{{ a * b }}>{% endmacro %}{{ f('ab') }}{{ '%s-%d' % ('a', 3) }}"
            "{{ {'a': [1, 'ü']} | tojson }}{{ [3, 1] | sort | join(',') }}{{ 'a-b'.split('-')[1] }}"
            "{% with q = [1, 2] %}{{ q }}{% endwith %}{% generation %}g{% endgeneration %}"
            "{{ '{}!'.format(5) }}"
            "{{ messages | selectattr('role', 'equalto', 'b') | list | length }}")  # fmt: skip
  messages = [{"role": role} for role in "axb"]
  shown = chat_sandbox.render(chat_sandbox.compiled(source), messages=messages)
  marked = f"{chat_sandbox.OPEN}g{chat_sandbox.CLOSE}"
  assert shown == '1:aNone2:bNone2<abab>a-3{"a": [1, "ü"]}1,3b[1, 2]' + marked + "5!1"
