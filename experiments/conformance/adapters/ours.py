"""atlas_jax: the memory layer with the default rule and others, and the language model by its mixes.

The layer is at the defaults of `config.model.memory`: padding is document -1, packed documents are numbered
(`doc_BT`), and any cut into calls is offered. The language model stands in `language_model`.
"""
import functools
import gc

import numpy as np

from experiments.conformance import language_model, subject

PACKAGE = "atlas_jax"
DOCUMENTED = "README, section on the layer; `atlas_jax.NeuralMemory`; `atlas_jax.models.lm.LM`"
RULES = ("delta", "titans", "omega", "ttt_mlp", "kda", "gated_delta_2")
MIXES = ("layer", "context", "only", "e2e")
WRITES = ("qkv_kernel", "conv_kernel", "value_kernel", "gates")
WIDTH, HEADS = 32, 4
DOCUMENTS = 2


def subjects() -> list[subject.Subject]:
  """Returns the layer with each of RULES, and the language model with each of MIXES."""
  layers = [
      subject.Subject(
          name=f"NeuralMemory, {rule}", build=functools.partial(_build, rule), size=WIDTH, chunk=64,
          settings=f"defaults; dim {WIDTH}, {HEADS} heads", release=_release)
      for rule in RULES]
  return layers + [
      subject.Subject(
          name=f"LM, {mix}", build=functools.partial(language_model.LanguageModel, mix), ids=True,
          size=language_model.VOCAB, chunk=language_model.WINDOW, says={"packing": language_model.GRID},
          lacks={"padding": language_model.NO_PADDING}, release=_release,
          settings=f"configs/memory_40m.py:cpu,pretrain,mix={mix}; width {language_model.WIDTH} for 192, "
                   f"{language_model.DEPTH} blocks, window {language_model.WINDOW}, chunks of "
                   f"{language_model.CHUNK}, so that attention alone does not reach back far")
      for mix in MIXES]


def _release() -> None:
  """Drops compiled programs: with those of all rows a process has more maps of memory than Linux allows."""
  import jax

  _programs.cache_clear()
  language_model.programs.cache_clear()
  jax.clear_caches()
  gc.collect()


@functools.cache
def _programs(rule: str, dtype: str, seed: int) -> dict:
  """Returns parameters and compiled functions, which hold nothing of a text."""
  import jax
  import jax.numpy as jnp

  from atlas_jax import NeuralMemory

  layer = NeuralMemory(dim=WIDTH, heads=HEADS, max_documents=DOCUMENTS,
                       **({} if rule == "delta" else {"rule": rule}))
  params = jax.jit(layer.init)(jax.random.key(seed), jnp.zeros((1, 1, WIDTH), jnp.float32))
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)

  def loss(params, x_BTD, weight_BTD):
    return subject.mean_loss(layer.apply(params, x_BTD)[0], weight_BTD)

  return {"params": params, "read": jax.jit(layer.apply), "loss": jax.jit(jax.value_and_grad(loss))}


def _build(rule: str, dtype: str, seed: int):
  return _Layer(rule, dtype, seed)


class _Layer:
  """The layer as a `subject.Model`."""

  def __init__(self, rule: str, dtype: str, seed: int):
    import jax

    self._wide = functools.partial(jax.enable_x64, dtype == "float64")
    self._dtype = dtype
    with self._wide():
      self._programs = _programs(rule, dtype, seed)

  def read(self, x, *, keep_BT=None, doc_BT=None):
    if keep_BT is not None:
      doc_BT = np.where(keep_BT, 0 if doc_BT is None else doc_BT, -1).astype(np.int32)
    with self._wide():
      return np.asarray(self._programs["read"](self._programs["params"], x, None, doc_BT)[0])

  def read_on(self, x, state):
    with self._wide():
      y, state = self._programs["read"](self._programs["params"], x, state)
      return np.asarray(y), state

  def write_parameters(self):
    return {name: np.asarray(leaf) for name, leaf in subject.leaves(self._programs["params"], WRITES).items()}

  def loss(self, x, start, nudge):
    import jax

    with self._wide():
      params = jax.tree_util.tree_map_with_path(
          lambda path, leaf: leaf + nudge.get(jax.tree_util.keystr(path), 0), self._programs["params"])
      params = jax.tree.map(lambda leaf: leaf.astype(self._dtype), params)
      weight_BTD = subject.loss_weights(x.shape, start).astype(self._dtype)
      loss, given = self._programs["loss"](params, x, weight_BTD)
      return float(loss), {name: np.asarray(leaf) for name, leaf in subject.leaves(given, WRITES).items()}
