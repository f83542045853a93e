"""Settings of alerts, fields of config.alerts, and the rules that a run has unless they are changed.

A rule of RULES says only what differs from RULE. config.alerts.rules changes rules by name, and adds others:
{"loss_spike": {"bound": 3.0}, "cold": {"metric": "train/lr", "direction": "below", "bound": 1e-6}}.
"""
from typing import Any

from ml_collections import config_dict

from atlas_jax.defaults.bounds import above_zero, at_least

OPTIONAL = config_dict.placeholder

# The fields of a rule.
RULE: dict[str, Any] = {
    # Names of metrics, or patterns such as memory/fast_norm_mean/*, with commas between them: the first one
    # that a row has is read. "measure:NAME" is computed from a row, see monitor/alerts/measures.py.
    "metric": "",
    "over": "max",  # Several metrics of one pattern become a number by "max", "min" or "mean".
    # What the number is compared with. "nothing": with the bound alone. "typical": the median of the last
    # `window` rows that broke no bound. "best": the best median of `window` rows so far. "last": the row
    # before, from 0 on. "spread": the largest minus the smallest of `window` rows, over their mean, in place
    # of the number. "against": the number falls by `bound` while the metric `against` rises.
    "relative_to": "nothing",
    "against": "",  # relative_to="against": the other metric, which is to be no better than this one.
    "direction": "above",  # On which side of the bound an alarm lies: "above" or "below".
    "bound": 0.0,  # In the metric's unit; with "typical" and "best" a factor on what it is compared with.
    "recover": None,  # The bound behind which an alarm is over; None: `bound`.
    "least_change": 0.0,  # "typical", "best", "against": least distance in the metric's unit.
    "window": 20,  # Rows that are looked back on.
    "for_n": 1,  # Rows with the metric in a row before an alarm, and before it is over.
    "from_step": 0,  # First update that is judged.
    "cooldown_s": 1_800.0,  # Seconds of the run after an alarm in which the same one is not sent again.
    "severity": "warning",  # "info", "warning" or "critical".
    "quiet": True,  # Whether config.alerts.quiet_hours hold it back.
    "send": True,  # Whether it is sent; False: it is written to alerts.jsonl alone.
    "recipes": "",  # Recipes that it is for, with spaces between them; "": all.
    "message": "",  # What an alarm says, before the numbers.
    "recovery": "back within bounds",  # What is said when it is over.
    "remedy": "",  # What to do.
}

LOSSES = "memory_lm episodic trm sft gkd ranked"  # Whose loss is no signed objective, as that of a policy is.
HEALTH = "val/loss_nats,val/divergence_nats,eval/all/lm_loss"
ACCURACY = "val/accuracy,eval/all/exact_accuracy,eval/held_out_accuracy"

