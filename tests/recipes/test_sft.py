"""Supervised tuning: packed = separate, what counts, adapters, resuming, memory models, and learning."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import recipes
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import sft
from atlas_jax.state import Trained
from tests import runs, tuning
from tests.helpers import assert_close, quick_compilation

KINDS = ["decoder", "memory"]


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def shaken(start, seed=1):
  """Parameters of a model that is sure of something, so that a wrong token shows."""
  shapes, _ = jax.eval_shape(start.init, jax.random.key(0))
  params, _ = start.init(jax.random.key(seed))
  draw = np.random.default_rng(seed)
  noise = jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.2, x.shape), jnp.float32), shapes)
  return jax.tree.map(jnp.add, params, noise)


def held_out(config, start):
  """The examples that evaluations read."""
  return sft.examples_of(config, start, sft.problems_of(config, "held_out"))


def batches(source):
  return [source.batch(step) for step in range(source.steps_per_epoch)]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_score_like_rows_of_one_example_each(kind):
  config = tuning.config_of(kind)
  start = load_initial_model(config)
  params, found = shaken(start), held_out(config, start)
  score = jax.jit(lambda batch: sft.score_of(config, start)(params, batch, ())[0])
  by_example, rows = [], []
  for packed in (True, False):
    changed = tuning.config_of(kind, data__packed=packed)
    source = sft.source_of(changed, start, found, "held_out")
    scores = {}
    for batch in batches(source):
      logprob_BT = np.asarray(score(batch))
      for item in np.unique(batch["doc_BT"][batch["doc_BT"] >= 0]):
        scores[int(item)] = logprob_BT[(batch["doc_BT"] == item) & (batch["weight_BT"] > 0)]
    by_example.append(scores)
    rows.append(source.rows)
  assert rows[0] < rows[1] == len(found) == len(by_example[0])
  for item, logprob_T in by_example[1].items():
    assert_close(by_example[0][item], logprob_T, why=f"example {item}", tolerance=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_packed_rows_are_those_of_separate_ones(kind):
  start = load_initial_model(tuning.config_of(kind))
  params, grads = shaken(start), []
  for packed in (True, False):
    config = tuning.config_of(kind, data__packed=packed)
    found = held_out(config, start)
    loss = sft.loss_of(config, start)

    @jax.jit
    def gradient(params, batch, loss=loss):
      def total(params):
        out = loss(params, batch, frozen=(), carry=(), rng=jax.random.key(0))
        return out.loss * out.weight

      return jax.grad(total)(params)

    parts = [gradient(params, batch) for batch in batches(sft.source_of(config, start, found, "held_out"))]
    grads.append(jax.tree.map(lambda *leaves: sum(leaves), *parts))
  assert_close(*grads, tolerance=5e-5)


def test_documents_of_a_memory_model_start_at_chunks():
  config = tuning.config_of("memory")
  start = load_initial_model(config)
  source = sft.source_of(config, start, held_out(config, start), "train")
  batch = source.next()
  starts = np.argwhere((batch["pos_BT"] == 0) & (batch["doc_BT"] >= 0))
  assert len(starts) > len(batch["doc_BT"]) and not (starts[:, 1] % 8).any()


def nats_by_hand(start, params, found):
  """(nats, counted tokens) of examples, each read alone, in float64."""
  read = jax.jit(lambda tokens_BT: start.language.read(params, tokens_BT, jnp.zeros_like(tokens_BT))[0])
  head_DV, total, count = np.asarray(start.language.head(params), np.float64), 0.0, 0
  for one in found:
    tokens_T = np.zeros(64, np.int32)
    tokens_T[:len(one.ids_T) - 1] = one.ids_T[:-1]
    logits_TV = np.asarray(read(tokens_T[None])[0], np.float64) @ head_DV
    logprob_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    for place in np.flatnonzero(one.learn_T[1:]):
      total, count = total - logprob_TV[place, one.ids_T[place + 1]], count + 1
  return total, count


@pytest.mark.parametrize("batch_rows", [1, 3, 4])
def test_the_held_out_loss_counts_every_answer_token_once_and_no_padding(batch_rows):
  config = tuning.config_of(eval__batch_rows=batch_rows)
  recipe, start = recipes.load(config, runs.one_device()), load_initial_model(config)
  params, found = shaken(start), held_out(config, start)
  nats, count = nats_by_hand(start, params, found)
  scalars = recipe.evals["examples"].run(Trained(params), step=0).scalars
  assert scalars["val/tokens"] == count == sum(int(one.learn_T[1:].sum()) for one in found)
  assert scalars["val/loss_nats"] == pytest.approx(nats / count, rel=1e-5)
  assert scalars["val/perplexity"] == pytest.approx(np.exp(nats / count), rel=1e-4)


def test_the_loss_is_that_of_counted_tokens_and_weighs_by_them():
  config = tuning.config_of()
  start = load_initial_model(config)
  recipe, params = recipes.load(config, runs.one_device()), shaken(start)
  batch = recipe.source.next(None)
  out = recipe.loss(params, batch, frozen=(), carry=(), rng=jax.random.key(0))
  assert out.weight == batch["weight_BT"].sum() and out.carry == ()
  assert out.seen == (batch["doc_BT"] >= 0).sum() > out.weight  # What is read counts prompts too.
  assert out.loss == pytest.approx(float(out.metrics["sft/nll_nats"]), rel=1e-6)
  filled = float((batch["doc_BT"] >= 0).mean())
  assert out.metrics["sft/filled_frac"] == pytest.approx(filled)
  dft = sft.loss_of(tuning.config_of(sft__loss="dft"), start)(params, batch, frozen=(), carry=(),
                                                              rng=jax.random.key(0))
  assert dft.loss < out.loss and dft.metrics["sft/nll_nats"] == out.metrics["sft/nll_nats"]


def test_what_a_held_out_problem_is_told_by_its_answer_is_graded():
  config = tuning.config_of()
  recipe = recipes.load(config, runs.one_device())
  out = recipe.evals["problems"].run(Trained(shaken(load_initial_model(config))), step=0)
  assert 0 <= out.scalars["val/accuracy"] <= 1 and out.scalars["val/graded_count"] == 9
  assert out.text.count("answer") + out.text.count("right") >= 4


def test_rows_without_answers_are_not_graded(tmp_path):
  pytest.importorskip("jinja2")
  rows = [{"prompt": f"say {n}", "completion": str(n)} for n in range(30)]
  file = tuning.write_rows(tmp_path / "rows.jsonl", rows)
  config = tuning.config_of(**tuning.of_file(file, data__held_out_frac=0.3))
  assert set(recipes.load(config, runs.one_device()).evals) == {"examples"}


def test_nothing_held_out_is_nothing_evaluated():
  assert recipes.load(tuning.config_of(data__held_out_frac=0.0), runs.one_device()).evals == {}


def losses(folder, mesh=None, **changes):
  """Losses of the three updates of a run."""
  config = tuning.config_of(optim__steps=3, train__log_every_steps=1, data__held_out_frac=0.0, **changes)
  runs.run_lm(config, folder, mesh=mesh)
  return np.array([row["train/loss_nats"] for row in runs.rows_of(folder) if "train/loss_nats" in row])


def test_eight_devices_and_pieces_of_a_batch_give_the_losses_of_one(tmp_path):
  expected = losses(tmp_path / "one")
  assert len(expected) == 3
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  assert_close(losses(tmp_path / "eight", mesh), expected, tolerance=1e-5)
  assert_close(losses(tmp_path / "pieces", train__accumulate_steps=2), expected, tolerance=1e-5)
