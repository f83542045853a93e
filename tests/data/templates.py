"""Chat templates for tests: one that thinks as Qwen3's does, and one that begins with the user alone."""

import pytest

from atlas_jax.data import chats

START, END = 259, 260
SPECIALS = {"<|im_start|>": START, "<|im_end|>": END}
# Shows tools and calls; what was thought in turns before the last question is left out, and the last turn has
# a block of thoughts even where there are none.
THINKS = (
  "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
  "{{ '<|im_end|>\n' }}{% endif %}"
  "{% set asked = namespace(at=-1) %}"
  "{% for m in messages %}{% if m.role == 'user' %}{% set asked.at = loop.index0 %}{% endif %}{% endfor %}"
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
  "{% if m.role == 'assistant' and loop.index0 > asked.at and (loop.last or m.reasoning_content) %}"
  "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content }}"
  "{% for call in m.tool_calls or [] %}{{ '[' + call.function.name + ' ' }}"
  "{{ call.function.arguments | tojson }}{{ ']' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
  "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
ALTERNATES = (
  "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
  "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Reads the first message, as templates do that add a system's message of their own.
POLITE = (
  "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
  "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
  "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


def template(source: str = THINKS, **values) -> chats.Template:
  """Makes a template whose special tokens are those of ChatML."""
  pytest.importorskip("jinja2")
  return chats.Template(source, specials=SPECIALS, values=values)


def learnt(coded: chats.Encoded) -> list[str]:
  """Returns the runs of learnt ids as texts, the end of a turn as "."."""
  runs, inside = [], False
  for one, learns in zip(coded.ids_T.tolist(), coded.learn_T.tolist()):
    if learns and not inside:
      runs.append("")
    inside = learns
    if learns:
      runs[-1] += {START: "<", END: "."}.get(one) or chr(one)
  return runs
