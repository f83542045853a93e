"""Policy optimisation: completions that earn more than others of their prompt become likelier.

See `policy_training` for what a loss weighs and counts. With config.traces.completions="served" the
completions are recorded ones, see `rollout.served_source`.
"""
import functools

from atlas_jax import evals
from atlas_jax.data import prompts, stepped
from atlas_jax.data.traces import sources as traces
from atlas_jax.language import assets, first_params, samplers
from atlas_jax.language.decoding.sampler import Sampler
from atlas_jax.language.initial_model import InitialModel, load_initial_model, merge_frozen
from atlas_jax.losses.policy import PolicySettings
from atlas_jax.recipes import Accounting, Assets, LossOut, Recipe, ReferenceUpdate, Update
from atlas_jax.rollout import held_out, policy_training, reward_columns, rewards, served_source
from atlas_jax.rollout.source import RolloutSource


def make(config, mesh, workdir=None) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  rewards.of_config(config)  # Wrong ones are refused before anything is read.
  start = load_initial_model(config)
  settings = policy_training.settings_of(config)
  sampler = samplers.load(config, start, mesh, workdir)
  rollouts = source_of(config, start, sampler, mesh, workdir)
  stays = policy_training.has_fixed_reference(settings, config)
  moves = policy_training.reference_moves(settings, config)
  return Recipe(
      first_params.init_of(start, reference=stays), loss_of(config, start, settings), rollouts,
      evals_of(config, start, sampler), load=first_params.load_of(start, reference=stays),
      update=Update(reference=None if moves is None else ReferenceUpdate(*moves)),
      accounting=Accounting(policy_training.unit_of(settings), policy_training.finish,
                            backward_frac=policy_training.backward_frac(settings, start)),
      assets=Assets(save=functools.partial(assets.save, config, start)))


def source_of(config, start: InitialModel, sampler: Sampler, mesh, workdir=None) -> RolloutSource:
  """Makes the source of rollouts.

  Raises:
    ValueError: for prompts, rewards or settings that cannot be.
  """
  data = config.data
  wanted = rewards.of_config(config)
  options = held_out.options_of(config, start, n=data.group_size, temperature=config.sampler.temperature)
  given = {"options": options, "plan": policy_training.plan_of(config, start),
           "scoring": policy_training.scoring_of(config), "tokenizer": start.tokenizer, "seed": config.seed,
           "old_logprobs": policy_training.old_logprobs_of(config, start, mesh), "workdir": workdir,
           **stepped.this_process()}
  if data.name == traces.NAME and config.traces.completions == "served":
    return _recorded(config, start, sampler, wanted, given)
  # Completions are scored against answers; recorded solutions are not read.
  needs = reward_columns.needs_of(config, start, solution=False, answer=True)
  # One prompt per step, and the same in all processes, for each makes the whole rollout.
  found = prompts.PromptSource(prompts.of_config(config, needs=needs), batch_rows=data.group_size,
                               group_size=data.group_size, seed=config.seed)
  # One epoch at most is looked at, on the host: a column that no row has is an error before compilation.
  wanted.check_columns(found.batch(step)["problems"][0] for step in range(found.steps_per_epoch or 1))
  return RolloutSource(found, sampler, wanted, encode=held_out.encoder_of(config, start), whole=merge_frozen,
                       **given)


def _recorded(config, start: InitialModel, sampler: Sampler, wanted: rewards.Rewards, given
              ) -> served_source.ServedSource:
  served_source.check(config)
  data = config.data
  answers = traces.load_served(data.files, config.traces, held_out_frac=data.held_out_frac)
  found = served_source.of_answers(
      answers, start.tokenizer, group_size=data.group_size, max_prompt_tokens=data.max_prompt_tokens,
      max_tokens=config.sampler.max_tokens, overlong=data.overlong, vocab_size=start.language.vocab_size)
  wanted.check_columns(one.problem for one in found)
  return served_source.ServedSource(found, sampler, wanted, ends=start.end_tokens, **given)


def loss_of(config, start: InitialModel, settings: PolicySettings):
  """Makes the loss of a batch as `RolloutSource` describes it; see `Recipe.loss`."""
  batch_loss = policy_training.loss_of(config, start, settings)

  def loss(params, batch, *, frozen, carry, rng):
    del carry, rng
    out = batch_loss(params, batch, frozen)
    return LossOut(out.loss, out.weight, (), out.metrics, out.seen)

  return loss


def evals_of(config, start: InitialModel, sampler: Sampler) -> dict:
  """The evaluation of a run: held-out problems answered; none where nothing is held out."""
  if not config.data.held_out_frac:
    return {}
  return {"problems": evals.Eval(held_out.make(config, start, sampler, checked=True), "every")}
