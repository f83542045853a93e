"""Pass keys: sentences in real text that say a number of five digits, and whose it is.

  ... \\nPass key, amber: 58213.\\n ... \\nPass key, amber: 58213

Names are common words, no two with the same last four letters: where a memory's keys are the last few bytes,
the name is still told from all others when the first digit is asked for. The question is the sentence up to
the number. Answered by greedy decoding, and right if all digits are.
"""
from atlas_jax.data.recall import episode, sample

AXES = ("items", "distance")
READS = ("episode_items", "episode_distances")
DIGITS = 5
FILLER_TOKENS = 24  # Before a sentence, at most.
MOST = {"stored": 50, "asked": 24}  # Bytes of an item at most, see `episode.room`.
NAMES = ("amber", "anchor", "apple", "arrow", "basket", "beacon", "birch", "bottle", "branch", "bridge",
         "candle", "canyon", "carpet", "castle", "cedar", "cherry", "circle", "clover", "cobalt", "copper",
         "coral", "cotton", "daisy", "desert", "dragon", "eagle", "engine", "falcon", "flute", "forest",
         "garden", "garnet", "ginger", "harbor", "hazel", "heron", "honey", "indigo", "island", "ivory",
         "jacket", "jasper", "ladder", "lemon", "lilac", "linen", "marble", "meadow", "melon", "mirror",
         "monkey", "needle", "olive", "orange", "orchid", "otter", "oyster", "paper", "pearl", "pebble",
         "pencil", "piano", "pigeon", "planet", "prism", "quartz", "rabbit", "raven", "ribbon", "saddle",
         "salmon", "silver", "spider", "summit", "temple", "tiger", "tulip", "tunnel", "turtle", "valley",
         "velvet", "violet", "walnut", "willow", "window", "winter", "zebra")

cells = episode.cells


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a text.

  Raises:
    ValueError: if there are fewer names than pass keys.
  """
  if cell["items"] > len(NAMES):
    raise ValueError(f"config.eval.episode_items={cell['items']}: there are {len(NAMES)} names of owners, "
                     "and each has one pass key; take fewer")
  order = draw.permutation(len(NAMES))

  def make(number: int) -> episode.StoredItem:
    digits = "".join(map(str, draw.integers(10, size=DIGITS)))
    before_T = episode.filler(draw, setting, FILLER_TOKENS)
    return episode.line_of(setting, f"\nPass key, {NAMES[order[number]]}:", f" {digits}", ".\n", before_T)

  return episode.text(cell, draw, setting, make, kind="a pass key")


def chance(cell, setting) -> float:
  """Returns one in the number of pass keys."""
  del cell, setting
  return 10.0 ** -DIGITS
