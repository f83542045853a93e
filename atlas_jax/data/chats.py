"""Chats as token ids: a tokenizer's own template, and which ids a model should learn to write.

A rendered chat is cut where the assistant begins to write, and each part is encoded by itself. So a row of
training has the very ids that sampling sees: those of the prompt, then those of what is written. Special
tokens of the template, and those that an assistant wrote, become special ids; what others say is text.
"""
import functools
import importlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data import problems
from atlas_jax.data.problems import Problem
from atlas_jax.data.tokenizer import Tokenizer

FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "tokenizer.json")
OPEN, CLOSE, PLAIN = "\ufdd0", "\ufdd1", "\ufdd2"  # Code points that stand for no character in any text.


class Encoded(NamedTuple):
  """A text as ids."""

  ids_T: np.ndarray    # int32
  learn_T: np.ndarray  # bool: whether the model should learn to write this id


class Template:
  """A chat template with the special tokens of its tokenizer.

  Attributes:
    source: the template itself.
  """

  def __init__(self, source: str, *, specials: Mapping[str, int],
               values: Mapping[str, Any] = problems.NOTHING):
    """Compiles a template.

    Args:
      source: Jinja; what stands in {% generation %} blocks, if it has any, is what the assistant wrote.
      specials: special token -> id.
      values: what the template may use besides messages, such as bos_token or enable_thinking.

    Raises:
      ValueError: if the template cannot be read.
      ModuleNotFoundError: if the extra `hf` is missing.
    """
    self.source, self._values, self._specials = source, dict(values), dict(specials)
    self._marked = re.search(r"\{%-?\s*generation\b", source) is not None
    longest_first = sorted(self._specials, key=len, reverse=True)
    self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    environment, self._error = _environment()
    try:
      self._template = environment.from_string(source)
    except self._error as error:
      raise ValueError(f"the chat template cannot be read: {error}; mend it or give another") from error

  def render(self, messages: Sequence[Mapping], *, add_generation_prompt: bool = False, **values) -> str:
    """Gives the text of a chat.

    Args:
      messages: each with "role" and "content".
      add_generation_prompt: whether it ends where the assistant would begin to write.
      **values: what the template may use besides, such as tools; they precede those of the template.

    Raises:
      ValueError: if the template refuses these messages.
    """
    _check_marks(messages, values)
    return _unmarked(self._render(messages, add_generation_prompt, values))

  def _render(self, messages, add_generation_prompt: bool, values: Mapping[str, Any]) -> str:
    try:
      return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt,
                                   **{**self._values, **values})
    except (self._error, TypeError) as error:
      raise ValueError(f"the chat template refuses the messages: {error}; change them, or set what it lacks "
                       f"with config.data.template_values") from error

  def prompt(self, messages: Sequence[Mapping], tokenizer: Tokenizer, **values) -> np.ndarray:
    """Gives the ids after which the assistant begins to write, int32; `values` as in `render`."""
    _check_marks(messages, values)
    text = self._render(self._shielded(messages), True, self._shielded(values))
    return self._encode(_unmarked(text), tokenizer)

  def chat(self, messages: Sequence[Mapping], tokenizer: Tokenizer, *, learn: str = "all",
           **values) -> Encoded:
    """Gives the ids of a whole chat, with the assistant's turns to learn.

    What a turn ends with is learnt too, up to its last special token; white space that follows is not.

    Args:
      messages: each with "role" and "content".
      tokenizer: encodes what is not special.
      learn: "all" of the assistant's turns, or the "last".
      **values: as in `render`.

    Raises:
      ValueError: if the assistant says nothing, or if the template shows a turn otherwise once others follow.
    """
    _check_marks(messages, values)
    shielded, said = self._shielded(messages), self._shielded(values)
    parts = self._marked_parts(shielded, said, learn) if self._marked else self._parts(shielded, said, learn)
    if not any(inside for _, inside in parts):
      raise ValueError("the assistant says nothing in these messages; there is nothing to learn from them")
    ids, learnt = [], []
    for text, counts in parts:
      for piece, inside in self._trimmed(text) if counts else [(text, False)]:
        ids.append(self._encode(piece, tokenizer))
        learnt.append(np.full(len(ids[-1]), inside))
    return Encoded(np.concatenate(ids), np.concatenate(learnt))

  def turn_end(self, tokenizer: Tokenizer) -> int | None:
    """Gives the special token that ends what the assistant writes, such as <|im_end|>; None if none does."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    coded = self.chat(said, tokenizer)
    last = int(coded.ids_T[coded.learn_T][-1])
    return last if last in self._specials.values() else None

  def _parts(self, messages, values, learn: str) -> list[tuple[str, bool]]:
    """Gives (text, whether it is to learn), by rendering the chat up to each turn that is."""
    whole, parts, at = self._render(messages, False, values), [], 0
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    for number in turns if learn == "all" else turns[-1:]:
      before = self._render(messages[:number], True, values)
      after = self._render(messages[:number + 1], False, values)
      if not (after.startswith(before) and whole.startswith(after) and len(before) >= at):
        raise ValueError(
            f"the chat template shows messages[{number}] in another way once others follow, so that one row "
            "cannot teach all turns; set config.data.turns='split' (a row for each turn)")
      parts += [(whole[at:len(before)], False), (whole[len(before):len(after)], True)]
      at = len(after)
    return [*parts, (whole[at:], False)]

  def _marked_parts(self, messages, values, learn: str) -> list[tuple[str, bool]]:
    """Gives (text, whether it is to learn) by the marks of {% generation %}."""
    pieces = re.split(f"{OPEN}(.*?){CLOSE}", self._render(messages, False, values), flags=re.DOTALL)
    first = 1 if learn == "all" else len(pieces) - 2
    return [(piece, number % 2 == 1 and number >= first) for number, piece in enumerate(pieces)]

  def _trimmed(self, text: str) -> list[tuple[str, bool]]:
    """Cuts off the white space that a template puts behind the special token that ends a turn."""
    ends = [found.end() for found in self._pattern.finditer(text)]
    at = ends[-1] if ends and not text[ends[-1]:].strip() else len(text)
    return [(text[:at], True), (text[at:], False)]

  def _shielded(self, value: Any) -> Any:
    """Marks special tokens in what others than the assistant say, so that they stay text."""
    if isinstance(value, str):
      return self._pattern.sub(lambda found: found[0][0] + PLAIN + found[0][1:], value)
    if isinstance(value, Mapping):
      assistant = value.get("role") == "assistant"
      return dict(value) if assistant else {name: self._shielded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
      return [self._shielded(one) for one in value]
    return value

  def _encode(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Gives the ids of a rendered text, int32."""
    pieces, at = [], 0
    for found in self._pattern.finditer(text):
      pieces += [self._plain(text[at:found.start()], tokenizer), [self._specials[found[0]]]]
      at = found.end()
    return np.concatenate([*pieces, self._plain(text[at:], tokenizer)]).astype(np.int32)

  def _plain(self, text: str, tokenizer: Tokenizer):
    return tokenizer.encode(text.replace(PLAIN, "").encode("utf-8", "replace")) if text else []


