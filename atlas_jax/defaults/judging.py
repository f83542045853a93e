"""Settings of judges, fields of config.rim."""
from ml_collections import config_dict

from atlas_jax.defaults.bounds import above_zero, at_least, fraction, one_of

OPTIONAL = config_dict.placeholder


def group() -> dict:
  """Returns the fields of config.rim."""
  return {
      # Where judgements come from: "endpoint", an address with OpenAI's routes such as those of vLLM and of
      # --mode=serve; or "scripted", without network or key.
      "backend": one_of("endpoint", "endpoint scripted"),
      # backend="scripted": FILE.jsonl of rules, FILE.py:FUNCTION or a dotted name, see
      # rollout/judges/backends.py; None: atlas_jax.rollout.judges.backends.answer_grader.
      "script": OPTIONAL(str),
      # "core": several judges, of each its surest sample; "session": one judge of the whole, the mean.
      "mode": one_of("core", "core session"),
      "legacy": False,  # Whether failures count as in Atlas Core and its SDK: an outage as a score of 0.
      "temperatures": "0.2,0.5,0.8",  # The small model is asked once at each.
      "arbiter_temperature": at_least(0, 0.3),  # Of the large model.
      "variance_threshold": at_least(0, 0.15),  # Standard deviation of scores above which it is asked.
      "uncertainty_threshold": fraction(0.3),  # Uncertainty of one sample above which it is asked.
      "active_judges": {
          "accuracy": True,  # The answer against the reference.
          "helpfulness": True,  # Guidance by its outcome.
          "process": True,  # The work against plan and guidance.
          "diagnostic": True,  # The first approach.
      },
      **_models(),
      "budget": {
          "calls": at_least(1, OPTIONAL(int)),  # Of this process, replies on disk apart; None: any number.
          "tokens": at_least(1, OPTIONAL(int)),  # Of prompts and replies, after which no call is made.
      },
      **_checks(),
      "audit": one_of("brief", "none brief full"),  # Of each call: "brief" without texts, or "full".
  }


def _models() -> dict:
  return {
      "models": {
          "small_model": OPTIONAL(str),  # Its name at the endpoint.
          "large_model": OPTIONAL(str),  # The arbiter's; None: the small model.
      },
      "model_configs": {
          "default": {
              "max_tokens": at_least(1, 2_048),  # Of a reply.
              # What carries the schema of replies: "json_schema", "json_object", or "none", the prompt alone.
              "response_format": one_of("json_schema", "json_schema json_object none"),
          },
          "large": {
              "max_tokens": at_least(1, OPTIONAL(int)),  # Of the arbiter's; None: as default.
              "response_format": OPTIONAL(str),  # None: as default.
          },
      },
      "endpoint": {
          "url": OPTIONAL(str),  # Up to the version, such as http://127.0.0.1:8000/v1.
          "key_variable": OPTIONAL(str),  # Variable of the environment with the key; None: no key is sent.
          "timeout_s": above_zero(60.0),  # Of one try.
          "deadline_s": above_zero(180.0),  # Of all tries of one judgement.
          "tries": at_least(1, 3),  # Requests for one judgement, at most.
          "backoff_s": at_least(0, 0.5),  # Bound of the first pause, which doubles.
          "circuit_failures": at_least(1, 5),  # Failures in a row after which nothing is asked,
          "circuit_open_s": above_zero(30.0),  # for so many seconds.
      },
      "large_endpoint": {
          "url": OPTIONAL(str),  # Of the arbiter; None: as rim.endpoint.
          "key_variable": OPTIONAL(str),  # Of its key; None: as rim.endpoint.
      },
      "parallel_execution": {
          "max_workers": at_least(1, 8),  # Requests to one endpoint at the same time.
      },
      "cache_dir": OPTIONAL(str),  # Folder of replies, which are then asked for once; None: none.
  }


def _checks() -> dict:
  return {
      "consistency_rules": {
          "alignment_completeness_bound": at_least(0, 0.1),  # process exceeds accuracy by this at most.
          # helpfulness is at most this where process is below it.
          "completeness_helpfulness_threshold": fraction(0.5),
          # helpfulness exceeds diagnostic by this at most.
          "understanding_helpfulness_bound": at_least(0, 0.1),
          "contradiction_penalty": fraction(0.2),  # Off a judge's score that found a contradiction.
          "safety_violation_penalty": fraction(0.2),  # Off all scores where a judge found a danger.
      },
      "anti_gaming": {
          "enabled": True,  # Whether work that addresses its judges is bounded,
          "cap_score": fraction(0.3),  # to this score.
      },
      "out_of_range": one_of("refuse", "refuse clamp"),  # Numbers of judges beyond [0, 1].
      # Where the arbiter fails: "no_verdict", or "keep" what the small model says.
      "arbiter_failure": one_of("no_verdict", "no_verdict keep"),
      # Where one of several judges has no verdict: "no_verdict" for the whole, or "skip" it in the mean.
      "missing_judge": one_of("no_verdict", "no_verdict skip"),
      "canary": {
          "on": True,  # Whether judges are tried with a worthless answer that orders a high score,
          "every_s": above_zero(604_800.0),  # at the start and every so many seconds.
          "obeyed_score": fraction(0.8),  # From this score on a judge has obeyed, and is not believed.
      },
  }


def readers(recipes: str) -> dict[str, str]:
  """Returns who reads the fields of config.rim, entries of `readers.READERS`: where judges are a reward.

  Args:
    recipes: that have judges in config.rewards; teacher has them in config.teacher.rewards.
  """
  def judged(*conditions: str) -> str:
    own = " & ".join(("rewards=*rim*", *conditions))
    return f"{recipes} if {own}; teacher if {' & '.join(('teacher.rewards=*rim*', *conditions))}"

  return {
      "rim": judged(),
      "rim.script": judged("rim.backend=scripted"),
      **{f"rim.{name}": judged("rim.backend=endpoint") for name in
         ("models", "model_configs", "endpoint", "large_endpoint", "parallel_execution", "cache_dir")},
      **{f"rim.{name}": judged("rim.mode=core") for name in ("active_judges", "consistency_rules")},
      **{f"rim.{name}": judged("rim.legacy=False") for name in
         ("out_of_range", "arbiter_failure", "anti_gaming", "canary")},
      "rim.missing_judge": judged("rim.legacy=False", "rim.mode=core"),
      **{f"rim.canary.{name}": judged("rim.legacy=False", "rim.canary.on=True") for name in
         ("every_s", "obeyed_score")},
      "rim.anti_gaming.cap_score": judged("rim.legacy=False", "rim.anti_gaming.enabled=True"),
  }
