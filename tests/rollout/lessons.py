"""Builds lessons of the student that forgets to carry, and sources of a teacher that writes from a script."""
import numpy as np

from atlas_jax.data import prompts, tokenizer
from atlas_jax.data.problems import Problem
from atlas_jax.language.decoding.sampler import SamplingOptions, ScriptedSampler
from atlas_jax.rollout import ask, rewards, teaching
from atlas_jax.rollout.groups import Scoring
from atlas_jax.rollout.lessons import Lessons, LessonSettings
from atlas_jax.rollout.source import RolloutPlan
from atlas_jax.rollout.teacher_rewards import LeakRule, TeacherRewards
from atlas_jax.rollout.teacher_source import TeacherSource
from atlas_jax.rollout.teaching_reward import TeachingReward
from atlas_jax.rollout.toy_student import ToyStudent

BYTES = tokenizer.ByteTokenizer()
WORDS = ["c", "no", "x", "mind the c of it"]
SUMS = {"47+85=": "132", "12+34=": "46", "28+31=": "59", "77+77=": "154"}


def problems(sums=None):
  """Problems of these sums."""
  return [Problem(f"f.jsonl:{line}", asked, answer)
          for line, (asked, answer) in enumerate((sums or SUMS).items(), start=1)]


def grade(found, texts, *, step=0):
  """Grades answers as the recipe does."""
  return rewards.Rewards({"correct": 1.0}).score(found, texts, step=step).reward_B


def lessons(student=None, **settings):
  """Lessons with the plain set, without a probe, and their student."""
  student = student or ToyStudent()
  settings = {"templates": teaching.PLAIN, "probe_tokens": 0, "max_tokens": 8, **settings}
  return Lessons(student, grade, LessonSettings(**settings)), student


def teacher_rewards(names="teaching", reward=None, rule=None, **given):
  """Rewards of a teacher whose tokens are bytes."""
  return TeacherRewards(names, reward or TeachingReward(), rule or LeakRule(), count_tokens=len, **given)


def made(found=None, *, words=None, n=3, student=None, wanted=None, scoring=None, settings=None, seed=3,
         encode=None, place=(0, 1), **plan):
  """A source of a teacher that draws its replies from a script, and its student."""
  found = prompts.ProblemList(found or problems())
  taught, student = lessons(student, **(settings or {}))
  options = SamplingOptions(n=n, max_tokens=20, stop_tokens=(256,))
  source = TeacherSource(
      prompts.PromptSource(found, batch_rows=n, group_size=n, seed=seed),
      ScriptedSampler(BYTES, lambda text, params: words or WORDS), wanted or teacher_rewards(),
      lessons=taught, encode=encode or ask.encoder(BYTES), options=options, seed=seed, tokenizer=BYTES,
      scoring=scoring or Scoring(), plan=RolloutPlan(**{"batch_rows": 2 * n, "table_rows": 6, **plan}),
      old_logprobs=lambda params, frozen, batch: np.zeros((2 * n, batch["completion_BT"].shape[1])),
      process_index=place[0], process_count=place[1])
  return source, student
