"""Constrained decoding: which ids may come next so that a completion follows a JSON schema or a grammar.

llguidance computes it on the CPU, in tens of microseconds an id, for any tokenizer whose ids are bytes.
"""
import collections
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from atlas_jax.language.serve.api_error import invalid
from atlas_jax.language.serve.json_fields import UNSUPPORTED, JsonFields
from atlas_jax.language.serve.served_text import ServedText

KEPT_PREFIXES = 64  # States of completions of one request that are kept, each that of a prefix.
# One form of white space, or a model could write it without end.
JSON_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ",
                  "lenient": False}
ANY_OBJECT = {"type": "object"}


def response_schema(fields: JsonFields, *, nested: bool) -> Mapping | None:
  """Reads the fields of a response's format.

  Args:
    fields: of `response_format`, or of `text.format`.
    nested: whether the schema stands under "json_schema", as chats have it, or beside the type.

  Returns:
    The JSON schema, or None for plain text.

  Raises:
    ApiError: for another type, or fields that cannot be.
  """
  kind = fields.take("type", str, "text", choices=("text", "json_object", "json_schema"))
  if kind != "json_schema":
    fields.done()
    return None if kind == "text" else ANY_OBJECT
  inner = JsonFields(fields.need("json_schema", dict), fields.name("json_schema")) if nested else fields
  for name in ("name", "description"):  # For people; nothing depends on them.
    inner.take(name, str)
  # Also without it the answer follows the schema.
  inner.take("strict", bool)
  schema = inner.need("schema", dict)
  inner.done()
  fields.done()
  return schema


class GrammarTokens:
  """The ids of a model as llguidance takes them; made once for all requests."""

  def __init__(self, text: ServedText):
    """Reads the table of ids."""
    self.vocab_size = text.vocab_size
    table = [text.token_bytes(token) for token in range(text.vocab_size)]
    special = [token for token, data in enumerate(table) if not data]

    class Table:
      """The interface that llguidance asks a tokenizer for."""

      eos_token_id = text.end_tokens[0]
      bos_token_id = None
      # Each needs bytes of its own; those of special tokens stand in no text.
      tokens = [data or f"<|special_{token}|>".encode() for token, data in enumerate(table)]
      special_token_ids = special

      def __call__(self, data: bytes) -> list[int]:
        return text.tokenizer.encode(data).tolist()

    self.tokenizer = LLTokenizer(TokenizerWrapper(Table()), eos_token=list(text.end_tokens))

  def of_schema(self, schema: Mapping, param: str) -> "AllowedIds":
    """Returns the ids that a JSON schema allows.

    Raises:
      ApiError: for a schema that is none, or that needs what constrained decoding cannot do.
    """
    return self._checked(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_FORM), param)

  def of_grammar(self, lark: str, param: str) -> "AllowedIds":
    """Returns the ids that a grammar in Lark allows; errors as of `of_schema`."""
    return self._checked(LLMatcher.grammar_from_lark(lark), param)

  def of_regex(self, regex: str, param: str) -> "AllowedIds":
    """Returns the ids that a regular expression allows; errors as of `of_schema`."""
    return self._checked(LLMatcher.grammar_from_regex(regex), param)

  def _checked(self, grammar: str, param: str) -> "AllowedIds":
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, self.tokenizer)
    # A warning says that part of the schema is not kept, which would be found out too late.
    if is_error or messages:
      why = " ".join(" ".join(messages).split())[:300]
      raise invalid(f"{param} cannot be followed by constrained decoding: {why}; change the schema", param,
                    UNSUPPORTED)
    return AllowedIds(LLMatcher(self.tokenizer, grammar), self.vocab_size)


class AllowedIds:
  """The ids that may come next; see `CompletionRequest.allowed`. Called in one thread alone.

  The completions of a request share it, so it knows a completion by its ids and not by its number.
  """

  def __init__(self, matcher: Any, vocab_size: int):
    """Starts with the state of an empty completion."""
    self._root = matcher
    self._vocab_size = vocab_size
    self._states: collections.OrderedDict[tuple[int, ...], Any] = collections.OrderedDict()

  def __call__(self, tokens: tuple[int, ...]) -> np.ndarray:
    """Returns allowed_V, bool, of a completion so far.

    Raises:
      ValueError: if the completion is none of the grammar, or the grammar has become too large.
    """
    bits = np.frombuffer(self._state(tokens).compute_bitmask(), np.uint8)
    return np.unpackbits(bits, bitorder="little")[:self._vocab_size].astype(bool)

  def _state(self, tokens: tuple[int, ...]) -> Any:
    if not tokens:
      return self._root
    if tokens not in self._states:
      before = self._states.get(tokens[:-1])
      state = self._root.deep_copy() if before is None else before.deep_copy()
      for token in tokens if before is None else tokens[-1:]:
        if not state.consume_token(token):
          why = " ".join(state.get_error().split())[:300]
          raise ValueError(f"the completion has left its grammar at the id {token}: {why}")
      self._states[tokens] = state
      while len(self._states) > KEPT_PREFIXES:
        self._states.popitem(last=False)
    return self._states[tokens]