def _check_marks(*values) -> None:
  """Raises ValueError if a text has a mark of ours."""
  text = json.dumps(values, ensure_ascii=False, default=str)
  if any(mark in text for mark in (OPEN, CLOSE, PLAIN)):
    raise ValueError("a message has one of the code points U+FDD0 to U+FDD2, which no text has; remove it")


def _unmarked(text: str) -> str:
  return text.replace(OPEN, "").replace(CLOSE, "")


def load(folder: str, *, values: Mapping[str, Any] = problems.NOTHING) -> Template:
  """Loads the chat template that came with a tokenizer.

  Args:
    folder: of a tokenizer as transformers writes it, or "hf:NAME" for one on the hub.
    values: what the template may use besides messages, such as enable_thinking.

  Raises:
    ValueError: if there is no template, or the tokenizer adds something to every part of a text.
  """
  path = _download(folder[3:]) if folder.startswith("hf:") else pathlib.Path(folder).expanduser()
  path = path.parent if path.is_file() else path
  settings, content = _json(path / "tokenizer_config.json"), _json(path / "tokenizer.json")
  parts = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
  if '"Metaspace"' in parts or '"Prepend"' in parts:
    raise ValueError(f"{path / 'tokenizer.json'} puts a space before every text it is given, so the parts of "
                     f"a chat cannot be encoded by themselves; use a byte-level one, as of Llama 3 or Qwen")
  source = _source(path, settings)
  if not source:
    raise ValueError(f"{path} has no chat template in {', '.join(FILES[:3])}; put one there as {FILES[0]}, "
                     f"or give prompts as texts and set config.data.chat_template=None")
  specials = {token["content"]: token["id"] for token in content.get("added_tokens") or []
              if token.get("special")}
  tokens = {name: value["content"] if isinstance(value, dict) else value
            for name, value in settings.items() if name.endswith("_token") and isinstance(value, str | dict)}
  return Template(source, specials=specials, values={**tokens, **values})


