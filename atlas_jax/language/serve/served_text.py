"""Texts of a served model as ids and back: its tokenizer, its chat template, and its limits."""
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.data.chat_template import Template
from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.language.decoding.stops import known
from atlas_jax.language.serve.api_error import invalid


@dataclasses.dataclass(frozen=True)
class ServedText:
  """Parts of a model that requests need besides its numbers; adapters share those of their base.

  Attributes:
    tokenizer: of the model.
    template: of chats; None: the model writes on from texts alone.
    end_tokens: ids that end a completion.
    vocab_size: of the model, which may have ids to spare beyond the tokenizer's.
    longest_tokens: of prompt and completion together; None: any length.
    has_memory: whether its memory can be looked at, see `memory_trace`.
    created_s: when it was made, in seconds since 1970.
  """

  tokenizer: Tokenizer
  template: Template | None
  end_tokens: tuple[int, ...]
  vocab_size: int
  longest_tokens: int | None = None
  has_memory: bool = False
  created_s: int = 0

  @property
  def shows_tools(self) -> bool:
    """Returns whether the chat template shows tools to the model."""
    return self.template is not None and "tools" in self.template.source

  def encode(self, text: str, *, opens_document: bool = True) -> tuple[int, ...]:
    """Returns the ids of a text, behind the mark of a document as in training."""
    ids = self.tokenizer.encode(text).tolist()
    return (self.tokenizer.doc_id, *ids) if opens_document else tuple(ids)

  def chat(self, messages: Sequence[Mapping], values: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the ids of a chat up to where the assistant begins to write.

    Args:
      messages: as `data.messages.check` gives them.
      values: what the template may use besides, such as tools.

    Raises:
      ApiError: if there is no template, or it refuses the messages.
    """
    template = self.need_template()
    try:
      return tuple(template.prompt(messages, self.tokenizer, **values).tolist())
    except ValueError as error:
      raise invalid(str(error), "messages") from error

  def need_template(self) -> Template:
    """Returns the chat template.

    Raises:
      ApiError: if there is none.
    """
    if self.template is None:
      raise invalid("this model has no chat template: it goes on from texts; use /v1/completions", "messages",
                    "no_chat_template")
    return self.template

  def token_bytes(self, token: int) -> bytes:
    """Returns the bytes of an id; b"" for special tokens and ids that the tokenizer has not."""
    return self._bytes(token)

  def token_text(self, token: int) -> str:
    """Returns the text of an id; parts of characters are shown as replacement characters."""
    return self._bytes(token).decode("utf-8", errors="replace")

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text of ids."""
    return self.tokenizer.decode(known(tokens, self.tokenizer))

  @functools.cached_property
  def _bytes(self):
    # A table lookup of a small array each time; replies ask for the same few ids again and again.
    @functools.lru_cache(maxsize=2**16)
    def of(token: int) -> bytes:
      return self.tokenizer.decode_bytes(known([token], self.tokenizer))

    return of
