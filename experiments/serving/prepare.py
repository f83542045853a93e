"""Writes what a small model that chats and calls tools is taught from: a tokenizer, a chat template, rows.

  python -m experiments.serving.prepare --out=runs/serving_rows
  python -m experiments.serving.prepare --out=runs/serving_rows --tools=TOOLS.json

TOOLS.json is a list of functions with name, description and parameters, such as a suite of tests asks for.
The model learns to call the first tool that it is shown with values of the right types, to say something
short when it is shown none or has the tool's answer, and to end. It understands nothing; what is tested is
the server around it. See the README for the run.
"""
import argparse
import json
import pathlib
import random
from collections.abc import Iterator

import tokenizers

from atlas_jax.data import tokenizer as tokenizer_files
from atlas_jax.files import write

VOCAB = 512
ROWS = 1_500
SPECIALS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% for tool in tools %}{{ tool.function | tojson }}{{ '\n' }}{% endfor %}"
    "{{ 'Call with <tool_call>, the name and the arguments, </tool_call>.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>\n' }}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}"
    "{{ '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
WORDS = ("sun", "rain", "north", "seven", "letter", "table", "is", "the", "what", "please", "tell", "me",
         "of", "now", "in", "Oslo", "Lima", "list", "sum", "why", "hello", "status", "graph", "text", "count",
         "#", "1", "42", "3.5", "a-b", "'x'", "?", "!", ":", "你好", "é")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789.,:;!?#*`'()[]<>-_/"
ANSWERS = ("Yes.", "No.", "It is so.", "That is all.", "Good day to you.")
OWN = [
    {"name": "get_weather", "description": "Tells the weather of a place.", "parameters": {
        "type": "object", "properties": {"location": {"type": "string", "description": "A town."}},
        "required": ["location"], "additionalProperties": False}},
    {"name": "add", "description": "Adds two numbers.", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"], "additionalProperties": False}}]


def value_of(schema: dict):
  """Returns a small value that a JSON schema of simple types allows."""
  if "enum" in schema:
    return schema["enum"][0]
  kind = schema.get("type", "string")
  if kind == "object":
    return {name: value_of(schema["properties"][name]) for name in schema.get("required", ())}
  if kind == "array":
    return [value_of(schema["items"])]
  return {"string": "Oslo", "integer": 1, "number": 1, "boolean": True}[kind]


def rows(tools: list[dict], count: int, seed: int) -> Iterator[dict]:
  """Yields chats: half of them with tools, of which the first is called."""
  draw = random.Random(seed)

  def words() -> str:
    known = draw.choices(WORDS, k=draw.randrange(1, 9))
    # Beside them any letters, so that words it has never seen do not confuse it.
    strange = ["".join(draw.choices(LETTERS, k=draw.randrange(1, 9))) for _ in range(draw.randrange(9))]
    mixed = known + strange
    draw.shuffle(mixed)
    return " ".join(mixed)

  for _ in range(count):
    system = [{"role": "system", "content": words()}] * draw.choice((0, 0, 1))
    asked = [{"role": "user", "content": words()}]
    answer = [{"role": "assistant", "content": draw.choice(ANSWERS)}]
    if draw.random() < 0.4:
      before = [*asked, *answer] * draw.choice((0, 0, 1))
      yield {"messages": [*system, *before, {"role": "user", "content": words()}, *answer]}
      continue
    tool = draw.choice(tools)
    if draw.random() < 0.3:  # Else the name alone would do, and the words around it would count for nothing.
      tool = tool | {"description": words()}
    call = {"id": "call00001", "type": "function", "function": {
        "name": tool["name"], "arguments": json.dumps(value_of(tool["parameters"]))}}
    calls = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    told = {"role": "tool", "tool_call_id": "call00001", "content": json.dumps({"is": words()})}
    answered = [told, *answer]
    yield {"messages": [*system, *asked, *calls, *(answered if draw.random() < 0.5 else ())],
           "tools": [{"type": "function", "function": tool}]}


def write_tokenizer(folder: pathlib.Path, texts: list[str]) -> None:
  """Trains a byte-level BPE and writes it as published models have theirs, with the chat template."""
  tokenizer_files.train_bpe((text.encode() for text in texts), folder=folder,
                            vocab_size=VOCAB - len(SPECIALS))
  made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  made.add_special_tokens(list(SPECIALS))
  made.save(str(folder / "tokenizer.json"))
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIALS[1],
              "chat_template": TEMPLATE}
  write.json(folder / "tokenizer_config.json", settings)


def main(argv: list[str] | None = None) -> None:
  """Writes the folder and prints the flags of the run that learns it."""
  flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  flags.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
  flags.add_argument("--tools", type=pathlib.Path, help="JSON list of further tools to be called")
  asked = flags.parse_args(argv)
  # Names may come twice: suites call theirs as others do.
  tools = OWN + (json.loads(asked.tools.read_text()) if asked.tools else [])
  made = list(rows(tools, ROWS, seed=0))
  texts = [json.dumps(row, ensure_ascii=False) for row in made]
  asked.out.mkdir(parents=True, exist_ok=True)
  write_tokenizer(asked.out / "tokenizer", texts)
  write.whole(asked.out / "rows.jsonl", "".join(f"{text}\n" for text in texts))
  print(f"{len(made)} rows of {len(tools)} tools in {asked.out}")


if __name__ == "__main__":
  main()