def encode(problem: Problem, tokenizer: Tokenizer, template: Template | None = None, *, learn: str = "all",
           **values) -> Encoded:
  """Gives the ids of a problem with its solution, the row that SFT learns from.

  Args:
    problem: its prompt and solution; a prompt that is a text is the user's message where there is a template.
    tokenizer: of the ids.
    template: None takes the text as it is: DOC, prompt, solution, DOC; the solution and its DOC are learnt.
    learn: with a template, "all" of the assistant's turns or the "last".
    **values: what the template may use besides.

  Raises:
    ValueError: naming the place of the problem, if it has no solution or does not fit the template.
  """
  if problem.solution is None:
    raise ValueError(f"{problem.where}: has no solution to learn: give 'messages' that end with the "
                     "assistant's, or a field 'completion', or name the field with config.data.fields")
  if template is None:
    prompt = prompt_ids(problem, tokenizer)
    solution = tokenizer.encode(problem.solution.encode("utf-8", "replace"))
    ids = np.concatenate([prompt, solution, [tokenizer.doc_id]]).astype(np.int32)
    return Encoded(ids, np.arange(len(ids)) >= len(prompt))
  last = {"role": "assistant", "content": problem.solution}
  try:
    return template.chat([*messages_of(problem), problem.extra.get("message", last)], tokenizer, learn=learn,
                         **values)
  except ValueError as error:
    raise ValueError(f"{problem.where}: {error}") from error


def prompt_ids(problem: Problem, tokenizer: Tokenizer, template: Template | None = None,
               **values) -> np.ndarray:
  """Gives the ids of a prompt, int32, up to where the completion begins; arguments as in `encode`."""
  if template is None:
    if not isinstance(problem.prompt, str):
      raise ValueError(f"{problem.where}: its prompt is a chat, which needs a chat template; set "
                       f"config.data.chat_template to a tokenizer's folder, or give prompts as texts")
    text = tokenizer.encode(problem.prompt.encode("utf-8", "replace"))
    return np.concatenate([[tokenizer.doc_id], text]).astype(np.int32)
  try:
    return template.prompt(messages_of(problem), tokenizer, **values)
  except ValueError as error:
    raise ValueError(f"{problem.where}: {error}") from error


def messages_of(problem: Problem) -> list[dict]:
  """Gives a problem's prompt as messages."""
  if isinstance(problem.prompt, str):
    return [{"role": "user", "content": problem.prompt}]
  return list(problem.prompt)


def split_turns(problem: Problem) -> list[Problem]:
  """Gives one problem for each of the assistant's turns, each with what came before it as the prompt."""
  if isinstance(problem.prompt, str):
    return [problem]
  earlier = [
      Problem(f"{problem.where}#{number}", problem.prompt[:number], problem.answer, message["content"],
              {**problem.extra, "message": message})
      for number, message in enumerate(problem.prompt) if message["role"] == "assistant" and number]
  return [*earlier, problem]


def _source(path: pathlib.Path, settings: Mapping[str, Any]) -> str | None:
  if (path / FILES[0]).is_file():
    return (path / FILES[0]).read_text(encoding="utf-8")
  source = _json(path / FILES[1]).get("chat_template") or settings.get("chat_template")
  if isinstance(source, list):
    source = next((one["template"] for one in source if one["name"] == "default"), None)
  return source


def _json(file: pathlib.Path) -> dict:
  return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _download(name: str) -> pathlib.Path:
  hub = importlib.import_module("huggingface_hub")
  try:
    return pathlib.Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
  except Exception as error:  # Offline, absent and forbidden all end here, each with a type of its own.
    raise ValueError(f"the chat template of 'hf:{name}' cannot be fetched ({type(error).__name__}); without "
                     f"a network give the path of a local folder") from error


@functools.cache
def _environment():
  """Gives the sandbox that templates run in, and the type of its errors.

  The date of today is not among what a template may use: the same data give the same ids on every day.
  """
  try:
    jinja, sandbox = importlib.import_module("jinja2"), importlib.import_module("jinja2.sandbox")
    extensions, nodes = importlib.import_module("jinja2.ext"), importlib.import_module("jinja2.nodes")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("chat templates need the package jinja2: pip install 'atlas_jax[hf]', or give "
                              "prompts as texts and set config.data.chat_template=None") from error

  class Generation(extensions.Extension):
    """Puts marks around what stands in a {% generation %} block."""

    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller):
      return OPEN + caller() + CLOSE

  def refuse(message):
    raise jinja.TemplateError(message)

  def to_json(value, indent=None, **options):
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)

  environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[Generation, extensions.loopcontrols])
  environment.globals["raise_exception"] = refuse
  environment.filters["tojson"] = to_json
  return environment, jinja.TemplateError
