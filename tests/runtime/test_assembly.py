"""Versions at work: fractions, comparisons, promotion and rollback, with scripted endpoints."""
import asyncio
import contextlib
import sqlite3

import pytest

from atlas_jax.runtime import canary, cli_deploy, cli_run
from atlas_jax.runtime.store import RuntimeStore
from atlas_jax.runtime.worlds import arithmetic
from tests.rollout.chat_server import Answer
from tests.runtime.checkpoints import write_checkpoint
from tests.runtime.worlds import sums

TASKS = arithmetic.tasks(60)


def deployed(settings, folder, server, **more):
  return asyncio.run(cli_deploy.deployed(settings, str(folder), url=server.url, **more))


def states(settings, role="teacher"):
  async def read():
    store = RuntimeStore(settings.store)
    await store.open()
    try:
      return await store.deployments(role)
    finally:
      await store.close()

  return asyncio.run(read())


def pairs_of(folder):
  with contextlib.closing(sqlite3.connect(folder / "atlas.db")) as store:
    return store.execute("SELECT new_score, old_score, is_error FROM canary_pairs "
                         "ORDER BY session_id").fetchall()


def ran(settings, rows=TASKS, **more):
  given = cli_run.bounded(settings, 8)
  return [one.result for one in asyncio.run(cli_run.through(given, rows, **more))]


def says(text):
  return lambda number, body: Answer({"choices": [{"text": text}], "usage": {"prompt_tokens": 3,
                                                                               "completion_tokens": 1}})


def test_a_better_version_is_promoted_and_every_session_is_stamped(tmp_path, server, capfd):
  settings = sums.load(tmp_path)
  before = ran(settings)
  server.use(says("c"))
  one = deployed(settings, write_checkpoint(tmp_path), server, fraction=1.0)
  assert (one.state, one.fraction, one.metadata["self_test"]) == (canary.CANARY, 1.0, 1.0)
  after = ran(settings)
  assert {found.versions["teacher"] for found in after} == {one.version}
  [now] = states(settings)
  assert now.state == canary.ACTIVE and now.metadata["decision"]["what"] == "promote"
  assert len(now.metadata["pairs"]) == 40 and "is promoted" in capfd.readouterr().err
  mean = lambda found: sum(each.reward for each in found) / len(found)
  assert mean(before) < 0.5 and mean(after) == 1.0


@pytest.mark.parametrize("answer", [says("x"), lambda number, body: Answer(status=400)])
def test_a_broken_version_is_rolled_back_within_forty_sessions(tmp_path, server, answer):
  settings = sums.load(tmp_path)
  server.use(says("c"))
  one = deployed(settings, write_checkpoint(tmp_path), server, fraction=1.0)
  server.use(answer)  # It broke behind its self-test.
  found = ran(settings)
  [now] = states(settings)
  assert now.state == canary.ROLLED_BACK and len(now.metadata["pairs"]) <= 40
  assert {each.status for each in found} == {"succeeded"}  # No answer is lost to it.
  again = ran(settings, arithmetic.tasks(5, seed=9))
  assert one.version not in {each.versions["teacher"] for each in again}


def test_a_trial_goes_on_after_a_restart_with_the_pairs_of_the_start_before(tmp_path, server):
  settings = sums.load(tmp_path)
  server.use(says("c"))
  deployed(settings, write_checkpoint(tmp_path), server, fraction=1.0)
  ran(settings, TASKS[:25])
  [now] = states(settings)
  assert now.state == canary.CANARY and len(pairs_of(tmp_path)) == 25
  ran(settings, TASKS[25:40])
  [now] = states(settings)
  assert now.state == canary.ACTIVE and now.metadata["decision"]["pairs"] == 40
  kept = [[one, other, bool(failed)] for one, other, failed in pairs_of(tmp_path)]
  assert now.metadata["pairs"] == kept and {one[0] for one in kept} == {1.0}


def test_a_session_ends_on_the_version_that_it_began_with(tmp_path, server):
  settings = sums.load(tmp_path)
  server.use(says("c"))
  one = deployed(settings, write_checkpoint(tmp_path), server, fraction=1.0)
  moved = []

  def script(number, body):
    if not moved:
      moved.append(asyncio.run(cli_deploy.rolled_back(settings, "teacher")))
    return Answer({"choices": [{"text": "c"}]})

  server.use(script)
  [found] = ran(settings, [{"task": "27+45=", "ground_truth": "72"}])
  assert found.versions["teacher"] == one.version and found.answer == "72"
  assert [each.state for each in states(settings)] == [canary.ROLLED_BACK]


def test_a_server_that_cannot_be_read_is_not_put_to_work(tmp_path, server):
  settings = sums.load(tmp_path)
  server.use(says(""))
  with pytest.raises(cli_deploy.StartError, match="of 20 replies of m at .* 0% can be read, and 95% are "
                                                   "needed"):
    deployed(settings, write_checkpoint(tmp_path), server)
  assert [one.state for one in states(settings)] == [canary.FAILED]


def test_deployed_twice_is_one_and_a_trial_is_not_interrupted(tmp_path, server):
  settings = sums.load(tmp_path)
  server.use(says("c"))
  first = deployed(settings, write_checkpoint(tmp_path / "a"), server, fraction=0.25)
  assert deployed(settings, tmp_path / "a", server).id == first.id
  with pytest.raises(cli_deploy.DeployError, match="is being tried"):
    deployed(settings, write_checkpoint(tmp_path / "b", weights=b"b"), server)
  back, before = asyncio.run(cli_deploy.rolled_back(settings, "teacher"))
  assert back.id == first.id and before is None
  assert asyncio.run(cli_deploy.rolled_back(settings, "teacher")) == (None, None)


def test_a_student_that_answers_nothing_is_not_put_to_work(tmp_path, server):
  settings = sums.load(tmp_path)
  server.use(lambda number, body: Answer(status=400))
  folder = write_checkpoint(tmp_path, role="student", protocol=None)
  with pytest.raises(cli_deploy.StartError, match="of 20 questions of m at .* 0% are answered"):
    deployed(settings, folder, server, role="student")
  assert [one.state for one in states(settings, "student")] == [canary.FAILED]
  server.use(says("9"))  # It is mended, and the same command puts it to work.
  one = deployed(settings, folder, server, role="student", fraction=1.0)
  assert (one.role, one.state, one.metadata["form"]) == ("student", canary.CANARY, "texts")
  [found] = ran(settings, [{"task": "4+5=", "ground_truth": "9"}], lane="auto")
  assert (found.versions["student"], found.answer, found.reward) == (one.version, "9", 1.0)
