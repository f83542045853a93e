"""Modular arithmetic as batches: equations that hold, a split that holds, and an answer that stands nowhere.

Faults that these tests are against, three in one: a script that imports a loader that is not there, ids
outside of the vocabulary, and an answer that stands in the input where it is scored.
"""
import importlib

import numpy as np
import pytest

from atlas_jax.data import modular_arithmetic, tokenizer
from atlas_jax.data import source as sources
from atlas_jax.language import pretraining
from configs import modular

FIELDS = dict(seed=3, options={"modulus": 11}, segment_len=6, batch_rows=8, held_out_frac=0.5)
INVERSE = {"add": "sub", "sub": "add", "mul": "div", "div": "mul"}


def load(**fields):
  return sources.load("modular_arithmetic", **{**FIELDS, **fields})


def read(source, steps):
  """Joins the batches of so many steps."""
  batches = [source.next(None) for _ in range(steps)]
  return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def equations(batch):
  """Reads (a, the operation's byte, b, answer) of the rows that are no padding."""
  rows = [(*tokens[1:4], targets[weight > 0].item()) for tokens, targets, weight in
          zip(batch["tokens_BT"], batch["targets_BT"], batch["weight_BT"]) if weight.any()]
  return [tuple(map(int, row)) for row in rows]


def epoch(**fields):
  """Reads every equation of a split once."""
  source = load(**fields)
  return equations(read(source, source.steps_of(1)))


@pytest.mark.parametrize("operation", modular_arithmetic.OPERATIONS)
def test_every_answer_is_right_and_every_pair_is_there(operation):
  options = {"modulus": 11, "operation": operation}
  found = {*epoch(options=options), *epoch(options=options, split="held_out")}
  symbol = modular_arithmetic.OPERATIONS[operation]
  right = {"add": lambda a, b, c: (a + b) % 11 == c, "sub": lambda a, b, c: (c + b) % 11 == a,
           "mul": lambda a, b, c: a * b % 11 == c, "div": lambda a, b, c: c * b % 11 == a}[operation]
  assert all(each == symbol and right(a, b, c) and c < 11 for a, each, b, c in found)
  second = range(1, 11) if operation == "div" else range(11)
  assert {(a, b) for a, _, b, _ in found} == {(a, b) for a in range(11) for b in second}


def test_the_answer_stands_in_no_input_and_only_it_counts():
  batch = load(options={"modulus": 97}, batch_rows=64).next(None)
  for tokens, targets, weight, doc in zip(*(batch[f"{name}_BT"] for name in
                                            ("tokens", "targets", "weight", "doc"))):
    assert tokens[:5].tolist() == [256, tokens[1], 251, tokens[3], 255]
    assert weight.tolist() == [0, 0, 0, 0, 1, 0]
    assert (doc[:5] == doc[0]).all() and doc[5] == -1 and tokens[5] == 256
    assert targets[:4].tolist() == tokens[1:5].tolist()
    # The same inputs without the pair itself: nothing of a row depends on its answer but the target.
    assert targets[4] == (tokens[1] + tokens[3]) % 97
  changed = modular_arithmetic.ModularArithmetic(
    np.array([[1, 2, 9]], np.int32), "add", {}, range(1), doc_id=256, segment_len=6, batch_rows=1, seed=0)
  other = modular_arithmetic.ModularArithmetic(
    np.array([[1, 2, 3]], np.int32), "add", {}, range(1), doc_id=256, segment_len=6, batch_rows=1, seed=0)
  assert np.array_equal(changed.next()["tokens_BT"], other.next()["tokens_BT"])


@pytest.mark.parametrize("modulus", [2, 251])
def test_all_ids_are_of_the_tokenizer_and_no_symbol_is_a_residue(modulus):
  batch = read(load(options={"modulus": modulus}, batch_rows=512), 2)
  size = tokenizer.load("byte").vocab_size
  assert max(batch["tokens_BT"].max(), batch["targets_BT"].max()) < size
  assert not {*modular_arithmetic.OPERATIONS.values(), modular_arithmetic.EQUALS} & set(range(modulus))
  config = modular.get_config()
  loader = importlib.import_module(f"atlas_jax.data.{config.data.source}").make
  assert callable(loader) and config.model.vocab_size == size


