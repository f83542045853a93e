"""nested-learning: the memory of its HOPE blocks, self-modifying Titans, which reads and writes by
`forward_with_updates` and passes its fast state on.

The rest of a HOPE block is written by signals of the next-token loss that its training loop hands over; it is
not a memory that a text alone writes, and is left out.
"""
import functools

from experiments.conformance import subject

PACKAGE = "nested-learning"
DOCUMENTED = "its README (PyPI); docs/PAPER_COMPLIANCE.md of its repository"
WIDTH, CHUNK = 32, 64
# Of its preset pilot_selfmod_paper_faithful and of the presets that this one starts from.
PRESET = {"chunk_size_other": 8, "chunk_size_memory": 64, "use_skip": False, "eta_scale": 1e-3,
          "local_conv_window": 4, "qk_l2_norm": True}


def subjects() -> list[subject.Subject]:
  """Returns the memory with the settings of its paper-faithful preset."""
  return [subject.Subject(
      name="SelfModifyingTitans", build=_build, size=WIDTH, chunk=CHUNK,
      settings=f"preset pilot_selfmod_paper_faithful (chunks of 8 and 64); dim {WIDTH} for 512",
      lacks={"padding": "it offers no mask",
             "documents": "it offers no numbers or starts of packed documents"},
      says={"gradient": "its README and PAPER_COMPLIANCE.md say that online writes stop the gradient"},
      options={"use_alpha=False (its ablation selfmod_no_alpha)": {"use_alpha": False},
               "local_conv_window=None": {"local_conv_window": None},
               "use_alpha=False, local_conv_window=None, chunks of 1":
                   {"use_alpha": False, "local_conv_window": None, "chunk_size_other": 1,
                    "chunk_size_memory": 1},
               "use_rank1_precond=False (its ablation), use_alpha=False":
                   {"use_rank1_precond": False, "use_alpha": False}})]


def _build(dtype: str, seed: int, **option):
  import torch
  from nested_learning.titan.self_modifying import SelfModifyingTitans, SelfModifyingTitansConfig

  from experiments.conformance.torch_model import TorchModel

  torch.manual_seed(seed)
  module = SelfModifyingTitans(SelfModifyingTitansConfig(dim=WIDTH, **PRESET | option))
  forward = functools.partial(_read, module)
  return TorchModel(module, forward, (".m_k.", ".m_v.", ".m_eta."), dtype)


def _read(module, x, state, keep_BT, doc_BT):
  # A state is changed in place: the one that was handed over stays as it is.
  return module.forward_with_updates(x, module.init_fast_state() if state is None else state.clone())
