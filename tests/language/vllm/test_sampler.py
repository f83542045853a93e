"""The sampler over vLLM's server: what it writes, hands over, looks at and refuses; against a stand-in."""
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from flax.core import freeze

from atlas_jax.data import tokenizer
from atlas_jax.language.decoding import sampler as samplers
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.pretrained import hf_export
from atlas_jax.language.vllm import client as vllm_client
from atlas_jax.language.vllm import sampler as vllm
from atlas_jax.language.vllm import weights as vllm_weights
from atlas_jax.language.vllm.client import Client, ServerError
from atlas_jax.models import lora
from tests.helpers import quick_compilation
from tests.language.languages import tiny
from tests.language.vllm.stub import Engine, Stub

RECORDS = pathlib.Path(__file__).parents[2] / "fixtures" / "vllm_http" / "records.json"
QWEN = pathlib.Path(__file__).parents[2] / "fixtures" / "hf_models" / "qwen2_tiny"
BYTES = tokenizer.ByteTokenizer()
PROMPTS = [[256, *b"one"], [7], [256, *b"one"]]
OPTIONS = SamplingOptions(n=2, max_tokens=6, stop_tokens=(256,))
FIELDS = dict(url=None, command=None, arguments="", port=None, shared_folder=None, dtype=None,
              gap_limit_nats=None, start_timeout_s=60.0, timeout_s=30.0, retries=2, backoff_s=0.01,
              parallel_requests=4)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def weights(factor=1.0):
  return jax.tree.map(lambda leaf: leaf * factor, tiny("decoder")[1])


@functools.cache
def engine_of(mode="processed_logprobs"):
  """Returns what a server computes with the tiny model; compiled once."""
  return Engine(served_folder(), mode=mode)


@functools.cache
def served():
  """Writes the weights that a server has at first."""
  exports = vllm_weights.Exports(tiny("decoder")[0].module, like=None, shared_folder=None, workdir="unused",
                                 dtype="float32", max_tokens=64)
  return exports, exports.write(weights(0.5))


def served_folder():
  return served()[1]


@pytest.fixture
def stub():
  engine = engine_of()
  engine.asked.clear(), engine.reloads.clear(), engine.routes.clear()
  engine.max_model_len, engine.dtype, engine.dev_mode, engine.version = 64, "float32", True, "default"
  engine.root = str(served_folder())
  with Stub(engine) as made:
    yield made


@pytest.fixture
def make(tmp_path):
  """Yields a function that makes samplers; they are closed after the test."""
  made = []

  def build(language=None, **fields):
    fields = dict(like=None, workdir=tmp_path, longest_tokens=64) | FIELDS | fields
    made.append(vllm.make(tiny("decoder")[0] if language is None else language, BYTES, **fields))
    return made[-1]

  yield build
  for sampler in made:
    sampler.close()


@pytest.fixture
def sampler(make, stub):
  """Returns a sampler that has weights."""
  made = make(url=stub.url)
  made.load(weights(), version=3)
  return made


