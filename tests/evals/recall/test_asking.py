"""Evaluations asked of programs that stand in for models: perfect memory is right, guessing is at chance."""

import json

import numpy as np
import pytest
from matplotlib import image as images

from atlas_jax import evals
from atlas_jax.data import recall
from atlas_jax.data.recall import sample as samples
from atlas_jax.evals.recall import asking, pictures, reading
from tests.data.recall.settings import setting

SMALL = dict(mqar_pairs="2,6", mqar_distances="0,40", mad_kinds="recall,noisy", mad_lengths="192",
             niah_kinds="single_2,single_3", niah_lengths="256,384", niah_depths="0,1",
             babilong_lengths="512", formal_lengths="64", last_word_lengths="512", episode_items="1,3",
             episode_distances="24,90")
EPISODES = ("key_value", "passkey", "continuation", "entity")
KEPT = 8  # Tokens that are seen without a memory.


def copying(context_T, asked_T):
  """Goes on as the text did the last time its longest end was read: what a perfect memory of it can do."""
  text = [*context_T, *asked_T]
  best, following = 0, -1
  for at in range(len(context_T)):
    size = 0
    while size < 40 and size < at and text[at - 1 - size] == text[-1 - size]:
      size += 1
    if size and size >= best:
      best, following = size, text[at]
  return following


def scripted(follow, *, rows=4):
  """A reader of `follow(context, question so far) -> id`; without memory it sees the last tokens alone."""

  def score(trained, texts, shape):
    ok_WBGS = np.zeros((4, rows, shape.candidates, shape.answer_tokens), bool)
    for row, text in enumerate(texts):
      contexts = [samples.joined(one.context, 0, one.context_len) for one in (text, texts[row - 1])]
      for way, context_T in enumerate((contexts[0], contexts[0][-KEPT:], contexts[1], contexts[0][-KEPT:])):
        for at, (input_T, target_T, answer_T) in enumerate(text.alternatives()):
          for n, place in enumerate(np.flatnonzero(answer_T >= 0)):
            ok_WBGS[way, row, at, n] = follow(context_T, input_T[:place + 1]) == target_T[place]
    return reading.scores(texts, ok_WBGS, np.where(ok_WBGS, 0.0, 5.0), shape)

  return reading.Reader(rows, reading.CONDITIONS, score, KEPT, lambda: 7, 11)


def asked(name, reader, *, count=6, workdir=None, **options):
  """The outcome of an evaluation."""
  task, given = recall.load(name), setting(**{**SMALL, **options})
  cells = asking.drawn(task, given, samples=count, seed=0)
  return asking.make(task, given, cells, reader)(None, step=3, workdir=workdir)


@pytest.mark.parametrize("name", ["mqar", "niah", "mad", *EPISODES])
def test_a_perfect_memory_is_right_and_an_emptied_one_is_not(name):
  out = asked(name, scripted(copying))
  base = f"eval/recall/{name}"
  assert out.scalars[f"{base}/accuracy"] == 1.0 and out.scalars[f"{base}/nats"] == 0.0
  for way in ("emptied", "swapped", "writes_off"):
    assert out.scalars[f"{base}/{way}_accuracy"] < 0.35, way
  assert name == "mad" or out.scalars[f"{base}/beyond_reach_accuracy"] == 1.0


@pytest.mark.parametrize("name", EPISODES)
def test_episodes_are_scored_by_items_and_by_distance(name):
  """A reader that finds the answer only where little text stands behind it is right at short distances."""
  near = scripted(lambda context_T, asked_T: copying(context_T[-300:], asked_T))
  out = asked(name, near, count=3, episode_items="1", episode_distances="40,400")
  base = f"eval/recall/{name}"
  assert out.scalars[f"{base}/distance_40/accuracy"] == 1.0 and out.scalars[f"{base}/items_1/accuracy"] < 1
  assert out.scalars[f"{base}/distance_400/accuracy"] < 0.4
  assert {(row["items"], row["distance"]) for row in out.rows} == {(1, 40), (1, 400)}


@pytest.mark.parametrize("count,rows", [(2, 3), (3, 4), (7, 8), (5, 16), (6, 4), (9, 8), (3, 2)])
def test_no_text_that_counts_is_given_its_own_memory_in_place_of_another(count, rows):
  texts = [object() for _ in range(count)]
  for first in range(0, count, rows):
    found = asking.batch_of(texts, first, rows)
    here = min(rows, count - first)
    assert len(found) == rows and found[:here] == texts[first:first + here]
    assert all(found[row] is not found[row - 1] for row in range(here))


