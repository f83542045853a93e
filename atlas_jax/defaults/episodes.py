"""Settings of episodic training, see `data.episodes`; those of the original where it has them.

The original is Todd_Atlas: 5 batches stored and 5 asked for, weights 1 and 5, floors of .30, .10 and .05 in
phases that end after 1,500 and 3,500 of 5,000 updates.
"""
from ml_collections import config_dict

from atlas_jax.defaults.bounds import above_zero, at_least, fraction, numbers, or_none

OPTIONAL = config_dict.placeholder


def group() -> dict:
  """Returns the group of fields."""
  return {
      # Tasks of data/recall that have items and distance, with commas and, behind colons, weights.
      "tasks": "key_value,passkey,continuation,entity",
      "most_items": at_least(1, 5),  # Things that an episode stores, and asks for.
      # Tokens between a thing and its question, at least; None: model.window_tokens.
      "least_distance": at_least(0, OPTIONAL(int)),
      "most_distance": at_least(0, OPTIONAL(int)),  # At most; None: what data.segment_len holds.
      "curriculum_steps": at_least(0, 1_500),  # Updates in which items and distance grow to their most.
      "text_frac": fraction(0.5),  # Fraction of rows that read the corpus on as plain text.
      "store_weight": at_least(0, 1.0),  # Weight of a token of text, those of what is stored included.
      "recall_weight": above_zero(5.0),  # Weight of a token of an answer.
      # Fractions of the run after which the next phase begins; None: one phase.
      "phase_fracs": or_none(numbers("0.3,0.7", 0, 1, whole=False)),
      "gate_floors": numbers("0.30,0.10,0.05", 0, 0.99, whole=False),  # Of the read gate, in each phase.
      # Gates away from a target have a price, the squared difference of their mean in each block.
      "read_target": fraction(OPTIONAL(float)),  # Of the read gate before its floor; None: no price.
      "write_target": fraction(OPTIONAL(float)),  # Of the write rate, as a fraction of its bound.
      "usage_weight": at_least(0, 0.0),  # Weight of the price in the loss; 0: none.
  }
