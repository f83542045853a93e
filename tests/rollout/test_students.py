"""Students: models here, servers, modules of one's own; what each is asked, and what it gives."""
import shutil
import types

import jax
import numpy as np
import pytest

from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.rollout import students
from atlas_jax.rollout.chat_form import EndpointReply, ReplyTokens
from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.rollout.students import EndpointStudent, NativeStudent, StudentReply
from atlas_jax.state import Trained
from tests import hf_fixture, runs, teachers
from tests.helpers import assert_close, quick_compilation
from tests.recipes.test_teacher import config_of

ASKED = [[{"role": "user", "content": text}] for text in ("12+34=", "47+85=", "1+1=")]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
  """A student that is a model of its own, and what it is handed."""
  with quick_compilation():
    path = str(teachers.published(tmp_path_factory.mktemp("students") / "model"))
    start = students.open_student(config_of(teacher__student=path), None)
    params = jax.jit(start.language.init)(jax.random.key(1))
    made = NativeStudent(start, runs.one_device(), shared=False, pad_tokens=8, batch_rows=2)
    made.load(Trained({}, {"student": params}))
    yield made, params


def test_a_model_answers_with_its_own_tokenizer_and_scores_what_it_wrote(student):
  made, params = student
  replies = made.answer(ASKED, max_tokens=5, temperature=0.0, seed=1)
  assert [reply.tokens for reply in replies] == [len(reply.ids) for reply in replies]
  # The mean log-probability, row by row without padding.
  ids_B = [reply.ids for reply in replies]
  language = made.start.language
  expected = []
  for asked, ids in zip(ASKED, ids_B):
    prompt = made.prompt_ids(asked)
    whole = np.concatenate([prompt, ids])[None].astype(np.int32)
    hidden_BTD, _ = language.read(params, whole, np.zeros_like(whole))
    log_TV = jax.nn.log_softmax(hidden_BTD[0] @ language.head(params))[len(prompt) - 1:-1]
    expected.append(float(log_TV[np.arange(len(ids)), np.array(ids)].mean()))
  assert_close(made.mean_logprobs(ASKED, ids_B), np.array(expected), tolerance=1e-4)
  assert np.isnan(made.mean_logprobs(ASKED, [(), ids_B[1], ids_B[2]])[0])


def test_prompts_are_texts_or_put_into_the_students_chat_template(student, tmp_path):
  pytest.importorskip("jinja2", reason="needs the extra hf")
  made, _ = student
  assert made.prompt_ids(ASKED[2]).tolist() == [made.start.tokenizer.doc_id, *b"1+1="]
  with pytest.raises(ValueError, match="a question to the student: its prompt is a chat"):
    made.prompt_ids([*ASKED[0], *ASKED[1]])
  path = str(tmp_path / "chats")
  for name in ("qwen2_tiny", "byte_tokenizer"):
    shutil.copytree(hf_fixture.FOLDER / name, path, dirs_exist_ok=True)
  for name, has in (("texts", False), ("own", True)):
    config = config_of(teacher__student=path, teacher__student_template=name, data__chat_template=path)
    start = students.open_student(config, None)
    assert (start.template is not None) == has
  made = NativeStudent(start, runs.one_device(), shared=False, pad_tokens=8, batch_rows=2)
  chat = made.start.tokenizer.decode(made.prompt_ids([*ASKED[0], *ASKED[1]]))
  assert chat.index("12+34=") < chat.index("47+85=")


def test_a_server_answers_and_what_fails_is_marked():
  replies = [EndpointReply("46", ReplyTokens(5, 2), {"choices": [{"finish_reason": "stop"}]}),
             EndpointReply("1", ReplyTokens(), {"choices": [{"finish_reason": "length"}]}),
             EndpointError("timeout", None, 3)]
  requests = []
  endpoint = types.SimpleNamespace(ask_all=lambda given: requests.extend(given) or replies)
  found = EndpointStudent(endpoint).answer(ASKED, max_tokens=7, temperature=0.5, seed=10)
  assert found == [StudentReply("46", 2), StudentReply("1", None, "length"), StudentReply("", None, "abort")]
  assert [one.failed for one in found] == [False, False, True]
  assert [request.messages for request in requests] == ASKED
  assert requests[2].options == {"max_tokens": 7, "temperature": 0.5, "seed": 12}


@pytest.mark.parametrize(("fields", "message"), [
    ({"url": None}, "config.teacher.endpoint.url=None: .* needs the address"),
    ({"url": "http://127.0.0.1:1/v1"}, "config.teacher.endpoint.served_as=None"),
    ({"url": "127.0.0.1", "served_as": "m"}, "config.teacher.endpoint: the url of an endpoint is '127.0.0"),
    ({"url": "http://127.0.0.1:1/v1", "served_as": "m", "timeout_s": 9e9},
     "config.teacher.endpoint: timeout_s")])
def test_an_endpoint_that_cannot_be_is_refused(fields, message):
  config = config_of(teacher__sampler="endpoint",
                     **{f"teacher__endpoint__{name}": value for name, value in fields.items()})
  with pytest.raises(ValueError, match=message):
    students.load(config, None, None)


def test_a_student_of_ones_own_is_made_by_its_module():
  config = config_of(teacher__sampler="atlas_jax.rollout.toy_student")
  assert students.open_student(config, load_initial_model(config)) is None
  made = students.load(config, None, None)
  assert made.answer(ASKED, max_tokens=8, temperature=0.0, seed=0)[0].text == "46"
  with pytest.raises(ValueError, match="tests.rollout.test_students': its make gave a dict without answer"):
    students.load(config_of(teacher__sampler="tests.rollout.test_students"), None, None)


def make(config):
  """Makes something that is no student."""
  del config
  return {}
