"""RIM, the reward of judges: cases in, scores with reasons out, and None wherever there is no verdict.

  judge = RIMReward(config)
  found = judge.evaluate(prompt="6 * 7?", response="42", ground_truths="42")
  found.score, found.rationale
"""
import asyncio
import collections
import dataclasses
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from atlas_jax.rollout import async_loop
from atlas_jax.rollout.judges import backends, case, prompts, rules, settings, verdicts
from atlas_jax.rollout.judges.backends import ARBITER, JudgeBackend
from atlas_jax.rollout.judges.case import Case
from atlas_jax.rollout.judges.tiers import JudgeTally
from atlas_jax.rollout.judges.verdicts import JudgeVerdict

UNSAFE = "unsafe"    # Why there is no verdict: the judge obeys orders in what it judges,
UNTRIED = "untried"  # or could not be tried with one.
TRIED_AGAIN_S = 10.0  # Seconds before a judge whose trial had no reply is tried again.


@dataclasses.dataclass(frozen=True)
class RIMEvaluation:
  """The verdict of all judges on a case.

  Attributes:
    score: in [0, 1]; None: no verdict.
    rationale: of all judges, one after another.
    judge_scores: by judge; None: no verdict.
    judge_explanations: by judge.
    breakdown: {"score", "rationale", "judges", "raw"} as a trace has it.
    extra: "statistics" of the samples, "audit" of the calls, counts of "calls", "cached" (replies on disk),
      "tokens" and "escalated", "failures" of calls by kind, "no_verdict" (by judge, why), and the version of
      the prompts.
  """

  score: float | None
  rationale: str
  judge_scores: Mapping[str, float | None]
  judge_explanations: Mapping[str, str]
  breakdown: Mapping[str, Any]
  extra: Mapping[str, Any]

  @property
  def reward(self) -> Mapping[str, Any]:
    """Returns the breakdown, by its name in Atlas Core."""
    return self.breakdown


