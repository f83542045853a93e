"""Settings of traces of agents' sessions as data, which config.data.name="traces" reads."""
from ml_collections import config_dict

from atlas_jax.defaults.bounds import above_zero, fraction, one_of, one_of_or_module, seed

OPTIONAL = config_dict.placeholder


def group() -> dict:
  """Returns what is read of traces, and which of them."""
  return {
      # Whose text sft and gkd learn: the "student"'s verified answer, the "teacher"'s guidance, or "none",
      # where gkd with completions of its own needs prompts alone.
      "target": one_of("student", "student teacher none"),
      # Completions that grpo learns from: "sampled" anew, or "served", those that `atlas proxy` recorded in
      # front of a server that tells ids, by these ids and with its log-probabilities as the sampler's.
      "completions": one_of("sampled", "sampled served"),
      # What is asked: the session's "task", or each "step" with all that was known before it.
      "prompt": one_of("task", "task step"),
      # Before a student's answer: its "task" alone, or earlier "attempts" and the guidance behind them.
      "shown": one_of("task", "task attempts"),
      # How a teacher is asked: "plain" words, or a module's `lesson`, see data/traces/conversation.py.
      "lesson": one_of_or_module("plain", "plain"),
      # Reward of a session from which on a student's answer is learnt that nobody verified; None: it is not.
      "verified_reward": fraction(OPTIONAL(float)),
      # Reviews that are let through, of pending, approved, quarantined, with commas between them.
      "review_status": "approved",
      "status": "succeeded",  # Ends of sessions that are let through; never those that still run.
      "min_reward": fraction(OPTIONAL(float)),  # Least reward; sessions without a verdict have none.
      "learning_key": OPTIONAL(str),  # Families of tasks, with commas between them; None: all.
      "lane": OPTIONAL(str),  # Of auto, paired, coach, escalate, with commas between them; None: all.
      "verified": OPTIONAL(bool),  # Whether the answer must have passed its last check, or not; None: either.
      "guidance": OPTIONAL(bool),  # Whether the teacher must have said something, or not; None: either.
      "versions": OPTIONAL(str),  # NAME=VERSION of what ran, such as "student=3,protocol=1"; None: any.
      "max_age_days": above_zero(OPTIONAL(float)),  # Days since the session began, at most.
      "require_ground_truth": False,  # Whether sessions without a right answer are left out.
      # Module whose `scrub` takes the record of each trace used and returns it without personal data.
      "scrub": OPTIONAL(str),
      # What stays on one side of the split: the sessions of one task, or of one learning_key.
      "split_by": one_of("session", "session learning_key"),
      "split_seed": seed(42),  # Of the split alone, so that runs are evaluated on the same sessions.
      "strict": False,  # Whether any line that is no trace is an error.
      "max_reject_frac": fraction(0.05),  # Fraction of lines that may be none where that is not strict.
      "rejects_file": OPTIONAL(str),  # JSON lines that get a row for each of them; None: they are counted.
  }
