"""Adapters and newer weights in a server that runs: by flags, by requests, and nothing in flight is lost."""
import contextlib
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from atlas_jax.checkpoint import Checkpoints
from atlas_jax.language import runs
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.language.pretrained import peft
from atlas_jax.language.serve import loading, served_run
from atlas_jax.language.serve.access import Access
from atlas_jax.language.serve.answering import Service
from atlas_jax.language.serve.json_fields import JsonFields
from atlas_jax.language.serve.server_metrics import ServerMetrics
from atlas_jax.models import lora
from configs import memory_40m
from tests import runs as tiny_runs
from tests import tuning
from tests.helpers import quick_compilation
from tests.language.serve import scripted
from tests.language.test_export import leave_run

OPTIONS = {"rank": 2, "alpha": 4, "targets": ("q", "v"), "scaling": "rank"}
TEXT, LOAD, UNLOAD, WEIGHTS = ("/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
                               "/v1/load_weights")
ASKED = dict(prompt="1+1=", max_tokens=12, seed=5, return_token_ids=True)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def write_adapters(folder, module, seed):
  """Writes adapters that change what the model writes."""
  with_lora = module.copy(lora=OPTIONS)
  draw = np.random.default_rng(seed)
  drawn = jax.tree.map(lambda x: draw.normal(0, 0.5, x.shape).astype(np.float32),
                       lora.start(with_lora, jax.random.key(0)))
  peft.save(folder, with_lora, drawn, base="run")


@pytest.fixture(scope="module")
def left(tmp_path_factory):
  """A run of a tiny decoder, (workdir, its config, its parameters), with a folder of adapters beside it."""
  folder = tmp_path_factory.mktemp("loading")
  config = tuning.config_of()
  params = leave_run(folder / "run", config)
  module = load_initial_model(config).language.module
  for seed, name in enumerate(("one", "two")):
    write_adapters(folder / "adapters" / name, module, seed)
  write_adapters(folder / "outside", module, 3)
  return folder, config, params


@contextlib.contextmanager
def client_of(folder, **fields):
  """Yields a client of the service of a run."""
  config = runs.config_of(folder / "run")
  config.serve.update(slots=2, group_rows=2, piece_tokens=16, store_every_tokens=16, room_tokens=2_048,
                      load_folder=str(folder / "adapters"), **fields)
  with served_run.opened(config, folder / "run", mode="serve") as served:
    limits = served_run.request_limits(config, served.text)
    yield scripted.Client(Service(served.scheduler, served.text, limits, Access(()),
                                  served_run.open_conversations(config),
                                  ServerMetrics(served.scheduler.stats, {}), served.trace, served.loader))


def ids(client, **changed):
  return client.post(TEXT, **ASKED, **changed)["choices"][0]["token_ids"]


def test_adapters_are_models_of_their_own_and_come_and_go_by_requests(left):
  folder, *_ = left
  with client_of(folder, adapters=f"first={folder / 'adapters' / 'one'}") as client:
    base, first = client.ask("/v1/models").json()["data"]
    assert (base["id"], base["parent"], first["id"], first["parent"]) == ("run", None, "first", "run")
    answer = client.ask(LOAD, {"lora_name": "org/second", "lora_path": "two"})
    assert answer.status_code == 200
    assert answer.text == "Success: LoRA adapter 'org/second' added successfully."
    found = [ids(client), ids(client, model="first"), ids(client, model="org/second")]
    assert len({tuple(one) for one in found}) == 3
    assert client.ask("/v1/models/org/second").json()["parent"] == "run"
    taken = client.refused(LOAD, {"lora_name": "first", "lora_path": "two"})
    assert "load_inplace" in taken["message"]
    client.refused(LOAD, {"lora_name": "run", "lora_path": "two", "load_inplace": True})
    again = {"lora_name": "first", "lora_path": "two", "load_inplace": True}
    assert client.ask(LOAD, again).status_code == 200
    assert ids(client, model="first") == found[2]
    assert client.ask(UNLOAD, {"lora_name": "first"}).status_code == 200
    assert client.refused(TEXT, ASKED | {"model": "first"}, status=404)["code"] == "model_not_found"
    client.refused(UNLOAD, {"lora_name": "first"}, status=404)
    client.refused(UNLOAD, {"lora_name": "run"}, status=404)
    assert ids(client) == found[0]


def test_newer_weights_serve_and_what_is_in_flight_ends_with_its_own(left, tmp_path):
  folder, config, params = left
  shutil.copytree(folder / "run", tmp_path / "run")
  (tmp_path / "adapters").mkdir()
  shutil.copytree(folder / "adapters" / "one", tmp_path / "adapters" / "one")
  long = ASKED | {"max_tokens": 1_200, "ignore_eos": True}
  with client_of(tmp_path, adapters=f"first={tmp_path / 'adapters' / 'one'}") as client:
    assert client.post(WEIGHTS) == {"model": "run", "version": 2, "changed": False}
    expected = client.post(TEXT, **long)["choices"][0]
    before = ids(client), ids(client, model="first")
    saver = Checkpoints(tmp_path / "run", **config.checkpoint)
    saver.save(3, {"params": jax.tree.map(lambda x: x * 1.5, params)}, {"step": 3})
    saver.close()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(client.post(TEXT, **long)["choices"][0]))
    asking.start()
    scheduler = client.service.scheduler
    while not scheduler.stats()["busy_slots"]:
      time.sleep(0.005)
    assert client.post(WEIGHTS) == {"model": "run", "version": 3, "changed": True}
    assert scheduler.stats()["busy_slots"] == 1  # Else nothing was in flight.
    late = client.post(TEXT, **ASKED)["choices"][0]
    asking.join()
    assert late["weights_version"] == 3
    assert answers == [expected]
    assert expected["weights_version"] == 2
    # Adapters stand upon the newer weights.
    assert client.ask("/v1/models/first").json()["version"] == 3
    assert late["token_ids"] != before[0]
    assert ids(client, model="first") not in (before[1], late["token_ids"])


