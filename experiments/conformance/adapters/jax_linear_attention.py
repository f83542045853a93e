"""jax-linear-attention: four of its mixers, made by `make_mixer`, in float32.

A mixer reads a text at once, with `segment_ids` of packed documents, and goes on from a cache by `step`.
"""
import functools

import numpy as np

from experiments.conformance import subject

PACKAGE = "jax-linear-attention"
DOCUMENTED = "its README; docstrings of jla.layers.linear_attention and jla.layers.ttt"
WIDTH, HEADS, HEAD = 64, 4, 16
KINDS = {"gated_deltanet": "GatedDeltaNet", "kda": "KDA", "gdn2": "GatedDeltaNet2", "ttt_linear": "TTTLinear"}
ON_GRID = ("jla.ops.ttt says that a packed document matches a separate run exactly when it starts at a "
           "multiple of the mini-batch, 16")
WRITES = (".k_proj", ".v_proj", ".b_proj", ".w_proj", ".lr_proj")


def subjects() -> list[subject.Subject]:
  """Returns a mixer of each kind."""
  lacks = {"padding": "it offers no mask; padding at an end can be a document of its own",
           "float64": "its states and sums are float32"}
  return [
      subject.Subject(
          name=name, build=functools.partial(_Mixer, kind), size=WIDTH, chunk=64, lacks=lacks,
          settings=f"defaults, compute_dtype float32; d_model {WIDTH}, {HEADS} heads of {HEAD}",
          options={'implementation="reference"': {"implementation": "reference"}},
          says={"packing": ON_GRID} if kind == "ttt_linear" else {})
      for kind, name in KINDS.items()]


@functools.cache
def _programs(kind: str, dtype: str, seed: int, implementation: str):
  """Returns a mixer and compiled functions of it."""
  import equinox as eqx
  import jax
  import jla.layers.ttt  # noqa: F401  It registers its mixer.
  from jla.layers.linear_attention import make_mixer
  from jla.models.config import LinearAttentionConfig

  config = LinearAttentionConfig(num_k_heads=HEADS, num_v_heads=HEADS, head_k_dim=HEAD, head_v_dim=HEAD,
                                 implementation=implementation)
  mixer = make_mixer(kind, WIDTH, config, key=jax.random.key(seed), std=0.02, norm_eps=1e-6,
                     compute_dtype="float32")

  def loss(mixer, x_BTD, weight_BTD):
    return subject.mean_loss(mixer(x_BTD), weight_BTD)

  return mixer, {
      "read": eqx.filter_jit(lambda mixer, x_BTD, doc_BT: mixer(x_BTD, segment_ids=doc_BT)),
      "step": eqx.filter_jit(lambda mixer, x_BTD, cache: mixer.step(x_BTD, cache)),
      "loss": eqx.filter_jit(eqx.filter_value_and_grad(loss))}


class _Mixer:
  """A mixer as a `subject.Model`."""

  def __init__(self, kind: str, dtype: str, seed: int, implementation: str = "auto"):
    self._mixer, self._programs = _programs(kind, dtype, seed, implementation)

  def read(self, x, *, keep_BT=None, doc_BT=None):
    return np.asarray(self._programs["read"](self._mixer, x, doc_BT))

  def read_on(self, x, state):
    if state is None:
      state = self._mixer.init_cache(x.shape[0], np.float32)
    y, state = self._programs["step"](self._mixer, x, state)
    return np.asarray(y), state

  def write_parameters(self):
    return {name: np.asarray(leaf) for name, leaf in _leaves(self._mixer).items()}

  def loss(self, x, start, nudge):
    import jax

    mixer = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + np.float32(nudge.get(jax.tree_util.keystr(path), 0)), self._mixer)
    weight_BTD = subject.loss_weights(x.shape, start).astype(np.float32)
    loss, given = self._programs["loss"](mixer, x, weight_BTD)
    return float(loss), {name: np.asarray(leaf) for name, leaf in _leaves(given).items()}


def _leaves(tree) -> dict:
  import jax

  found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  return {name: leaf for name, leaf in found.items() if name.startswith(WRITES)}
