"""Chat templates: chats as token ids, and which of these ids a model should learn to write.

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

from atlas_jax.data import chat_sandbox, problems
from atlas_jax.data import messages as chat_messages
from atlas_jax.data.chat_sandbox import CLOSE, OPEN
from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.files import inventory, json_file, tokenizer_json
from atlas_jax.files.damage import Damaged, as_damaged

FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "tokenizer.json")
REMEDY = "fetch it again, or name another folder with config.data.chat_template"
PLAIN = "\ufdd2"  # A code point that stands for no character in any text, as OPEN and CLOSE.


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
               values: Mapping[str, Any] = problems.NOTHING, name: str = "the chat template"):
    """Compiles a template.

    Args:
      source: Jinja; what stands in {% generation %} blocks, if it has any, is what the assistant wrote.
      specials: special token -> id.
      values: what the template may use besides messages, such as bos_token or enable_thinking.
      name: what messages call it.

    Raises:
      ValueError: if the template cannot be read.
      ModuleNotFoundError: if the extra `hf` is missing.
    """
    self.source = source
    self._values = dict(values)
    self._specials = dict(specials)
    self._name = name
    # Templates with {% generation %} say themselves what the assistant wrote. For all others it is found by
    # rendering the chat up to each turn and taking the difference, see `_parts`.
    self._marked = re.search(r"\{%-?\s*generation\b", source) is not None
    # In an alternation the first match wins: "<|im_end|>" must be tried before any special token that it
    # begins with. "(?!)" matches nothing, for a tokenizer without special tokens.
    longest_first = sorted(self._specials, key=len, reverse=True)
    self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    self._template = chat_sandbox.compiled(source, name)

  def render(self, messages: Sequence[Mapping], *, add_generation_prompt: bool = False, **values) -> str:
    """Returns the text of a chat.

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
    called = any("tool_calls" in message for message in messages)
    if called and "tool_calls" not in self.source:
      raise ValueError("the messages have 'tool_calls', which the chat template does not show; leave the row "
                       "out, or give a template that does")
    shown: list[Mapping] = list(chat_messages.bare(messages))
    if called:
      shown = [chat_messages.with_arguments(one, as_text=self._arguments_are_text) for one in shown]
    try:
      return chat_sandbox.render(self._template, messages=shown, **{**self._values, **values},
                                 add_generation_prompt=add_generation_prompt)
    except chat_sandbox.TemplateRefusal as error:
      others = [message["role"] for message in messages if message["role"] not in ("system", "developer")]
      first = ""
      if others[:1] == ["assistant"]:
        first = "; they begin with the assistant's: put a user's before it, or give it 'weight' 0"
      raise ValueError(f"{self._name} refuses the messages: {error}{first}; change them, or set what it "
                       "lacks with config.data.template_values") from error

  @functools.cached_property
  def _arguments_are_text(self) -> bool:
    """Returns whether arguments of calls are given to the template as JSON text, not as the objects they are.

    Most templates write objects as JSON; some refuse them or write them as Python does.
    """
    # Some templates join arguments to a text, which fails for an object; others would show a Python dict with
    # its single quotes. No declaration tells which, so one call is rendered and looked at. The id has nine
    # letters and digits, as templates of Mistral demand.
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
      text = chat_sandbox.render(self._template, messages=chat, add_generation_prompt=False, **self._values)
    except chat_sandbox.TemplateRefusal:
      return True
    return "{'a': 'b'}" in text

  def prompt(self, messages: Sequence[Mapping], tokenizer: Tokenizer, /, **values) -> np.ndarray:
    """Returns the ids after which the assistant begins to write, int32; `values` as in `render`."""
    _check_marks(messages, values)
    # The same shield as in `rows`: if one of the two encoded a user's "<|im_end|>" as the special id, the ids
    # of sampling would differ from those of training.
    text = self._render(self._shielded(messages), True, self._shielded(values))
    return self._encode(_unmarked(text), tokenizer)

  def follow_up(self, asked: Sequence[Mapping], answer: Mapping, then: Sequence[Mapping],
                tokenizer: Tokenizer, written: str, /, **values) -> np.ndarray | None:
    """Returns the ids between an answer, as it was written, and where the assistant begins to write again.

    Args:
      asked, answer, then: messages before the answer, the answer, and messages behind it.
      tokenizer: as in `prompt`.
      written: text of the answer as the model wrote it, without what ended it.
      **values: as in `prompt`.

    Returns:
      int32; None where the template shows the answer otherwise than it was written, once others follow.
    """
    _check_marks(asked, answer, then, values)
    said = self._shielded(values)
    before = _unmarked(self._render(self._shielded(asked), True, said)) + written
    after = _unmarked(self._render(self._shielded([*asked, answer, *then]), True, said))
    return self._encode(after[len(before):], tokenizer) if after.startswith(before) else None

  def chat(self, messages: Sequence[Mapping], tokenizer: Tokenizer, *, learn: str = "all",
           **values) -> Encoded:
    """Returns the ids of a whole chat, with the assistant's turns to learn; see `rows`.

    Raises:
      ValueError: also if one row cannot teach all turns.
    """
    found = self.rows(messages, tokenizer, learn=learn, **values)
    if len(found) > 1:
      raise ValueError(
          f"the chat template shows messages[{found[0][0]}] in another way once others follow, so that one "
          "row cannot teach all turns; set config.data.turns='split' (a row for each turn)")
    return found[0][1]

  def rows(self, messages: Sequence[Mapping], tokenizer: Tokenizer, *, learn: str = "all",
           **values) -> list[tuple[int, Encoded]]:
    """Returns a chat as rows of ids that together teach the assistant's turns, each with its last such turn.

    One row teaches all turns where the template shows them all as they were written. Some templates leave the
    thoughts of earlier turns out: such a turn is learnt in a row of its own that ends with it, exactly as the
    model is asked for it and writes it.

    The end of a turn is learnt too, up to its last special token; white space that follows is not. A turn of
    weight 0 is not learnt.

    Args:
      messages: each with "role" and "content"; those of the assistant may have a "weight".
      tokenizer: encodes what is not special.
      learn: "all" of the assistant's turns, or the "last".
      **values: as in `render`.

    Raises:
      ValueError: if there is nothing to learn, or if the template does not begin a turn as it asks for it.
    """
    _check_marks(messages, values)
    spoken = chat_messages.turns(messages)
    if not spoken:
      raise ValueError("the assistant says nothing in these messages; there is nothing to learn from them")
    # Cut to the last before weights are looked at: with learn="last" a last turn of weight 0 is refused, and
    # no earlier turn takes its place.
    spoken = spoken if learn == "all" else spoken[-1:]
    turns = [number for number in spoken if chat_messages.weighs(messages[number])]
    if not turns:
      raise ValueError("all turns of the assistant that could be learnt have weight 0; there is nothing to "
                       "learn from them, leave them out")
    shielded = self._shielded(messages)
    said = self._shielded(values)
    found = (self._marked_parts(shielded, said, turns, learn) if self._marked
             else self._parts(shielded, said, turns))
    return [(number, self._coded(parts, tokenizer)) for number, parts in found]

  def _coded(self, parts: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> Encoded:
    ids = []
    learnt = []
    for text, counts in parts:
      # Every part is encoded by itself. Encoded as a whole, a tokenizer may merge the end of the
      # prompt with the first letters of the answer into one id, which sampling, that starts
      # behind the prompt, never sees.
      for piece, inside in self._trimmed(text) if counts else [(text, False)]:
        ids.append(self._encode(piece, tokenizer))
        learnt.append(np.full(len(ids[-1]), inside))
    return Encoded(np.concatenate(ids), np.concatenate(learnt))

  def turn_end(self, tokenizer: Tokenizer) -> int | None:
    """Returns the special token that ends what the assistant writes, such as <|im_end|>.

    None if none does.
    """
    text = "that is all"
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
    # A generation block includes the token that ends a turn, or the model is not to write it.
    if self._marked:
      coded = self.chat(said, tokenizer)
      last = int(coded.ids_T[coded.learn_T][-1])
      return last if last in self._specials.values() else None
    end = self._trimmed(self._render(said, False, {}).rpartition(text)[2])[0][0]
    found = list(self._pattern.finditer(end))
    return self._specials[found[-1][0]] if found and found[-1].end() == len(end) else None

  def _parts(self, messages, values, turns: Sequence[int]) -> list[tuple[int, list[tuple[str, bool]]]]:
    """Returns rows of (text, whether it is to learn), by rendering the chat up to each turn that is."""
    whole = self._render(messages, False, values)
    spans = {number: self._span(messages, number, values) for number in turns}
    rows = []
    left = list(turns)
    # From the last turn backwards. A row is the chat as rendered up to its last turn, and teaches all turns
    # that stand in it letter for letter; a turn that later ones change, such as one whose thought is left
    # out, is not a beginning of that text and waits for a row of its own. One row is the usual case. Only the
    # last row goes on behind its last turn, with messages that follow it, which are not learnt.
    while left:
      text = spans[left[-1]][1]
      text = whole if not rows and whole.startswith(text) else text
      here = [number for number in left if text.startswith(spans[number][1])]
      parts = []
      at = 0
      for before, after in (spans[number] for number in here):
        parts += [(text[at:len(before)], False), (text[len(before):len(after)], True)]
        at = len(after)
      rows.append((left[-1], [*parts, (text[at:], False)]))
      left = [number for number in left if number not in here]
    return rows[::-1]

  def _span(self, messages, number: int, values) -> tuple[str, str]:
    """Returns text up to where the assistant begins to write a turn, and up to where it has written it."""
    after = self._render(messages[:number + 1], False, values)
    # Many templates refuse a chat without a user's message, so `before` cannot be rendered for an
    # assistant that speaks first.
    if any(message["role"] not in ("system", "developer") for message in messages[:number]):
      before = self._render(messages[:number], True, values)
    else:  # Nobody has asked for it: it begins with what a template puts before an answer.
      asked = [{"role": "user", "content": "a"}]
      opening = self._render(asked, True, values)[len(self._render(asked, False, values)):]
      at = after.find(opening)
      before = after[:at + len(opening)] if at >= 0 else opening
    if not after.startswith(before):
      raise ValueError(
          f"the chat template does not begin messages[{number}] as it asks for it: the assistant is asked "
          f"with {before[-40:]!r}, and the message is shown as {after[_same(before, after):][:40]!r}; set "
          "config.data.template_values, such as enable_thinking, to what the messages are, or give another "
          "template, or the message 'weight' 0")
    return before, after

  def _marked_parts(self, messages, values, turns: Sequence[int], learn: str):
    """Returns one row of (text, whether it is to learn) by the marks of {% generation %}."""
    # re.split with one group gives outside, inside, outside...: odd pieces are the marked ones.
    pieces = re.split(f"{OPEN}(.*?){CLOSE}", self._render(messages, False, values), flags=re.DOTALL)
    marks = len(pieces) // 2
    spoken = chat_messages.turns(messages)
    if not marks:
      raise ValueError("the assistant says nothing in these messages; there is nothing to learn from them")
    # A template may leave thoughts out of a mark or mark a call apart: only with one mark a turn does the
    # number of a mark tell whose weight it has.
    if learn == "all" and len(turns) < len(spoken) and marks != len(spoken):
      raise ValueError(f"the chat template marks {marks} pieces of {len(spoken)} turns, so that turns of "
                       "weight 0 cannot be told from the others; set config.data.turns='split'")
    learnt = range(marks) if len(turns) == len(spoken) else [spoken.index(number) for number in turns]
    learnt = [marks - 1] if learn == "last" else learnt
    return [(turns[-1], [(piece, number % 2 == 1 and number // 2 in learnt)
                         for number, piece in enumerate(pieces)])]

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
      # An assistant's own special tokens stay ids: thoughts and calls begin with such tokens, and the model
      # must learn to write them. From anybody else they would be a way to forge a turn.
      assistant = value.get("role") == "assistant"
      return dict(value) if assistant else {name: self._shielded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
      return [self._shielded(one) for one in value]
    return value

  def _encode(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids of a rendered text, int32."""
    pieces = []
    at = 0
    for found in self._pattern.finditer(text):
      # Special tokens are set by id and never pass through the encoder, which has them switched off.
      pieces += [self._plain(text[at:found.start()], tokenizer), [self._specials[found[0]]]]
      at = found.end()
    return np.concatenate([*pieces, self._plain(text[at:], tokenizer)]).astype(np.int32)

  def _plain(self, text: str, tokenizer: Tokenizer):
    return tokenizer.encode(text.replace(PLAIN, "").encode("utf-8", "replace")) if text else []


def _check_marks(*values) -> None:
  """Raises ValueError if a text has one of the code points that mark text here."""
  text = json.dumps(values, ensure_ascii=False, default=str)
  if any(mark in text for mark in (OPEN, CLOSE, PLAIN)):
    raise ValueError("a message has one of the code points U+FDD0 to U+FDD2, which no text has; remove it")


def _same(one: str, other: str) -> int:
  """Counts the characters that two texts begin with alike."""
  return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


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
  if path.is_dir():
    inventory.check_sealed(path, remedy=REMEDY)
  settings = _json(path / "tokenizer_config.json")
  file = path / "tokenizer.json"
  content = tokenizer_json.read(file, remedy=REMEDY) if file.is_file() else {"added_tokens": []}
  # SentencePiece-style tokenizers, as of Llama 2, mark the start of each text by a space. Part by part there
  # would be one at every cut, so rows would not be the ids of the whole text; byte-level ones add nothing.
  parts = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
  if '"Metaspace"' in parts or '"Prepend"' in parts:
    raise ValueError(f"{path / 'tokenizer.json'} puts a space before every text it is given, so the parts of "
                     f"a chat cannot be encoded by themselves; use a byte-level one, as of Llama 3 or Qwen")
  source, file = _source(path, settings)
  if not source:
    raise ValueError(f"{path} has no chat template in {', '.join(FILES[:3])}; put one there as {FILES[0]}, "
                     f"or give prompts as texts and set config.data.chat_template=None")
  specials = {token["content"]: token["id"] for token in content["added_tokens"] if token.get("special")}
  tokens = {name: value.get("content", "") if isinstance(value, dict) else value
            for name, value in settings.items() if name.endswith("_token") and isinstance(value, str | dict)}
  return Template(source, specials=specials, values={**tokens, **values}, name=f"the chat template {file}")


def _source(path: pathlib.Path, settings: Mapping[str, Any]) -> tuple[str | None, pathlib.Path]:
  # As in transformers, a file of its own wins over the field in tokenizer_config.json;
  # chat_template.json is an older form of such a file. A list of templates has names; "default" is what
  # a chat without a choice gets.
  file = path / FILES[0]
  if file.is_file():
    with as_damaged(file, "is no text", REMEDY):
      return file.read_bytes().decode("utf-8"), file
  file = path / FILES[1]
  source = _json(file).get("chat_template")
  if not source:
    file = path / FILES[2]
    source = settings.get("chat_template")
  if isinstance(source, list):
    named = [one for one in source if isinstance(one, dict) and one.get("name") == "default"]
    source = named[0].get("template") if named else None
  if source is not None and not isinstance(source, str):
    raise Damaged(file, f"its chat_template is {type(source).__name__}; it must be a text", REMEDY)
  return source, file


def _json(file: pathlib.Path) -> dict:
  return json_file.read(file, remedy=REMEDY) if file.is_file() else {}


def _download(name: str) -> pathlib.Path:
  hub = importlib.import_module("huggingface_hub")
  try:
    return pathlib.Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
  except Exception as error:  # Offline, absent and forbidden all end here, each with a type of its own.
    raise ValueError(f"the chat template of 'hf:{name}' cannot be fetched ({type(error).__name__}); without "
                     f"a network give the path of a local folder") from error