def test_one_who_guesses_is_at_chance():
  draw = np.random.default_rng(0)
  found = {}
  for name in ("babilong", "last_word"):
    task, given = recall.load(name), setting(**SMALL)
    cells = asking.drawn(task, given, samples=120, seed=0)

    def score(trained, texts, shape, task=task):
      nats_WBGS = draw.random((1, len(texts), shape.candidates, shape.answer_tokens))
      return reading.scores(texts, nats_WBGS < 0, nats_WBGS[..., :1].repeat(shape.answer_tokens, -1), shape)

    reader = reading.Reader(8, ("as_it_is",), score, 0, lambda: None, 0)
    found[name] = asking.make(task, given, cells, reader)(None, step=0).scalars
  for name, scalars in found.items():
    base, chance = f"eval/recall/{name}", scalars[f"eval/recall/{name}/chance"]
    spread = (chance * (1 - chance) / scalars[f"{base}/texts"]) ** 0.5
    assert abs(scalars[f"{base}/choice_accuracy"] - chance) < 4 * spread + 0.01
    assert scalars[f"{base}/accuracy"] == 0.0


def test_equal_candidates_are_at_chance_and_not_right():
  task, given = recall.load("babilong"), setting(**SMALL)
  texts = asking.drawn(task, given, samples=60, seed=0)[0].texts
  shape = reading.shape_of(texts, 16)
  flat = np.ones((1, len(texts), shape.candidates, shape.answer_tokens))
  # All words cost the same per text here, not per token: sums decide, so they are made equal.
  sizes = np.array([[np.sum(answer_T >= 0) for _, _, answer_T in text.alternatives()] for text in texts])
  found = reading.scores(texts, flat > 2, flat / sizes[None, :, :, None], shape)
  right = np.mean(found.choice_WB[0] == [text.correct for text in texts])
  assert right < 0.4


def test_a_row_says_what_was_asked_how_and_of_how_many():
  out = asked("niah", scripted(copying))
  assert len(out.rows) == 2 * 2 * 2 * 4
  row = next(row for row in out.rows if (row["kind"], row["length"], row["depth"]) == ("single_3", 384, 1.0))
  assert row["condition"] == "as_it_is" and row["texts"] == row["answers"] == 6 and row["low"] == 1.0
  assert row["chance"] == 16.0 ** -32 and row["context_tokens"] == 384 and row["reach_tokens"] == KEPT
  assert row["distance_tokens_least"] >= 32 and row["state_bytes"] == 11 and row["growth_bytes"] == 7
  json.dumps(out.rows)
  assert "niah: right of 48 answers in 48 texts: as it is 1.000 (1.000 to 1.000), emptied 0.0" in out.text
  assert out.scalars["eval/recall/niah/length_256/accuracy"] == 1.0


def test_answers_of_part_of_the_texts_have_an_interval_over_texts():
  turns = iter(range(10**6))
  out = asked("mqar", scripted(lambda *given: copying(*given) if next(turns) % 7 < 4 else -1))
  low, mean, high = (out.scalars[f"eval/recall/mqar/accuracy{end}"] for end in ("_low", "", "_high"))
  assert 0 <= low < mean < high <= 1 and 0.2 < mean < 0.8


def test_rows_that_fill_a_batch_count_once():
  for count in (2, 4, 5):
    out = asked("mqar", scripted(copying), count=count, mqar_pairs="2", mqar_distances="40")
    assert out.scalars["eval/recall/mqar/texts"] == count and out.scalars["eval/recall/mqar/accuracy"] == 1.0
    assert out.scalars["eval/recall/mqar/swapped_accuracy"] < 0.5  # Also of a last batch of one text.


def test_one_text_alone_has_no_other_to_swap_with():
  out = asked("mqar", scripted(copying), count=1, mqar_pairs="2", mqar_distances="40")
  assert [row["condition"] for row in out.rows] == ["as_it_is", "emptied", "writes_off"]
  assert out.rows[0]["low"] is None and "eval/recall/mqar/accuracy_low" not in out.scalars


def test_rows_and_a_picture_are_left_in_the_workdir(tmp_path):
  out = asked("niah", scripted(copying), count=2, workdir=tmp_path)
  folder = evals.folder_of(tmp_path, 3)
  assert json.loads((folder / "niah.json").read_text()) == list(out.rows)
  assert images.imread(folder / "niah.png").shape[:2] == out.images["eval/recall/niah"].shape[:2]


def test_a_picture_has_a_row_of_panels_for_each_way_and_shows_what_is_right():
  out = asked("niah", scripted(copying), count=2)
  image = out.images["eval/recall/niah"]
  rows = [dict(row, accuracy=0.0) for row in out.rows]
  assert image.dtype == np.uint8 and image.ndim == 3
  assert not np.array_equal(image, pictures.by_axes("niah", ("kind", "length", "depth"), rows))
  single = [row for row in out.rows if row["condition"] == "as_it_is"]
  assert pictures.by_axes("niah", ("kind", "length", "depth"), single).shape[0] < image.shape[0]
  assert pictures.by_axes("x", ("length",), single).ndim == 3