RULES: dict[str, dict[str, Any]] = {
    "nan": dict(
        metric="train/skipped_updates", relative_to="last", severity="critical", quiet=False,
        message="updates were skipped, since a loss or gradient was not finite",
        recovery="updates are finite again",
        remedy="look at the text that the log names, or lower config.optim.lr"),
    "loss_spike": dict(
        metric="train/loss_nats", relative_to="typical", bound=2.0, recover=1.5, least_change=0.5,
        recipes=LOSSES, message="the loss is far above that of the rows before",
        recovery="the loss is near that of the rows before",
        remedy="wait; if it stays, go on from an earlier checkpoint with a lower config.optim.lr"),
    "divergence": dict(
        metric="train/loss_nats", relative_to="best", bound=1.35, recover=1.15, least_change=0.4, window=5,
        for_n=3, severity="critical", quiet=False, recipes=LOSSES,
        message="the loss rises away from the best of the run", recovery="the loss is near its best again",
        remedy="stop, and go on from an earlier checkpoint with a lower config.optim.lr or a longer "
               "config.optim.warmup_steps"),
    "gradient_spike": dict(
        metric="grad/norm", relative_to="typical", bound=10.0, recover=3.0, least_change=5.0,
        message="the gradient norm is far above that of the rows before",
        recovery="the gradient norm is near that of the rows before",
        remedy="see that config.optim.clip_norm is set; if it happens often, lower config.optim.lr"),
    "gate_collapse": dict(
        metric="memory/mix_gate_raw_mean/*", over="max", direction="below", bound=0.1, recover=0.12, for_n=3,
        severity="critical", message="all gates of the memory are shut, before their floor",
        recovery="a gate of the memory is open again",
        remedy="raise config.model.gate_floor or config.optim.gate_lr_scale, or lower config.model."
               "window_tokens"),
    "dead_memory": dict(
        metric="memory/fast_norm_mean/*", over="max", direction="below", bound=0.01, recover=0.02, for_n=3,
        severity="critical", message="the fast weights are near zero: no read is longer than that",
        recovery="the fast weights are no longer near zero",
        remedy="in a new run raise config.model.memory.retention_init or write_rate_init"),
    "frozen_memory": dict(
        metric="memory/fast_norm_mean/*", over="mean", relative_to="spread", direction="below", bound=1e-5,
        window=4, severity="critical", message="the norm of the fast weights is the same whatever is read",
        recovery="the norm of the fast weights depends on what is read",
        remedy="look at config.model.memory.writes and at a bound that the norm may stand at"),
    "memory_recall": dict(
        metric="measure:recall_ratio", over="min", bound=0.99, recover=0.95, for_n=4,
        message="what was just written is recalled no better than by answering zero, in all blocks",
        recovery="what was just written is recalled",
        remedy="near 1 nothing is written: in a new run raise config.model.memory.write_rate_init; above 1 "
               "writes overshoot: lower it"),
    "memory_collapse": dict(
        metric="eval/collapsed", bound=0.5, message="a sign of collapse stood at the last evaluations",
        recovery="no sign of collapse stands", remedy="the log names the sign and its remedy"),
    "memory_gain": dict(
        metric="eval/memory_gain_swapped_nats_low,eval/memory_gain_emptied_nats_low", direction="below",
        bound=0.0, for_n=3, from_step=1_000,
        message="the interval of memory gain holds zero: what is read from memory does not help",
        recovery="the interval of memory gain lies above zero",
        remedy="raise config.data.segment_len, or lower config.model.window_tokens; config.eval."
               "gain_max_tokens narrows the interval"),
    "idle": dict(
        metric="measure:idle", bound=0.5, for_n=3, message="updates teach nothing",
        recovery="updates teach again", remedy="the log of the run says why, with the field to change"),
    "repeated_data": dict(
        metric="measure:repeated", bound=0.5, for_n=2, severity="critical",
        message="batches come again that were trained on a few updates ago",
        recovery="batches are new again",
        remedy="look at the order of the data source, and at how many documents or prompts it has"),
    "validation": dict(
        metric=HEALTH, relative_to="best", bound=1.1, recover=1.05, least_change=0.05, window=1, for_n=2,
        message="the loss on held-out data rises away from its best",
        recovery="the loss on held-out data is near its best again",
        remedy="the run overfits: take the best checkpoint, or give more data"),
    "validation_accuracy": dict(
        metric=ACCURACY, over="min", relative_to="best", direction="below", bound=0.75, recover=0.9,
        least_change=0.1, window=1, for_n=2, message="accuracy on held-out data falls away from its best",
        recovery="accuracy on held-out data is near its best again",
        remedy="take the best checkpoint, or lower config.optim.lr"),
    "reward_hacking": dict(
        metric="val/accuracy", relative_to="against", against="rollout/reward_mean", bound=0.05,
        least_change=0.02, window=4, recipes="grpo",
        message="rewards rise while held-out answers get worse",
        recovery="rewards and held-out answers go the same way again",
        remedy="read the completions, and look for what config.rewards pays without a right answer"),
    "judge_no_verdict": dict(
        metric="rollout/judge_no_verdict_frac", bound=0.2, recover=0.1, for_n=2,
        message="judges have no verdict on many completions, which are then trained on by none",
        recovery="judges have verdicts again",
        remedy="look at the endpoint of config.rim; its failures stand in the table of completions"),
    "judge_unsafe": dict(
        metric="rollout/judge_unsafe", bound=0.5, severity="critical",
        message="a judge obeys orders that stand in what it judges; its verdicts do not count",
        recovery="no judge obeys orders in what it judges",
        remedy="take another model in config.rim.models"),
    "student_failed": dict(
        metric="teacher/failed_frac", bound=0.2, recover=0.1, for_n=2, recipes="teacher",
        message="many answers of the student cannot be had, and guidance for them is not trained on",
        recovery="the student answers again",
        remedy="look at the server of config.teacher.endpoint, or raise its tries and deadline_s"),
    "guidance_leaks": dict(
        metric="teacher/leaked_frac", bound=0.2, recover=0.1, for_n=3, recipes="teacher",
        message="much of the guidance contains the answer",
        recovery="little guidance contains the answer",
        remedy="set config.teacher.leak=penalty, or tell the teacher by config.teacher.templates"),
    "verified_falls": dict(
        metric="runtime/verified_share", relative_to="typical", direction="below", bound=0.7, recover=0.85,
        least_change=0.15, for_n=2, recipes="runtime",
        message="fewer answers are verified than before", recovery="as many answers are verified as before",
        remedy="look at what was deployed last, and `atlas rollback`"),
    "no_verdict": dict(
        metric="runtime/no_verdict_share", bound=0.1, recover=0.05, for_n=2, recipes="runtime",
        message="many answers have no reward, since no judge gave a verdict",
        recovery="answers have rewards again", remedy="look at the endpoints of the judges"),
    "reward_drift": dict(
        metric="runtime/drift_alerts", bound=0.5, recipes="runtime",
        message="rewards are far from their baseline", recovery="rewards are near their baseline",
        remedy="review the sessions that are marked, `arc-atlas review sessions`"),
    "store_down": dict(
        metric="runtime/spooled", bound=0.0, recipes="runtime", severity="critical", quiet=False,
        message="sessions wait in the spool, for the store does not take them",
        recovery="the spool is empty",
        remedy="look at the store; `atlas doctor` says what it answers"),
    "leases_expired": dict(
        metric="runtime/leases_expired", relative_to="last", bound=0.0, recipes="runtime",
        message="sessions lost their process", recovery="no more sessions lost their process",
        remedy="take them up by `atlas resume`, and look why the process ended"),
    "length_explosion": dict(
        metric="rollout/length_mean_tokens,rollout/length_tokens", relative_to="best", bound=3.0,
        recover=2.0, least_change=32.0, window=5, for_n=3, recipes="grpo teacher gkd",
        message="completions have become much longer",
        recovery="completions are short again",
        remedy="look for a reward of length in config.rewards, or set config.rollout.overlong_tokens"),
    "throughput": dict(
        metric="perf/step_s", relative_to="typical", bound=2.5, recover=1.5, least_change=0.2, for_n=3,
        message="updates take much longer than before", recovery="updates are as fast as before",
        remedy="see perf/in_step_frac (below 1 the host or the data is slow) and other programs on the "
               "machine"),
    # Of rows, for afterwards; while it lasts it is told by a thread of the run, see config.alerts.stall_s,
    # and of a run whose process is gone by `python -m atlas_jax.monitor.alerts --watch`.
    "stall": dict(
        metric="perf/step_s", relative_to="typical", bound=20.0, recover=3.0, least_change=5.0,
        severity="critical", quiet=False, message="the run made no update for long",
        recovery="the run makes updates again",
        remedy="look at the data source, the sampler and the devices"),
    "disk": dict(
        metric="system/disk_free_gib", over="min", direction="below", bound=2.0, recover=4.0,
        severity="critical", quiet=False, message="the disk of the run is nearly full",
        recovery="the disk of the run has room again",
        remedy="delete what is not needed, or lower config.checkpoint.keep_last"),
    # Events: they have no metric, and are told as they happen.
    "failed": dict(severity="critical", quiet=False, message="the run ended by an error"),
    "silent": dict(
        severity="critical", quiet=False, recovery="the run gives signs of life again",
        message="the process of the run is gone or gives no sign of life",
        remedy="start the same command again: it goes on from the newest checkpoint"),
    "stopped": dict(severity="info", message="the run was stopped, and is saved"),
    "checkpoint": dict(severity="info", send=False, message="a checkpoint is being saved"),
    "finished": dict(severity="info", message="the run is finished"),
    "upload": dict(severity="info", message="the result of the upload"),
}


def group() -> dict:
  """Returns the fields of config.alerts."""
  return {
      "on": True,  # Whether rules are judged while a run trains; alerts.jsonl gets every event.
      # Where events are sent, with commas: log, telegram, webhook, email. Their addresses and secrets come
      # from the environment, see docs/guides/alerts.md.
      "sinks": "log",
      "off": "",  # Names of rules that are not judged, with commas between them.
      "rules": {},  # Changes of rules by name, and rules of one's own; see RULE in defaults/alerts.py.
      # Hours of the day, such as "22-8", in which what is not critical waits; in the time zone of TZ.
      "quiet_hours": OPTIONAL(str),
      "per_minute": at_least(1, 20),  # Messages to one place within a minute, at most; others wait.
      "queue": at_least(1, 200),  # Messages that wait at a time, at most; others are counted as not sent.
      "tries": at_least(1, 6),  # Tries of a message, with growing pauses between them.
      "timeout_s": above_zero(10.0),  # Of one try.
      "close_s": above_zero(10.0),  # Seconds that the end of a run waits for messages on their way.
      # Seconds without an update before a stall is told; evaluations, saving and compiling do not count.
      "stall_s": above_zero(900.0),
  }