def test_the_trace_of_a_memory_follows_its_weights(tmp_path):
  config = tiny_runs.changed(memory_40m.get_config("smoke,pretrain"), {})
  params = leave_run(tmp_path / "run", config)
  (tmp_path / "adapters").mkdir()
  write_adapters(tmp_path / "adapters" / "one", load_initial_model(tuning.config_of()).language.module, 0)
  with served_run.opened(_served(tmp_path), tmp_path / "run", mode="serve") as served:
    before = served.trace([256, 65, 66])
    newer = jax.tree.map(lambda x: x * 1.5, params)
    served.loader._newest = lambda: (newer, 9)
    assert served.loader.load_newest() == (9, True)
    assert not np.array_equal(served.trace([256, 65, 66]).surprise_T, before.surprise_T)
    with pytest.raises(ValueError, match="is a memory model, and adapters are for decoders"):
      served.loader.load_adapter("one", tmp_path / "adapters" / "one")


def _served(folder):
  config = runs.config_of(folder / "run")
  config.serve.update(slots=1, group_rows=1, piece_tokens=16, store_gib=0.0)
  return config


class Nothing:
  """A scheduler that only knows a name."""

  def models(self):
    return {"run": 2}


def loader_of(folder, newest=lambda: ({}, 2)):
  model = loading.LoadedModel("run", None, None)
  return loading.Loader(Nothing(), model, newest, None if folder is None else str(folder), print, print)


def test_requests_load_from_the_folder_alone(left, tmp_path):
  folder, *_ = left
  root = tmp_path / "root"
  root.mkdir()
  (root / "link").symlink_to(folder / "outside")
  (root / "file").write_text("")
  made = scripted.service()
  made.loader = loader_of(root)
  client = scripted.Client(made)
  strange = (".", "", "a\u0000b", "x" * 5_000, "none")
  for path in ("../outside", str(folder / "outside"), "link", "file", *strange):
    error = client.refused(LOAD, {"lora_name": "a", "lora_path": path}, status=404)
    assert error["param"] == "lora_path"
  for name in ("", "/a", "a b", "é", "a" * 200, "../a"):
    assert client.refused(LOAD, {"lora_name": name, "lora_path": "none"})["param"] == "lora_name"
  assert client.refused(LOAD, {"lora_path": "x"})["param"] == "lora_name"
  client.refused(UNLOAD, {"lora_name": "a", "lora_int_id": 1})
  client.refused(WEIGHTS, {"path": "x"})


def test_nothing_is_loaded_by_requests_unless_the_config_allows_it():
  for loader in (None, loader_of(None)):
    made = scripted.service()
    made.loader = loader
    client = scripted.Client(made)
    for path, body in ((LOAD, {"lora_name": "a", "lora_path": "b"}), (UNLOAD, {"lora_name": "a"}),
                       (WEIGHTS, {})):
      assert "config.serve.load_folder" in client.refused(path, body, status=403)["message"]


def test_where_trainers_have_tokens_only_they_have_anything_loaded(tmp_path):
  user, trainer = "a-user-of-enough-length", "a-trainer-of-enough-length"
  made = scripted.service()
  made.loader, made.access = loader_of(tmp_path), Access((user,), (trainer,))
  client = scripted.Client(made)
  asked = ((LOAD, {"lora_name": "a", "lora_path": "b"}), (UNLOAD, {"lora_name": "a"}), (WEIGHTS, {}))
  for path, body in asked:
    for token, status in ((None, 401), (user, 403)):
      headers = {} if token is None else {"Authorization": f"Bearer {token}"}
      assert client.ask(path, body, headers=headers).status_code == status, path
    answer = client.ask(path, body, headers={"Authorization": f"Bearer {trainer}"})
    assert "no token" not in answer.text, path


def test_a_checkpoint_that_cannot_be_read_leaves_the_weights(tmp_path):
  def broken():
    raise RuntimeError("damaged")

  loader = loader_of(tmp_path, broken)
  loader.try_newest()  # A signal has nobody to tell.
  with pytest.raises(Exception, match="the weights stay as they are: damaged") as caught:
    loader.answer_weights(JsonFields({}))
  assert caught.value.status == 409


def test_adapters_of_the_config_are_looked_at_before_weights_are_read(left, tmp_path):
  folder, *_ = left
  one = folder / "adapters" / "one"
  assert loading.start_adapters(f"a={one}, b/c={one}") == {"a": one, "b/c": one}
  assert loading.start_adapters(None) == {}
  for text, match in ((f"{one}", "must be NAME=FOLDER"), (f"a={one},a={one}", "twice"), ("=x", "NAME=FOLDER"),
                      (f"a={tmp_path}", "adapter_config.json"), (f"a={folder / 'run'}", "--mode=export")):
    with pytest.raises(ValueError, match=rf"config\.serve\.adapters.*{match}"):
      loading.start_adapters(text)
