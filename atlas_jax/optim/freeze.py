"""Frozen parameters: which ones `config.optim.freeze` names, and what keeps them as they are."""
import fnmatch

import jax
import jax.numpy as jnp
import optax

from atlas_jax import tree
from atlas_jax.fields import nearest


def mask(params_abstract, patterns: str | None):
  """Marks the parameters that patterns match.

  Args:
    params_abstract: what the optimizer trains, or its ShapeDtypeStructs.
    patterns: of parameter names, comma-separated, such as "embed/*,blocks/attention/*"; * stands for any
      text, slashes included. None freezes nothing.

  Returns:
    A tree of the same form: True for a frozen parameter.

  Raises:
    ValueError: if a pattern matches nothing; it names the pattern and the names near to it.
  """
  names = [name for name, _ in tree.named_leaves(params_abstract)]
  frozen = set() if patterns is None else _matched(patterns, names)
  return tree.map_named(lambda name, _: name in frozen, params_abstract)


def check_trained(params_abstract, patterns: str | None, *, has_tables: bool) -> None:
  """Refuses a run that changes nothing, because all of its parameters are frozen.

  Args:
    params_abstract, patterns: as for `mask`.
    has_tables: whether the run also trains tables outside of the optimizer, which patterns do not freeze.

  Raises:
    ValueError: if nothing is trained; see also `mask`.
  """
  if not all(jax.tree.leaves(mask(params_abstract, patterns))) or has_tables:
    return
  parts = sorted({name.split("/")[0] for name, _ in tree.named_leaves(params_abstract)})
  raise ValueError(f"config.optim.freeze={patterns!r} freezes all parameters, and nothing would be trained; "
                   f"leave some out: their names begin with {', '.join(parts)}")


def count(params_abstract, patterns: str | None) -> int:
  """Counts the numbers in all frozen parameters."""
  frozen = mask(params_abstract, patterns)
  return tree.count(jax.tree.map(lambda leaf, one: leaf if one else (), params_abstract, frozen))


def wrap(optimizer: optax.GradientTransformation, frozen) -> optax.GradientTransformation:
  """Returns an optimizer that keeps no state of frozen parameters and does not change them.

  Args:
    optimizer: of all parameters; its clipping does not count the gradients of frozen ones.
    frozen: what `mask` gives.
  """
  trained = jax.tree.map(lambda one: not one, frozen)
  # masked hands the updates of masked-out leaves through as they came, that is as gradients; set_to_zero is
  # what keeps frozen parameters. Masked-out leaves have no moments, and no part in the norm that is clipped.
  return optax.chain(optax.masked(optimizer, trained), optax.masked(optax.set_to_zero(), frozen))


def without_frozen(grads, frozen):
  """Returns gradients with zeros for frozen parameters, so that the compiler drops what computes them."""
  return jax.tree.map(lambda grad, one: jnp.zeros_like(grad) if one else grad, grads, frozen)


def kept_equal(average, params, frozen):
  """Returns a moving average whose frozen parameters are the parameters, bit for bit."""
  # Not by averaging: keep * a + (1 - keep) * a is a only up to rounding.
  return jax.tree.map(lambda old, new, one: new.astype(old.dtype) if one else old, average, params, frozen)


def _matched(patterns: str, names: list[str]) -> set[str]:
  found: set[str] = set()
  parts = [part.strip() for part in patterns.split(",") if part.strip()]
  if not parts:
    raise ValueError(f"config.optim.freeze={patterns!r} has no pattern; set it to None to freeze nothing")
  for part in parts:
    # fnmatchcase, because fnmatch folds case on some systems; its * also matches slashes.
    matched = [name for name in names if fnmatch.fnmatchcase(name, part)]
    # Each pattern must match: a misspelt one would train what was meant to stay.
    if not matched:
      raise ValueError(f"config.optim.freeze={patterns!r}: {part!r} matches none of the parameters that the "
                       f"optimizer trains; {_near(part, names)}")
    found.update(matched)
  return found


def _near(part: str, names: list[str]) -> str:
  """Returns which pattern or names may be meant."""
  inside = part.strip("/*")
  for pattern in (f"{inside}/*", f"*/{inside}/*", f"*/{inside}"):
    if any(fnmatch.fnmatchcase(name, pattern) for name in names):
      return f"did you mean {pattern!r}?"
  folders = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 2)}
  return nearest(inside, {name if name in names else f"{name}/*" for name in folders})
