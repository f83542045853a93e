"""The last word of a document: a thing that somebody put away at its beginning and takes out at its end.

Documents are made here. Four people each put another thing into a chest; sentences about the weather and the
road follow, in which no thing is named; at the end one of the four takes out what is theirs. The last
sentence alone decides nothing. Answered by greedy decoding, and beside it by the likeliest of all things.

Source: after LAMBADA, Paperno et al. 2016, arXiv:1606.06031, whose last words need the whole passage.
"""
import numpy as np

from atlas_jax.data.recall import options, sample

AXES = ("length",)
READS = ("last_word_lengths", "task_gap_tokens")
NAMES = ("Alma", "Bruno", "Celia", "Dario", "Edith", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla",
         "Leo")
THINGS = ("bell", "book", "candle", "coin", "comb", "feather", "flute", "key", "knife", "letter", "mirror",
          "ring", "rope", "shell", "spoon", "watch")
OWNERS = 4
SUBJECTS = ("The wind", "The rain", "An old dog", "A tired rider", "The morning fog", "A flock of geese",
            "The miller", "A cold night")
VERBS = ("came over", "moved along", "stayed near", "went round", "passed", "waited by", "turned from",
         "followed")
WHERE = ("the hill", "the river", "the bridge", "the village", "the orchard", "the mill", "the long road",
         "the harbour")


def cells(setting) -> list[dict]:
  """Returns each length."""
  found = setting.options
  return [{"length": length} for length in found["last_word_lengths"]]


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a document."""
  encode = setting.tokenizer.encode
  names = [NAMES[at] for at in draw.choice(len(NAMES), size=OWNERS, replace=False)]
  things = [int(at) for at in draw.choice(len(THINGS), size=OWNERS, replace=False)]
  stated = [encode(f" {name} put the {THINGS[thing]} into the chest.") for name, thing in zip(names, things)]
  which = int(draw.integers(OWNERS))
  length = cell["length"]
  count = options.room(setting, length, sample.length_of(stated), "last_word_lengths")
  room = max(0, count - options.gap(setting.options, length, "last_word_lengths"))
  filler = _filler(draw, encode, count)
  ends = np.r_[0, np.cumsum([len(sentence) for sentence in filler])]
  places = np.sort(draw.choice(ends[ends <= min(room, count // 3)], size=OWNERS))
  parts, starts = sample.insert(filler, places, stated)
  prompt_T = encode(f" At last {names[which]} opened the chest and took out the")
  answers = tuple(encode(f" {thing}.") for thing in THINGS)
  distance = sample.length_of(parts) - starts[which] - len(stated[which]) + len(prompt_T)
  mark_T = np.array([setting.tokenizer.doc_id], np.int32)
  input_T, target_T, answer_T = sample.shown_answer(prompt_T, answers[things[which]])
  return sample.RecallSample((mark_T, *parts), input_T, target_T, answer_T, np.array([distance], np.int32),
                             answers, things[which])


def chance(cell, setting) -> float:
  """Returns one in the number of things; among those of the document alone it would be one in four."""
  del cell, setting
  return 1 / len(THINGS)


def _filler(draw, encode, count: int) -> list[np.ndarray]:
  """Returns sentences of so many tokens; the first may begin inside of one."""
  found: list[np.ndarray] = []
  while sample.length_of(found) < count:
    parts = [words[draw.integers(len(words))] for words in (SUBJECTS, VERBS, WHERE)]
    found.append(encode(f" {' '.join(parts)}."))
  whole = sample.length_of(found)
  return sample.cut(found, whole - count, whole)
