"""The metrics that runs write: name, unit, meaning, writer, and since which version of the schema.

`README.md` of this folder lists them; `python -m atlas_jax.monitor.schema_page` writes its tables anew.
The first row of metrics.jsonl names the version as "metrics_version". A version is raised where a metric
changes its meaning or goes; a metric that is added has the next version as `since`, and raises it, too.
Recipes, rewards and evaluations of one's own may write more.
"""
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from atlas_jax.monitor import schema_post_training

VERSION = 1

# Parts of names that differ from run to run -> what they may be, and in words.
PLACEHOLDERS = {
    "layer": (r"layer_\d{2,}", "layer_00 and so on: the block, from 0"),
    "unit": (r"[a-z_]+", "what the recipe counts, such as tokens, spans or prompts"),
    "group": (r"[a-z_]+", "parameters by what they are for"),
    "range": (r"\d+-\d+", "FIRST-LAST: positions in a document"),
    "n": (r"\d+(?:\.\d+)?", "a number"),
    "name": (r"[A-Za-z0-9_.\-]+", "as it is called in the config"),
    "reward": (r"\S.*", "of config.rewards: a name, a dotted one, or a file and a name"),
    "own": (r"\S.*", "as the function of a reward calls it"),
    "ablation": (r"emptied|swapped|gate_zero|writes_off", "what is done to the memory"),
    "role": (r"[a-z_]+", "student, teacher, probe, judge or learner"),
    "task": (r"[A-Za-z0-9_.\-:]+", "of config.eval.tasks or config.episode.tasks"),
    "axis": (r"[a-z_0-9]+_[A-Za-z0-9_.\-]+", "AXIS_VALUE of texts of a task, such as distance_256"),
    "kind": (r"start|compile|input|step|evaluation|checkpoint|lost|stopped", "see `ledger.KINDS`"),
    "bound": (r"low|high", "of the interval of 95% over documents or texts"),
    "arc": (r"ARC(?:/accumulated)?(?:/unseen)?", "votes of this evaluation, or of all so far"),
    "view": (r"original|t[0-7]", "how tasks are turned: t0 to t7, or as they stand"),
    "split": (r"all|unseen", "all held-out puzzles, or those whose question is not trained on"),
}


class Metric(NamedTuple):
  """A metric, or the metrics of a pattern."""

  pattern: str  # its name, with {placeholders}
  unit: str  # "" for a plain number
  meaning: str
  writer: str
  since: int = 1


LOOP = "every run"
LOG = "every run, of the newest update"
MEMORY = "models with a memory"
TEXT = "memory_lm, episodic"
TRM = "trm"
POLICY = "grpo, teacher"
ROLLOUT = "grpo, teacher, gkd"
HEALTH = "evaluation memory_health"
GAIN = "evaluation memory_gain"
RECALL = "evaluations of recall tasks"
NATS = "nats"
FRAC = "fraction"


def _metrics(writer: str, lines: str) -> list[Metric]:
  """Reads lines of "pattern | unit | meaning"."""
  found = []
  for line in lines.strip().splitlines():
    pattern, unit, meaning = (part.strip() for part in line.split("|"))
    found.append(Metric(pattern, unit, meaning, writer))
  return found