def recomputed(prompts, rollout, options, temperature):
  """Returns our own model's log-probabilities of a rollout's ids, one array per row."""
  language, params = tiny("decoder")
  rows = []
  for row, length in enumerate(rollout.length_B):
    prompt = prompts[row // options.n]
    tokens = [*prompt, *rollout.tokens_BT[row, :length].tolist()]
    padded = tokens + [0] * (24 - len(tokens))
    found = vllm_weights.score(language, params, padded, temperature=temperature)
    rows.append(found[len(prompt) - 1 : len(tokens) - 1])
  return rows


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_log_probabilities_are_those_our_own_model_gives(sampler, temperature):
  options = SamplingOptions(n=2, max_tokens=6, temperature=temperature, stop_tokens=(256,))
  rollout = sampler.generate(PROMPTS, options, seed=1)
  samplers.check(rollout, PROMPTS, options, version=3)
  for row, found in enumerate(recomputed(PROMPTS, rollout, options, temperature)):
    np.testing.assert_allclose(rollout.sampler_logprob_BT[row, : len(found)], found, atol=1e-4)
  np.testing.assert_array_equal(rollout.full_logprob_BT, rollout.sampler_logprob_BT)


def test_draws_depend_on_seed_place_and_number_alone(sampler):
  wide = sampler.generate(PROMPTS, SamplingOptions(n=3, max_tokens=6), seed=1).tokens_BT.reshape(3, 3, 6)
  again, other = (sampler.generate(PROMPTS, SamplingOptions(n=2, max_tokens=6),
                                   seed=seed).tokens_BT.reshape(3, 2, 6) for seed in (1, 2))
  np.testing.assert_array_equal(wide[:, :2], again)
  assert (again != other).any()
  assert (again[0] != again[2]).any() and (again[:, 0] != again[:, 1]).any()


def test_without_temperature_all_completions_of_a_prompt_are_the_likeliest(sampler):
  options = SamplingOptions(n=2, max_tokens=4, temperature=0.0)
  rollout = sampler.generate(PROMPTS, options, seed=0)
  np.testing.assert_array_equal(rollout.tokens_BT[::2], rollout.tokens_BT[1::2])
  assert not rollout.sampler_logprob_BT.any()
  np.testing.assert_allclose(rollout.full_logprob_BT, recomputed(PROMPTS, rollout, options, 1.0), atol=1e-4)


@pytest.mark.parametrize("filters", [dict(top_k=5), dict(top_p=0.7), dict(min_p=0.2),
                                     dict(repetition_penalty=1.3)])
def test_with_filters_both_log_probabilities_are_there(sampler, filters):
  options = SamplingOptions(n=2, max_tokens=6, stop_tokens=(256,), **filters)
  rollout = sampler.generate(PROMPTS, options, seed=1)
  real_BT = samplers.completion_mask(rollout)
  for row, found in enumerate(recomputed(PROMPTS, rollout, options, 1.0)):
    np.testing.assert_allclose(rollout.full_logprob_BT[row, : len(found)], found, atol=1e-4)
  assert (rollout.full_logprob_BT != rollout.sampler_logprob_BT)[real_BT].any()


def test_completions_stop_at_tokens_and_strings(sampler, stub):
  plain = sampler.generate(PROMPTS[:1], SamplingOptions(max_tokens=6), seed=4)
  tokens = plain.tokens_BT[0].tolist()
  stopped = sampler.generate(PROMPTS[:1], SamplingOptions(max_tokens=6, stop_tokens=tokens[2:3]), seed=4)
  first = tokens.index(tokens[2])
  assert stopped.tokens_BT[0].tolist() == tokens[: first + 1] and stopped.reason_B == ("stop_token",)
  string = next(char for char in plain.text_B[0] if char.isascii())
  cut = sampler.generate(PROMPTS[:1], SamplingOptions(max_tokens=6, stop_strings=(string,)), seed=4)
  assert cut.reason_B == ("stop_string",) and cut.text_B[0] == plain.text_B[0].split(string)[0]
  assert cut.tokens_BT[0].tolist() == tokens[: tokens.index(ord(string)) + 1]
  assert stub.engine.asked[-1]["stop"] == [string] and stub.engine.asked[-1]["ignore_eos"]


def test_weights_are_handed_over_in_turn_and_stamped(make, stub):
  made = make(url=stub.url)
  writes = []
  for version, factor in ((4, 1.0), (5, 0.7), (6, 1.1)):
    made.load(weights(factor), version)
    writes.append(made.generate(PROMPTS, OPTIONS, seed=1))
    assert (writes[-1].version_B == version).all()
    assert made.stats["hand_over_gap_nats"] < 1e-4 and made.stats["hand_over_s"] > 0
    assert stub.engine.version.endswith(f":{version}")
  assert (writes[0].sampler_logprob_BT[:, 0] != writes[1].sampler_logprob_BT[:, 0]).any()
  folders = stub.engine.reloads
  assert len(folders) == 3 and folders[0] == folders[2] != folders[1]
  assert stub.engine.routes["/reset_prefix_cache"] == 3
  settings = json.loads((pathlib.Path(folders[0]) / "config.json").read_text())
  assert settings["tie_word_embeddings"] is False
  with pytest.raises(ValueError, match="version 4, training has 6; max_staleness=1"):
    samplers.check(writes[0], PROMPTS, OPTIONS, version=6, max_staleness=1)
  samplers.check(writes[1], PROMPTS, OPTIONS, version=6, max_staleness=1)


def test_adapters_are_merged_and_a_shared_head_is_written_apart(make, stub, tmp_path):
  options = freeze(dict(rank=2, alpha=4, targets=("q", "up"), scaling="rank"))
  language, params = tiny("decoder", tied=True, lora=options)
  folder = vllm_weights.Exports(language.module, like=None, shared_folder=str(tmp_path / "shared"),
                                workdir=tmp_path, dtype="float32", max_tokens=64).write(params)
  with Stub(Engine(folder)) as other:
    assert not other.engine.model.tied and not jax.tree.leaves(lora.split(other.engine.params)[0])
    made = make(language, url=other.url, shared_folder=str(tmp_path / "shared"))
    made.load(params, 0)
    made.load(jax.tree.map(lambda leaf: leaf * 0.9, params), 1)
    assert made.stats["hand_over_gap_nats"] < 1e-4


def test_a_server_with_a_shared_head_is_refused(make, tmp_path):
  language, params = tiny("decoder", tied=True)
  hf_export.save(tmp_path / "tied", language.module, params, max_tokens=64)
  with Stub(Engine(tmp_path / "tied")) as tied:
    with pytest.raises(ValueError, match="whose head is its embedding .* --model .*even"):
      make(language, url=tied.url).load(params, 0)
    tied.engine.root = "somewhere/else"  # Where this cannot look, the first scores tell.
    with pytest.raises(ServerError, match="version 1 the server's log-probabilities differ .* head apart"):
      make(language, url=tied.url).load(jax.tree.map(lambda leaf: leaf * 0.5, params), 1)


def test_a_server_that_leaves_the_temperature_out_is_refused(make):
  with Stub(engine_of("raw_logprobs")) as raw:
    sampler = make(url=raw.url)
    with pytest.raises(ValueError, match="without the temperature .* --logprobs-mode processed_logprobs"):
      sampler.load(weights(), 0)
    with pytest.raises(ValueError, match="no weights yet"):
      sampler.generate(PROMPTS, OPTIONS, seed=0)


def test_a_hand_over_that_changed_nothing_is_noticed(sampler, stub):
  stub.fail("short", route="/collective_rpc")
  with pytest.raises(ServerError, match="differ from our own model's by .* nearer to version 3: the server"):
    sampler.load(weights(0.5), 4)
  stub.fail("short", route="/reset_prefix_cache")
  with pytest.raises(ServerError, match="reset_prefix_cache did not empty the cache"):
    sampler.load(weights(0.5), 4)


@pytest.mark.parametrize("change, message", [
    (dict(dtype="bfloat16"), "computes in bfloat16, config.vllm.dtype is float32; start it with --dtype"),
    (dict(dev_mode=False), "no route /collective_rpc.* VLLM_SERVER_DEV_MODE=1"),
])
def test_a_server_started_otherwise_is_refused(make, stub, change, message):
  for name, value in change.items():
    setattr(stub.engine, name, value)
  with pytest.raises(ValueError, match=message):
    make(url=stub.url).load(weights(), 0)


def test_failures_that_pass_are_tried_again(sampler, stub):
  expected = sampler.generate(PROMPTS, OPTIONS, seed=1).tokens_BT
  for how in ("503", "drop", "500", "abort"):
    before = stub.engine.routes["/v1/completions"]
    stub.fail(how)
    np.testing.assert_array_equal(sampler.generate(PROMPTS, OPTIONS, seed=1).tokens_BT, expected)
    assert stub.engine.routes["/v1/completions"] == before + 4


@pytest.mark.parametrize("how, times, message", [
    ("500", 3, r"http://127.0.0.1:\d+/v1/completions failed \(status 500\): EngineCore .* in 3 tries; look"),
    ("drop", 3, "/v1/completions does not answer .* in 3 tries; .* same command goes on"),
    ("null", 1, r"no log-probability for id \d+, number \d of a completion"),
    ("short", 1, "after 5 of 6 ids for 'length' .* which nothing asked for"),
    ("few", 1, "/v1/completions gave 1 of 2 completions"),
    ("beyond", 1, r"gave ids from \d+ to 1000000; this model has 0\.\.269: see that it serves this model"),
    ("abort", 3, "aborted a completion 3 times"),
])
def test_a_server_that_fails_gives_one_line_and_no_rollout(sampler, stub, how, times, message):
  stub.fail(how, times)
  with pytest.raises(ServerError, match=message):
    sampler.generate(PROMPTS[:1], SamplingOptions(n=2, max_tokens=6), seed=1)
  sampler.generate(PROMPTS[:1], OPTIONS, seed=1)  # And goes on when the server does.


def test_a_silent_server_is_given_up_on_in_time(make, stub):
  made = make(url=stub.url)
  made.load(weights(), 0)
  made._engine._client._timeout_s = 0.3  # Only now, since a busy machine may take longer to hand over.
  stub.fail("slow")
  with pytest.raises(ServerError, match=r"gave no answer within 0.3 s \(config.vllm.timeout_s\)"):
    made.generate(PROMPTS, OPTIONS, seed=1)


def test_a_server_that_dies_while_it_lets_wait_is_noticed(sampler, stub, monkeypatch):
  monkeypatch.setattr(vllm_client, "LOOK_EVERY_S", 0.05)
  expected = sampler.generate(PROMPTS[:1], OPTIONS, seed=1)
  stub.fail("slow")
  again = sampler.generate(PROMPTS[:1], OPTIONS, seed=1)
  np.testing.assert_array_equal(again.tokens_BT, expected.tokens_BT)  # One that is only slow is waited for.
  assert stub.engine.routes["/health"] > 2
  stub.fail("slow", 3)
  stub.fail("503", 1000, route="/health")
  with pytest.raises(ServerError, match="lets wait for an answer, and /health fails by now in 3 tries"):
    sampler.generate(PROMPTS[:1], OPTIONS, seed=1)


def test_a_refused_question_is_not_asked_again(sampler, stub):
  before = stub.engine.routes["/v1/completions"]
  stub.fail("400", 5)
  with pytest.raises(ValueError, match="refuses what it was asked .status 400.: EngineCore"):
    sampler.generate(PROMPTS[:1], OPTIONS, seed=1)
  assert stub.engine.routes["/v1/completions"] == before + 1


@pytest.mark.parametrize("label", ["default", "feedfeedfeed:3"])
def test_completions_by_weights_of_others_are_refused(sampler, stub, label):
  stub.engine.version = label
  with pytest.raises(ServerError, match=f"labelled '{label}', which is not of this run"):
    sampler.generate(PROMPTS, OPTIONS, seed=1)


@pytest.mark.parametrize("prompts, options, message", [
    ([[1] * 59], dict(max_tokens=6), "59 ids; .*max_tokens=6 more it does not fit the 64"),
    ([[1] * 58], dict(max_tokens=6, top_k=3), "does not fit the 63"),
    ([[]], {}, "prompt 0 has no ids"), ([[1], [270]], dict(max_tokens=6), "prompt 1 has ids .* 0..269"),
    (PROMPTS, dict(temperature=0.5, top_p=0.9), "temperature=0.5 with top_k.*kind='native'"),
    (PROMPTS, dict(temperature=3.0), "temperature=3.0 is not possible"),
    (PROMPTS, dict(temperature=0.001), "temperature=0.001 is not possible"),
])
def test_what_the_server_would_do_otherwise_is_not_asked(sampler, stub, prompts, options, message):
  before = stub.engine.routes["/v1/completions"]
  with pytest.raises(ValueError, match=message):
    sampler.generate(prompts, SamplingOptions(**options), seed=0)
  assert stub.engine.routes["/v1/completions"] == before


def keys_of(content):
  """Returns the names in a JSON value, without values; of lists, those of the first member."""
  if isinstance(content, dict):
    return {name: keys_of(inner) for name, inner in content.items() if name not in ("usage", "permission")}
  return [keys_of(content[0])] if isinstance(content, list) and isinstance(content[0], dict) else None


def test_the_stand_in_answers_as_vllm_does():
  records = {record["name"]: record for record in json.loads(RECORDS.read_text())}
  with Stub(Engine(QWEN, max_model_len=256, mode="raw_logprobs")) as stub:
    client = Client(stub.url, timeout_s=30.0, retries=0, backoff_s=0.0)
    for name in ("models", "weight_info", "reset_prefix_cache", "bad_model", "bad_json_field",
                 "update_weight_version"):
      record = records[name]
      answer = client.once(record["path"], record["request"])
      assert answer.status == record["status"] and keys_of(answer.content) == keys_of(record["response"])
    scored = records["prompt_logprobs"]
    theirs, ours = (answer["choices"][0]["prompt_logprobs"][1:] for answer in (
        scored["response"], client.ask(scored["path"], scored["request"])))
    numbers = [[entry[str(token)]["logprob"] for entry, token in zip(found, scored["request"]["prompt"][1:])]
               for found in (ours, theirs)]
    np.testing.assert_allclose(*numbers, atol=5e-5)
    greedy = records["greedy_token_ids"]
    for prompt, choice in zip(greedy["request"]["prompt"], greedy["response"]["choices"]):
      answer = client.ask("/v1/completions", greedy["request"] | {"prompt": prompt})
      assert answer.keys() == greedy["response"].keys()
      found = answer["choices"][0]
      assert found.keys() == choice.keys() and found["logprobs"].keys() == choice["logprobs"].keys()
      assert found["token_ids"] == choice["token_ids"]
      np.testing.assert_allclose(found["logprobs"]["token_logprobs"], choice["logprobs"]["token_logprobs"],
                                 atol=5e-5)