def test_the_split_is_drawn_by_the_seed_and_shares_no_pair():
  train, held_out = set(epoch()), set(epoch(split="held_out"))
  assert not train & held_out and abs(len(held_out) - 60) <= 5
  assert set(epoch(seed=4)) != train and set(epoch()) == train
  assert len(epoch(held_out_frac=0.75)) == pytest.approx(30, abs=5)


def test_sums_and_products_hold_a_pair_out_both_ways_round_and_differences_do_not():
  for operation in ("add", "mul"):
    pairs = {(a, b) for a, _, b, _ in epoch(options={"modulus": 11, "operation": operation})}
    assert {(b, a) for a, b in pairs} == pairs
  pairs = {(a, b) for a, _, b, _ in epoch(options={"modulus": 11, "operation": "sub"})}
  assert {(b, a) for a, b in pairs} != pairs


def test_training_goes_on_in_new_orders_and_held_out_rows_end_with_padding():
  source = load(batch_rows=7)
  first, second = ([row for _ in range(source.steps_per_epoch) for row in equations(source.next())]
                   for _ in range(2))
  assert first != second
  held_out = load(split="held_out", batch_rows=50)
  batches = []
  with pytest.raises(StopIteration):
    while True:
      batches.append(held_out.next())
  rows = sum(len(equations(batch)) for batch in batches)
  assert len(batches) == 2 and rows == len(epoch(split="held_out"))
  padding = batches[1]["weight_BT"].sum(1) == 0
  assert padding.any() and (batches[1]["doc_BT"][padding] == -1).all()
  assert len(epoch(split="held_out", max_tokens=60, batch_rows=5)) == 10


def test_a_place_is_its_step_and_belongs_to_its_settings():
  source, other = load(), load()
  source.next()
  other.restore(source.state())
  here, there = source.next(), other.next()
  assert all(np.array_equal(here[name], there[name]) for name in here)
  for changed in ({"seed": 4}, {"options": {"modulus": 13}}, {"held_out_frac": 0.4}):
    with pytest.raises(ValueError, match="belongs to other data or settings"):
      load(**changed).restore(source.state())


def test_processes_share_the_rows_and_rows_are_documents_of_their_own():
  whole = load().next()
  parts = [load(process_index=n, process_count=2).next() for n in range(2)]
  assert all(np.array_equal(np.concatenate([part[name] for part in parts]), whole[name]) for name in whole)
  source = load()
  docs = [source.next()["doc_BT"][:, 0].tolist() for _ in range(3)]
  assert len({doc for step in docs for doc in step}) == 24
  assert source.provenance(0)[0].startswith("modular_arithmetic: a=")


@pytest.mark.parametrize(("changed", "message"), [
  ({"options": {"modulus": 252}}, "config.data.options.modulus=252 must be from 2 to 251"),
  ({"options": {"modulus": "x"}}, "config.data.options.modulus='x' must be a whole number"),
  ({"options": {"modulus": 12, "operation": "div"}}, "modulus=12 is no prime"),
  ({"options": {"operation": "ad"}}, "config.data.options.operation='ad'; did you mean 'add'"),
  ({"options": {"modulos": 7}}, "config.data.options.modulos=7 is no option"),
  ({"segment_len": 4}, "config.data.segment_len=4 is too short for an equation; it needs 5"),
  ({"tokenizer": "runs/bpe"}, "config.data.tokenizer='runs/bpe'"),
  ({"held_out_frac": 1.0}, "config.data.held_out_frac=1.0 leaves none of 121 equations"),
])
def test_what_cannot_be_is_refused(changed, message):
  with pytest.raises(ValueError, match=message.replace(".", r"\.")):
    load(**changed)


def test_the_recipe_reads_it():
  sources.check("modular_arithmetic", pretraining.READS, recipe="memory_lm")
  assert set(pretraining.READS) <= set(load().next(None))
