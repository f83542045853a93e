"""A policy that learns from recorded answers: by the very ids, weighed by the recorded log-probabilities."""
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import recipes
from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.data.traces import served_tokens, sources
from atlas_jax.data.traces.record import Trace
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.rollout import policy_training, served_source
from atlas_jax.state import Trained
from tests import runs
from tests.helpers import assert_close
from tests.recipes.test_grpo import config_of, outcome, started

PROMPTS = ([1, 2, 3], [4, 5])
# Ids that no encoding of their text gives: the bytes of half a character, and an end in the middle.
ANSWERS = ([200, 49, 50], [51, 256, 52, 256], [53], [54, 55, 56, 57, 58], [48, 48], [49, 256], [50, 51],
           [52, 53])


def exchange(prompt, choices, source="server", **more):
  """An exchange as a proxy records it."""
  made = [{"index": number, "finish_reason": "length", "token_ids": ids, "prompt_token_ids": list(prompt),
           "sampler_logprobs": [-0.5 - 0.01 * place for place in range(len(ids))],
           "full_logprobs": [-0.9] * len(ids), "weights_version": 7, **more}
          for number, ids in enumerate(choices)]
  return {"route": "completions", "response": {"choices": made}, "token_source": source}


def session(number, *exchanges, review="approved", truth=None):
  """The record of a session that a proxy made of exchanges."""
  steps = [{"step_id": place, "description": "", "output": "", "attempts": 1,
            **({} if one is None else {"exchange": one})} for place, one in enumerate(exchanges, 1)]
  metadata = {"session_id": number, "status": "succeeded",
              "created_at": f"2026-01-02T12:00:{number:02}+00:00"}
  if truth is not None:
    metadata["ground_truth"] = truth
  return {"task": f"t{number}", "final_answer": "x", "plan": {}, "steps": steps, "review_status": review,
          "session_metadata": metadata}


def write(folder, *rows):
  file = folder / "traces.jsonl"
  file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  return file


