"""A sample of the model's text, for the eye."""
from atlas_jax.evals import EvalOut


def make(generate_fn, prompt: str, tokens: int):
  """Makes the evaluation.

  Args:
    generate_fn: (trained, prompt, *, tokens) -> pieces of text as they come, the prompt not among them.
    prompt: text to go on from.
    tokens: how many to add at most.

  Returns:
    run(trained, *, step) -> EvalOut with the prompt and what follows as its text, and no scalars.
  """

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    return EvalOut({}, prompt + "".join(generate_fn(trained, prompt, tokens=tokens)))

  return run
