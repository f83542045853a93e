"""Settings of evaluations that only a memory can pass, fields of config.eval; see `data.recall`.

A training source of such tasks takes those that are named after a task as options, see `data.recall_tasks`.
"""
from ml_collections import config_dict

from atlas_jax.defaults.bounds import at_least, at_most, numbers, several_of

OPTIONAL = config_dict.placeholder
LONGEST = 2**24  # Tokens of a text.
MOST_PAIRS = 112  # With as many values and some others they fit into the 256 bytes.


def fields() -> dict:
  """Returns the fields with their defaults."""
  return {
      # Evaluations, with commas between them: files of data/recall, and lm_eval. None: none.
      "tasks": OPTIONAL(str),
      "task_samples": at_least(2, 16),  # Texts of each kind, length and so on.
      # Tokens that stand at least between what is asked for and the question, in niah, babilong, last_word.
      "task_gap_tokens": at_least(0, 256),
      "mqar_pairs": numbers("8,32", 1, MOST_PAIRS),  # Pairs of a key and a value in a text.
      "mqar_distances": numbers("64,512", 0, LONGEST),  # Tokens between the last pair and the first question.
      "mqar_symbols": at_most(1, MOST_PAIRS, 64),  # Keys to choose from, and as many values.
      # Tasks of the MAD set, see data/recall/mad.py.
      "mad_kinds": several_of("recall,fuzzy,noisy,copy,compress,memorize",
                              "recall fuzzy noisy copy compress memorize"),
      "mad_lengths": numbers("256", 64, LONGEST),  # Tokens before the questions.
      # RULER's needles, see data/recall/niah.py.
      "niah_kinds": several_of("single_1,single_2,single_3,multi_key",
                               "single_1 single_2 single_3 multi_key"),
      "niah_lengths": numbers("1024,2048", 64, LONGEST),  # Tokens of the text, the needle among them.
      # Places of the needle, as fractions of the way from the start to task_gap_tokens before the question.
      "niah_depths": numbers("0,0.5,1", 0, 1, whole=False),
      "babilong_tasks": numbers("1,2,3", 1, 3),  # Supporting facts of an answer.
      "babilong_lengths": numbers("1024,4096", 64, LONGEST),  # Tokens of the text, the facts among them.
      "formal_kinds": several_of("parity,even,counts,shuffle", "parity even counts shuffle"),  # Languages.
      "formal_lengths": numbers("64,512", 16, LONGEST),  # Symbols of a word.
      "last_word_lengths": numbers("1024,2048", 64, LONGEST),  # Tokens before the last sentence.
      # Of key_value, passkey, continuation and entity, see data/recall/episode.py: things that a text stores,
      "episode_items": numbers("1,4", 1, 64),
      # and tokens of other text between the last of them and the first question.
      "episode_distances": numbers("256,1024", 0, LONGEST),
      "published_path": OPTIONAL(str),  # Files, folders or hf:NAME:SUBSET of BABILong's or RULER's form.
      "published_split": "test",  # Of a set on the hub.
      # Names that lm-evaluation-harness knows, or YAML files of tasks, with commas.
      "lm_eval_tasks": OPTIONAL(str),
      "lm_eval_limit": at_least(1, OPTIONAL(int)),  # Rows of each of these; None: all.
  }
