"""Limits on the length of rows that a model is tuned on."""
from atlas_jax.language.initial_model import InitialModel


def check_segment_len(config, start: InitialModel) -> None:
  """Refuses rows that the model cannot read.

  Raises:
    ValueError: names the field.
  """
  length = config.data.segment_len
  align = start.language.align_tokens
  # A memory reads whole chunks, so documents of a packed row begin at multiples of one.
  if length % align:
    low = length // align * align
    raise ValueError(f"config.data.segment_len={length} is not a multiple of the {align} tokens of a chunk "
                     f"of the model; nearest are {low or align} and {low + align}")
  rows = start.language.max_positions
  if rows is not None and rows < length:
    raise ValueError(f"config.data.segment_len={length} is longer than the model's {rows} learned positions; "
                     f"lower it to {rows}")