def served(file, **changes):
  """The config of a run that learns from a file of sessions."""
  fields = {"data__name": "traces", "data__files": str(file), "data__options": {}, "data__batch_rows": 4,
            "data__group_size": 4, "traces__completions": "served",
            "policy__sampler_correction": "token_truncate", "policy__sampler_high": None}
  return config_of(**{**fields, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A run on two groups of answers, one of them from two sessions: config, recipe and parameters."""
  rows = (session(1, exchange(PROMPTS[0], ANSWERS[:2]), exchange(PROMPTS[1], ANSWERS[4:])),
          session(2, exchange(PROMPTS[0], ANSWERS[2:4])))
  config = served(write(tmp_path_factory.mktemp("served"), *rows))
  return config, *started(config)


def test_batches_hold_the_recorded_ids_and_logprobs_and_nothing_is_encoded(made, monkeypatch):
  _, recipe, params, frozen = made
  source = recipe.source
  monkeypatch.setattr(type(source.tokenizer), "encode", lambda *_: pytest.fail("a text was encoded"))
  seen = {}
  for _ in range(2):
    batch = source.next(Trained(params, frozen))
    for row in range(4):
      size = int(batch["completion_mask_BT"][row].sum())
      start = int(batch["start_B"][row])
      ids = batch["completion_BT"][row][:size].tolist()
      recorded_T = [-0.5 - 0.01 * place for place in range(size)]
      assert_close(batch["sampler_logprob_BT"][row][:size], np.float32(recorded_T))
      seen[tuple(ids)] = batch["tokens_BS"][row][:start + 1].tolist()
    assert "rollout/age_updates" not in source.metrics().scalars
  assert set(seen) == {tuple(ids) for ids in ANSWERS}
  for number, ids in enumerate(ANSWERS):
    assert seen[tuple(ids)] == list(PROMPTS[number // 4])


def test_the_loss_weighs_by_the_ratio_to_the_recorded_logprobs(made):
  config, recipe, params, frozen = made
  batch = recipe.source.next(Trained(params, frozen))
  score = policy_training.score_of(config, load_initial_model(config), entropies=False)

  def plain(given):
    logprob_BT = score(given, batch, frozen)[0]
    ratio_BT = jnp.exp(jax.lax.stop_gradient(logprob_BT) - batch["sampler_logprob_BT"])
    mask_BT = batch["completion_mask_BT"]
    each_BT = jnp.where(mask_BT, -ratio_BT * batch["advantage_B"][:, None] * logprob_BT, 0)
    return jnp.sum(each_BT) / jnp.sum(mask_BT)

  grads, _ = outcome(recipe, params, frozen, batch)
  assert_close(grads, jax.jit(jax.grad(plain))(params), tolerance=1e-5)
  assert max(float(jnp.abs(one).max()) for one in jax.tree.leaves(grads)) > 1e-3


def test_answers_without_ids_are_refused_by_name_and_count(tmp_path, caplog):
  kept = session(1, exchange(PROMPTS[0], ANSWERS[:2]), exchange(PROMPTS[0], ANSWERS[2:4], source=None))
  rows = [kept, session(2, exchange(PROMPTS[0], ANSWERS[:2], source=None)), session(3, None),
          session(4, exchange(PROMPTS[0], ANSWERS[:2]), review="pending")]
  fields = served(write(tmp_path, *rows)).traces
  with caplog.at_level("INFO"):
    found = sources.load_served(str(tmp_path / "traces.jsonl"), fields, held_out_frac=0.0)
  assert [one.row.where for one in found] == ["session 1, step 1, choice 0", "session 1, step 1, choice 1"]
  assert "2 answers have no token ids of the server" in caplog.text
  assert "session 1, step 2; session 2, step 1" in caplog.text
  assert "1 not_proxied (no proxy recorded the session)" in caplog.text  # And the one that nobody approved.
  write(tmp_path, *rows[1:])
  with pytest.raises(ValueError, match="no trace is left to use.*1 no_server_tokens"):
    sources.load_served(str(tmp_path / "traces.jsonl"), fields, held_out_frac=0.0)


def answers(*groups, **more):
  made = [Trace.from_json(session(1, exchange(prompt, ids, **more))) for prompt, ids in groups]
  return [one for trace in made for one in served_tokens.answers(trace, Counter(), [])]


def grouped(found, **changes):
  given = {"group_size": 2, "max_prompt_tokens": 3, "max_tokens": 4, "overlong": "skip", "vocab_size": 257}
  return served_source.of_answers(found, ByteTokenizer(), **{**given, **changes})


def test_answers_to_one_prompt_are_a_group_and_what_is_left_out_is_counted(caplog):
  found = answers(([1, 2, 3], ANSWERS[:3]), ([4], ANSWERS[3:]), ([1, 2, 3, 4], ANSWERS[:2]))
  with caplog.at_level("INFO"):
    made = grouped(found)
  assert [[one.row.token_ids for one in group.answers] for group in made] == [
    [tuple(ids) for ids in ANSWERS[first:first + 2]] for first in (0, 4, 6)]
  assert made[0].problem.prompt == "\x01\x02\x03"
  for part in ("2 (the prompt is longer", "1 (fewer than config.data.group_size", "1 (the answer is longer"):
    assert part in caplog.text
  assert made[0].problem.extra != grouped(answers(([1, 2, 3], ANSWERS[1:3])))[0].problem.extra
  with pytest.raises(ValueError, match="step 1, choice 0 .1 and 5 tokens.: the answer is longer"):
    grouped(found, overlong="error")
  with pytest.raises(ValueError, match="of 10 recorded answers none is left .*group_size=9 answers"):
    grouped(found, group_size=9)


def test_ids_of_another_tokenizer_are_refused():
  with pytest.raises(ValueError, match="choice 0 has the id 200, and the model has 100; train from"):
    grouped(answers(([1], ANSWERS[:2])), vocab_size=100)
  assert len(grouped(answers(([1], [[49, 50, 256], [49, 50]]), text="12"))) == 1
  with pytest.raises(ValueError, match="its ids are '12' to config.data.tokenizer, and the client was shown "
                                       "'hello'"):
    grouped(answers(([1], [[49, 50], [49]]), text="hello"))


def test_settings_that_do_not_go_with_recorded_answers_are_refused(tmp_path):
  file = write(tmp_path, session(1, exchange(PROMPTS[0], ANSWERS[:4])))
  for field, value, words in (("policy__sampler_correction", None, "sampler_correction=None .* set token_"),
                              ("rollout__max_staleness", 1, "max_staleness=1 is not read"),
                              ("data__overlong", "truncate", "overlong='truncate' .* set error, or skip")):
    with pytest.raises(ValueError, match=words):
      recipes.load(served(file, **{field: value}), runs.one_device())


def test_a_run_goes_on_with_the_next_group_and_not_with_other_answers(tmp_path):
  rows = [session(number, exchange(prompt, ANSWERS[:4])) for number, prompt in enumerate(PROMPTS)]
  config = served(write(tmp_path, *rows))
  trained = Trained({}, {})
  one, other = (recipes.load(config, runs.one_device()).source for _ in range(2))
  one.next(trained)
  other.restore(one.state())
  again, wanted = other.next(trained), one.next(trained)
  assert all((again[name] == wanted[name]).all() for name in wanted)
  write(tmp_path, rows[0], session(1, exchange(PROMPTS[1], ANSWERS[1:5])))
  with pytest.raises(ValueError, match="fingerprint"):
    recipes.load(config, runs.one_device()).source.restore(one.state())