# Heading -> metrics, in the order of the page.
SECTIONS = {
    "Loss and progress": [
        *_metrics(LOOP, """
step | updates | updates made, skipped ones too; every row has it
metrics_version | | version of this schema; the first row has it
train/{unit}_seen | {unit} | counted since the run began
"""),
        *_metrics(LOG, """
train/loss_nats | nats | loss of the batch
train/perplexity | | exp of it, where it is a mean surprise of tokens
train/lr | | learning rate of the update
train/counted_{unit} | {unit} | that the loss is a mean over
train/skipped_updates | updates | left out since loss or gradients were not finite, so far
train/skipped_in_row | updates | left out just now, in a row
"""),
        *_metrics(TEXT, """
train/bits_per_byte | bits | loss over the bytes of the text, comparable across tokenizers
train/window_tokens | tokens | how far attention sees in this update
train/attention_kept_frac | fraction | of rows whose attention is not left out
"""),
        *_metrics("episodic", """
train/text_loss_nats | nats | loss of the rows of text
train/recall_loss_nats | nats | loss of the answers in episodes
train/phase | | phase of the gates, from 0
train/gate_floor | fraction | least fraction of memory's output that enters a block
"""),
    ],
    "Gradients, updates and parameters": [
        *_metrics(LOG, """
grad/norm | | norm of all gradients, before clipping
grad/norm/{group} | | of a group of `tree.GROUPS`
grad/norm_tables | | of the rows of tables outside the optimizer
train/grad_norm/{group} | | norm of gradients of a group of `monitor.group_norms`, before clipping
train/update_norm/{group} | | norm of what the optimizer adds to them
train/param_norm/{group} | | norm of the parameters before the update
update/changed_frac | fraction | of parameters that the update changes in their last bit or more
update/largest_change | | by which any one number of the parameters changes
update/to_weight_ratio/{group} | fraction | norm of a group's update over that of its parameters
"""),
    ],
    "Memory, of the training batch": [
        *_metrics(MEMORY, """
memory/mix_gate_raw_mean/{layer} | fraction | gate of reading before its floor
memory/mix_gate_raw_below_0.1_frac/{layer} | fraction | of tokens at which it is below 0.1
memory/mix_gate_mean/{layer} | fraction | gate of reading as it is applied
memory/write_rate_mean/{layer} | | step size of writes
memory/momentum_mean/{layer} | fraction | of the momentum that is kept per token
memory/retention_half_life_tokens/{layer} | tokens | in which half of the memory is forgotten, of the mean log
memory/surprise_norm_mean/{layer} | | norm of the gradient of the inner loss at a write
memory/inner_loss_before/{layer} | | inner loss of a segment's last chunk before it is written
memory/inner_loss_after/{layer} | | and after
memory/recall_loss_after/{layer} | | half the squared error of recalling that chunk
memory/recall_loss_zero/{layer} | | half the squared error of answering zero
memory/fast_norm_mean/{layer} | | norm of the fast weights at a segment's end
memory/key_diversity/{layer} | fraction | directions of its keys over those they could have, see above
memory/inner_loss_nats/{layer} | nats | memory_mix=e2e: loss of the inner steps
memory/inner_grad_norm/{layer} | | memory_mix=e2e: norm of their gradients
"""),
    ],
    "Memory, on held-out text": [
        *_metrics(HEALTH, """
eval/memory_health_tokens | tokens | that all of these are measured on
eval/raw_gate_mean/{layer} | fraction | gate of reading before its floor
eval/raw_gate_mean_min_layer | fraction | the least of all layers
eval/raw_gate_below_0.1_frac/{layer} | fraction | of tokens at which it is below 0.1
eval/gate_mean/{layer} | fraction | gate of reading as it is applied
eval/write_rate_mean/{layer} | | step size of writes
eval/surprise_norm_mean/{layer} | | norm of the gradient of the inner loss at a write
eval/half_life_tokens/{layer} | tokens | in which half of the memory is forgotten
eval/inner_loss_before/{layer} | | the rule's loss of a segment's last chunk before it is written
eval/inner_loss_after/{layer} | | and after
eval/recall_loss_after/{layer} | | half the squared error of recalling that chunk
eval/recall_loss_zero/{layer} | | half the squared error of answering zero
eval/inner_loss_ratio/{layer} | fraction | the first over the second: 1 recalls nothing
eval/memory_norm/{layer} | | norm of the fast weights at a segment's end
eval/memory_norm_ratio/{layer} | fraction | over the norm that a document starts with
eval/memory_norm_in_values/{layer} | | over the norm of one value, where documents start from zero
eval/effective_rank/{layer} | | exp(entropy of singular values over their sum) of each row's and head's matrix
eval/effective_rank_{name}/{layer} | | the same of one matrix of a deep memory
eval/singular_value_{n}/{layer} | | 00 the largest, to 09; means over rows, heads and matrices
eval/singular_value_mean/{layer} | | of all singular values
eval/key_diversity/{layer} | fraction | as memory/key_diversity
"""),
        *_metrics(GAIN, """
eval/memory_gain_{ablation}_nats | nats | loss per token without the memory, minus that with it
eval/memory_gain_{ablation}_nats_{bound} | nats | its interval
eval/memory_gain_{ablation}_nats_by_position/{range} | nats | of tokens at these positions
eval/memory_gain_{ablation}_nats_by_position/{range}_{bound} | nats | its interval
eval/memory_gain_loss_nats | nats | loss with the memory, of the same tokens
eval/memory_gain_loss_nats_by_position/{range} | nats | of tokens at these positions
eval/memory_gain_tokens | tokens | that gains are measured on
eval/memory_gain_tokens_by_position/{range} | tokens | at these positions
eval/memory_gain_documents | documents | that they are of
eval/memory_gain_swapped_loss_nats | nats | loss with the memory, of the tokens that "swapped" is measured on
eval/memory_gain_swapped_loss_nats_by_position/{range} | nats | of tokens at these positions
eval/memory_gain_swapped_tokens | tokens | whose partner had read something
eval/memory_gain_swapped_tokens_by_position/{range} | tokens | at these positions
eval/memory_gain_swapped_documents | documents | that they are of
"""),
        *_metrics("evaluation collapse", """
eval/collapse_signs | | signs of a dead memory that stand now
eval/collapse_unknown | | signs of which it cannot be said
eval/collapsed | | 1 where a sign stood at config.eval.collapse_evals evaluations in a row
"""),
    ],
    "Held-out loss": [
        *_metrics("evaluations of text and of examples", """
val/loss_nats | nats | loss per counted target
val/perplexity | | exp of it
val/tokens | tokens | counted
val/bits_per_byte | bits | over the bytes of the text
val/loss_nats_by_position/{range} | nats | of targets at these positions in a document
val/tokens_by_position/{range} | tokens | at these positions
"""),
        *_metrics("evaluation accuracy", """
eval/train_accuracy | fraction | of targets that are the likeliest token, on trained rows
eval/held_out_accuracy | fraction | and on held-out rows
eval/train_loss_nats | nats | loss on the same trained rows
eval/held_out_loss_nats | nats | and on the held-out ones
eval/phase | | see `monitor.phases`
eval/grokked_at_step | updates | where held-out accuracy rose long after trained accuracy
"""),
        *_metrics("baselines", """
eval/trigram_bits_per_byte | bits | of a trigram model, on the same bytes
eval/trigram_tokens | tokens | that it was fitted on
eval/gzip_bits_per_byte | bits | of gzip, on the same bytes
eval/baseline_bits_per_byte | bits | recorded, of a model without a memory
eval/baseline_loss_nats_by_position/{range} | nats | recorded, of a model without a memory
"""),
    ],
    "Recall": [
        *_metrics(RECALL, """
eval/recall/{task}/accuracy | fraction | of answers that are right, letter by letter
eval/recall/{task}/accuracy_{bound} | fraction | its interval
eval/recall/{task}/choice_accuracy | fraction | of answers that are the likeliest candidate
eval/recall/{task}/choice_accuracy_{bound} | fraction | its interval
eval/recall/{task}/nats | nats | per answer
eval/recall/{task}/chance | fraction | right by guessing
eval/recall/{task}/answers | answers | asked for
eval/recall/{task}/texts | texts | that they are in
eval/recall/{task}/beyond_reach_accuracy | fraction | of answers beyond the reach of attention
eval/recall/{task}/{ablation}_accuracy | fraction | without the memory
eval/recall/{task}/{ablation}_accuracy_{bound} | fraction | its interval
eval/recall/{task}/{ablation}_choice_accuracy | fraction | of likeliest candidates, without the memory
eval/recall/{task}/{ablation}_choice_accuracy_{bound} | fraction | its interval
eval/recall/{task}/{ablation}_nats | nats | per answer, without the memory
eval/recall/{task}/{axis}/accuracy | fraction | of the texts of one kind
eval/recall/{task}/{axis}/choice_accuracy | fraction | of likeliest candidates there
eval/recall_accuracy_past_window | fraction | of answers beyond the reach of attention, a mean over tasks
eval/recall_accuracy_{ablation} | fraction | of the same, without the memory
eval/recall_accuracy_by_distance/{n} | fraction | so many tokens back
eval/recall_accuracy_by_items/{n} | fraction | with so many things stored
eval/recall_chance | fraction | right by guessing
eval/lm_eval/{task}/{name} | | as lm-evaluation-harness names it
"""),
    ],
    "Puzzles": [
        *_metrics(TRM, """
train/count | puzzles | finished in this update
train/accuracy | fraction | of their tokens that are right
train/exact_accuracy | fraction | of them that are right as a whole
train/q_halt_accuracy | fraction | of halting logits on the right side
train/steps | supervision steps | that they took
train/lm_loss | nats | per token, summed over slots
train/q_halt_loss | nats | of the halting logit
train/q_continue_loss | nats | of the continue logit
recent/accuracy | fraction | as train/accuracy, of the newest finished puzzle of each slot
recent/exact_accuracy | fraction | as train/exact_accuracy
recent/q_halt_accuracy | fraction | as train/q_halt_accuracy
recent/steps | supervision steps | as train/steps
eval/{split}/count | puzzles | with an answer
eval/{split}/accuracy | fraction | of tokens that are right
eval/{split}/exact_accuracy | fraction | of puzzles that are right as a whole
eval/{split}/q_halt_accuracy | fraction | of halting logits on the right side
eval/{split}/steps | supervision steps | until halting
eval/{split}/steps_spent | supervision steps | computed
eval/{split}/lm_loss | nats | per token
eval/{split}/q_halt_loss | nats | of the halting logit
"""),
        *_metrics("trm on ARC", """
{arc}/pass@{n} | fraction | of outputs among the first n predictions, a mean over tasks
{arc}/kaggle_score | fraction | of outputs solved by two attempts, over the outputs of all tasks
{arc}/harness_score | fraction | of outputs solved by two attempts, a mean over tasks
{arc}/whole_task_score | fraction | of tasks all of whose outputs are solved
ARC/exact_accuracy/{view} | fraction | of examples seen so that are right as a whole
ARC/n_examples/{view} | examples | seen so, with a known output
{arc}/n_tasks | tasks | with a known output
{arc}/n_outputs | outputs | that are known
{arc}/n_whole_tasks | tasks | without an unknown output
"""),
    ],
    "Post-training": [
        *_metrics("sft", """
sft/nll_nats | nats | per learnt token, whatever the loss
sft/probability_mean | fraction | of learnt tokens
sft/counted_frac | fraction | of tokens that are learnt
sft/filled_frac | fraction | of places that hold a token
"""),
        *_metrics(POLICY, """
policy/ratio_mean | | probability of the policy over that at sampling
policy/ratio_min | | the least
policy/ratio_max | | the largest
policy/clip_frac | fraction | of ratios without a gradient since they are out of bounds
policy/clip_low_frac | fraction | below
policy/clip_high_frac | fraction | above
policy/kl_nats | nats | per token, to the reference
policy/entropy_nats | nats | per token
policy/sampler_gap_nats | nats | mean difference between log probabilities of sampler and trainer
policy/sampler_gap_nats_max | nats | the largest
policy/sampler_ratio_mean | | correction of that difference
policy/stale_frac | fraction | of rows whose ratio is left out since they are too old
"""),
        *_metrics(ROLLOUT, """
rollout/reward_mean | | sum of rewards, a mean over completions
rollout/reward_std | | its standard deviation
rollout/reward/{reward}_mean | | one reward
rollout/reward/{reward}_std | | its standard deviation
rollout/logged/{own} | | what a reward logs of its own, a mean over groups
rollout/completion_tokens | tokens | written
rollout/length_tokens | tokens | per completion
rollout/length_mean_tokens | tokens | per completion
rollout/length_min_tokens | tokens | the shortest
rollout/length_max_tokens | tokens | the longest
rollout/terminated_length_mean_tokens | tokens | of completions that ended
rollout/terminated_frac | fraction | of completions that ended
rollout/truncated_frac | fraction | that had no room left
rollout/ended_frac | fraction | that ended by a stop token or text
rollout/unrewarded_frac | fraction | that got no reward, as where a judge failed
rollout/judge_no_verdict_frac | fraction | judges: of completions without a verdict, which are masked
rollout/judge_calls_per_completion | | judges: judgements asked for, those on disk among them
rollout/judge_cached_frac | fraction | judges: of these, those that were on disk
rollout/judge_tokens_per_completion | tokens | judges: of prompts and replies, those on disk apart
rollout/judge_escalated_frac | fraction | judges: of verdicts that the arbiter was asked for
rollout/judge_s | s | judges: that judging took
rollout/judge_unsafe | judges | that obeyed an order in what they judge
rollout/group_no_verdict_frac | fraction | of completions that no judge of groups has a verdict on, masked
rollout/group_inconsistent_frac | fraction | of completions whose judge of groups contradicts itself by order
rollout/group_calls_per_completion | | judges of groups: judgements asked for, those on disk among them
rollout/group_tokens_per_completion | tokens | judges of groups: of prompts and replies
rollout/group_s | s | judges of groups: that judging took
rollout/flat_groups_frac | fraction | of groups whose rewards are all equal
rollout/learnable_frac | fraction | of rows that teach something
rollout/resampled_groups | groups | asked again since they were flat
rollout/masked_groups | groups | that no token of is trained
rollout/skipped_prompts | prompts | passed over since they are too long
rollout/on_policy | | 1 where the student wrote the batch
rollout/age_updates | updates | since the batch was sampled
rollout/generate_s | s | that sampling took
rollout/reward_s | s | that rewards took
rollout/start_s | s | vllm: until its server was there
rollout/hand_over_s | s | vllm, server: until it had the weights
rollout/hand_over_gap_nats | nats | vllm, server: largest difference of log probabilities with these weights
distill/on_policy_frac | fraction | of rows that the student wrote
"""),
        *(one for writer, lines in schema_post_training.LINES.items() for one in _metrics(writer, lines)),
        *_metrics("evaluation problems", """
val/accuracy | fraction | of graded answers that are right
val/reward | | mean reward
val/length_tokens | tokens | per answer
val/ended_frac | fraction | of answers that ended by a stop token or text
val/graded_count | answers | graded
teacher/accuracy | fraction | gkd: the teacher's
teacher/reward | | the teacher's
teacher/length_tokens | tokens | the teacher's
teacher/ended_frac | fraction | the teacher's
teacher/graded_count | answers | the teacher's
val/divergence_nats | nats | gkd: between teacher and student, per counted unit
val/completion_tokens | tokens | gkd: that it is a mean over
val/spans | spans | gkd: that it is a mean over
"""),
    ],
    "Speed and machine": [
        *_metrics(LOOP, """
perf/step_s | s | per update
perf/{unit}_per_s | {unit}/s | counted
perf/in_step_frac | fraction | least fraction of time inside compiled steps
perf/model_flops_per_s | FLOP/s | of the model's matrix products, without recomputation
perf/peak_flops_per_s | FLOP/s | of all devices at best
perf/flops_fraction_of_peak | fraction | the first over the second
perf/device_memory_gib | GiB | in use on the fullest device, where the backend says it
perf/device_memory_peak_gib | GiB | most so far
perf/host_memory_gib | GiB | of this process, where no device says its own
perf/goodput_frac | fraction | of all time since the first start that went into steps
perf/time_{kind}_s | s | since the first start, by what it went into
data/repeated_frac | fraction | of updates whose batch equals one of the 64 before, see `monitor.repeats`
"""),
        *_metrics("every run, process 0", """
system/cpu_percent | % | of all processors of the machine, between two measurements
system/memory_gib | GiB | of the machine that is in use
system/disk_free_gib | GiB | on the disk of the workdir
system/gpu_percent | % | load of GPUs, their mean; with the package nvidia-ml-py
system/gpu_memory_gib | GiB | in use on the fullest GPU
"""),
    ],
}


def metrics() -> list[Metric]:
  """Lists all metrics."""
  return [metric for section in SECTIONS.values() for metric in section]


def find(name: str) -> Metric | None:
  """Returns the metric that a name is of, None if there is none; the pattern with the most words counts."""
  return next((metric for metric, fits in _compiled() if fits.fullmatch(name)), None)


def unknown(names: Iterable[str]) -> list[str]:
  """Returns the names that the schema does not have, sorted."""
  return sorted(name for name in set(names) if find(name) is None)


@functools.cache
def _compiled() -> list[tuple[Metric, re.Pattern]]:
  # A name of its own comes before a pattern that fits it, too.
  ordered = sorted(metrics(), key=lambda metric: metric.pattern.count("{"))
  return [(metric, re.compile(_regex(metric.pattern))) for metric in ordered]


def _regex(pattern: str) -> str:
  parts = re.split(r"\{(\w+)\}", pattern)
  return "".join(f"(?:{PLACEHOLDERS[part][0]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