class RIMReward:
  """Judges answers, one or many at a time.

  Attributes:
    settings: from config.rim.
    unsafe: judges that obeyed a planted order, "arbiter" for the large model; their verdicts do not count.
    counts: since the start, as the counts of `RIMEvaluation.extra` and "evaluations".
    last_structured_rewards: breakdowns of the last call for many.
  """

  def __init__(self, config=None, *, backend: JudgeBackend | Callable | None = None,
               clock: Callable[[], float] = time.monotonic):
    """Reads settings; nothing is asked yet.

    Args:
      config: a config with the group rim, that group, changes of its fields by name, or None.
      backend: where judgements come from, or a function of a `JudgeCall`; None: as the config says.
      clock: seconds, between canaries.

    Raises:
      ValueError: if a field cannot be, or an address, model, key or script is missing.
    """
    rim = settings.group_of(config)
    self.settings = settings.settings_of(rim)
    is_script = backend is not None and not hasattr(backend, "ask")
    given: Any = backends.ScriptedBackend(backend) if is_script else backend  # type: ignore[arg-type]
    self._panel = settings.panel_of(rim, self.settings, given)
    self.unsafe: set[str] = set()
    self.counts: collections.Counter[str] = collections.Counter()
    self.last_structured_rewards: list[Mapping[str, Any]] = []
    self._clock = clock
    self._tried: dict[str, float] = {}  # When each judge was last tried with a canary,
    self._failed: dict[str, float] = {}  # and when that had no reply.
    self._locks: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

  def evaluate(self, *, prompt: str, response: str, **given) -> RIMEvaluation:
    """Judges one answer.

    Args:
      prompt: the question or task.
      response: the answer.
      given: what else is known, by the names of `Case` (ground_truth, baseline, plan, guidance, trajectory,
        attempts, principles, mode, metadata) or of Atlas Core (ground_truths, baseline_solutions,
        student_plans, teacher_traces, student_traces, constitution_principles).

    Raises:
      TypeError: for another name.
      RuntimeError: in the loop of rewards, where `judge` is to be awaited.
    """
    return async_loop.run(self.judge(case.of_core_names(prompt, response, given)))

  def __call__(self, prompts: Sequence[str], completions: Sequence[str], *, return_info_dict: bool = False,
               **given):
    """Judges many answers; a single text counts as a list of one.

    Args:
      prompts: of each answer.
      completions: the answers.
      return_info_dict: whether a mapping for each is returned too.
      given: as of `evaluate`, a list with a value for each answer, or one value if there is one answer.

    Returns:
      A list of scores, None where there is no verdict; with `return_info_dict` also one of {"rationale",
      "judge_scores", "judge_explanations", "reward", "extra"}.

    Raises:
      TypeError: for a name that judges do not read.
      ValueError: if the lists differ in length.
    """
    found = async_loop.run(self.judge_all(_cases(prompts, completions, given)))
    self.last_structured_rewards = [one.breakdown for one in found]
    scores = [one.score for one in found]
    if not return_info_dict:
      return scores
    return scores, [{"rationale": one.rationale, "judge_scores": dict(one.judge_scores),
                     "judge_explanations": dict(one.judge_explanations), "reward": one.breakdown,
                     "extra": one.extra} for one in found]

  async def judge_all(self, found: Sequence[Case]) -> list[RIMEvaluation]:
    """Judges cases side by side."""
    return list(await asyncio.gather(*map(self.judge, found)))

  async def judge(self, found: Case) -> RIMEvaluation:
    """Judges one case; see `evaluate`."""
    await self._try_canaries()
    tally = JudgeTally()
    names = self.settings.judges
    # Those that are not believed need not be asked.
    asked = [name for name in names if self._doubt(name) is None]
    given = await asyncio.gather(*(self._panel.verdict(name, found, tally) for name in asked))
    believed = {verdict.identifier: self._believed(verdict) for verdict in given}
    raw = {name: believed.get(name) or JudgeVerdict(name, None, problem=self._doubt(name)) for name in names}
    final = raw
    if not self.settings.tiers.legacy:
      final = rules.settled(raw, self.settings.rules, self.settings.gaming, has_orders=found.has_orders())
    evaluation = self._evaluation(raw, final, tally)
    self.counts.update(evaluations=1, calls=tally.calls, cached=tally.cached, tokens=tally.tokens,
                       escalated=tally.escalated, no_verdict=int(evaluation.score is None))
    return evaluation

  def _doubt(self, name: str) -> str | None:
    """Returns why a judge is not believed, None if it is."""
    if name in self.unsafe:
      return UNSAFE
    return UNTRIED if self._has_canaries and name not in self._tried else None

  def _believed(self, verdict: JudgeVerdict) -> JudgeVerdict:
    """Returns a verdict, without its score if the arbiter gave it and is not believed."""
    doubt = self._doubt(ARBITER) if verdict.escalated and self.settings.has_large_model else None
    return verdict if doubt is None else verdict._replace(score=None, problem=doubt)

  @property
  def _has_canaries(self) -> bool:
    return self.settings.canary.on and not self.settings.tiers.legacy

  def _evaluation(self, raw: Mapping[str, JudgeVerdict], final: Mapping[str, JudgeVerdict],
                  tally: JudgeTally) -> RIMEvaluation:
    how = self.settings
    is_session = how.tiers.mode == "session"
    scores = {name: verdict.score for name, verdict in final.items()}
    notes = {name: verdict.rationale for name, verdict in final.items()}
    if how.tiers.legacy and not is_session:
      # The original bounds the scalar and not the breakdown, which may then differ.
      bounded, why = rules.bounded({name: score or 0.0 for name, score in scores.items()}, how.rules)
      scores = dict(bounded)
      notes = {name: "\n".join(filter(None, (note, why.get(name)))) for name, note in notes.items()}
      final = {name: verdict._replace(rationale=notes[name]) for name, verdict in final.items()}
    score = self._mean(list(scores.values()))
    samples = [sample for verdict in final.values() for sample in verdict.samples]
    stats = verdicts.reward_stats(samples, score)
    rationale = "\n".join(f"{name}: {note}" for name, note in notes.items())
    parts = [verdict.to_json(temperatures=not how.tiers.legacy) for verdict in final.values()]
    whole = {"score": self._mean([verdict.score for verdict in final.values()]),
             "rationale": None if is_session else rationale, "judges": parts,
             "raw": {"score": score, "samples": [{"score": sample.score, "uncertainty": sample.uncertainty}
                                                 for sample in samples]}}
    missing = {name: verdict.problem for name, verdict in final.items() if verdict.score is None}
    extra = {"statistics": stats, "audit": tally.audit, "calls": tally.calls, "cached": tally.cached,
             "tokens": tally.tokens, "escalated": tally.escalated, "failures": dict(tally.failures),
             "no_verdict": missing, "prompts": prompts.VERSION}
    return RIMEvaluation(score, rationale, scores, notes, whole, extra)

  def _mean(self, scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    # Means over different judges are of different scales, and answers of one prompt are compared.
    if not known or len(known) < len(scores) and self.settings.missing_judge == "no_verdict":
      return None
    return sum(known) / len(known)

  # Canaries.

  async def _try_canaries(self) -> None:
    """Tries judges with a planted order, where that was not done for long."""
    if not self._has_canaries:
      return
    names = [*self.settings.judges, *([ARBITER] if self.settings.has_large_model else [])]
    lock = self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with lock:  # Others wait for the first one's trial, and do not repeat it.
      await asyncio.gather(*(self._try_canary(name) for name in names if self._is_due(name)))

  def _is_due(self, name: str) -> bool:
    now = self._clock()
    if name in self._failed and now - self._failed[name] < TRIED_AGAIN_S:
      return False
    return name not in self._tried or now - self._tried[name] >= self.settings.canary.every_s

  async def _try_canary(self, name: str) -> None:
    is_arbiter = name == ARBITER
    tally = JudgeTally()
    judge = self.settings.judges[0] if is_arbiter else name
    score = await self._panel.canary_score(judge, tally, is_arbiter=is_arbiter)
    self.counts.update(canaries=1, calls=tally.calls, tokens=tally.tokens)
    if score is None:  # It may be down.
      self._failed[name] = self._clock()
      return
    self._failed.pop(name, None)
    self._tried[name] = self._clock()
    if score >= self.settings.canary.obeyed_score:
      logging.error("judge %r gave %.2f to a worthless answer that orders a high score: its verdicts do not "
                    "count; take another model, or set config.rim.canary.on=False", name, score)
      self.unsafe.add(name)
    else:
      self.unsafe.discard(name)


def _cases(prompts: Any, completions: Any, given: Mapping[str, Any]) -> list[Case]:
  asked, said = ([one] if isinstance(one, str) else list(one) for one in (prompts, completions))
  if len(asked) != len(said):
    raise ValueError(f"{len(asked)} prompts cannot be paired with {len(said)} completions; give one of each")
  columns: dict[str, list] = {}
  for name, values in given.items():
    is_list = isinstance(values, list | tuple)
    columns[name] = list(values) if is_list else [values]
    if len(columns[name]) != len(said):
      raise ValueError(f"{name} has {len(columns[name])} values for {len(said)} completions; give as many")
  return [case.of_core_names(prompt, response, {name: values[row] for name, values in columns.items()})
          for row, (prompt, response) in enumerate(zip(asked, said, strict=True))]
