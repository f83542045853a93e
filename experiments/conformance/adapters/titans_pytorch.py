"""titans-pytorch: its memory layer, and its transformer.

The layer is read as the README shows it: `mem(seq)` gives reads and a state that the next call takes, and
`store_mask` says which tokens are stored, the nearest to padding that it offers. The transformer is continued
as its own `sample` does: prefix and new token together, with the cache of the call before.
"""
import functools

from experiments.conformance import subject

PACKAGE = "titans-pytorch"
DOCUMENTED = "its README; `sample` of the transformer; train_mac.py of its repository"
WIDTH, CHUNK, SEGMENT = 64, 64, 32
KEPT = {"init_decay_bias": -7.0}  # The decay gate of a chunk starts at .001, not at a half.
# What train_mac.py sets for its memories, the speed of a GPU and the size left out.
TRAINED = {"chunk_size": 4, "batch_size": 128, "heads": 4, "dim_head": 16, "attn_pool_chunks": True,
           "qk_rmsnorm": True, "default_step_transform_max_lr": 0.1, "per_parameter_lr_modulation": True,
           "spectral_norm_surprises": True}
STORED_ALONE = ("its comment says that `store_mask` sets the step size of masked tokens to 0, no more: they "
                "stay in their chunk and in its gates")
NO_DOCUMENTS = "it offers no numbers or starts of packed documents"


def subjects() -> list[subject.Subject]:
  """Returns the layer and the transformer."""
  layer = subject.Subject(
      name="NeuralMemory", build=_layer, size=WIDTH, chunk=CHUNK,
      settings=f"README: chunk_size {CHUNK}, all else default; dim {WIDTH} for 384",
      lacks={"documents": NO_DOCUMENTS}, says={"padding": STORED_ALONE},
      options={"init_decay_bias=-7": KEPT,
               "batch_size=64 (weights of gradients follow each chunk)": {"batch_size": 64},
               "the settings of train_mac.py": TRAINED})
  transformer = subject.Subject(
      name="MemoryAsContextTransformer", build=_transformer, size=64, ids=True, chunk=SEGMENT,
      settings=f"README: depth 2, 4 persistent and 16 long-term tokens; dim {WIDTH} for 256, segments of "
               f"{SEGMENT} for 128, so that a text has several",
      lacks={"documents": NO_DOCUMENTS, "padding": "it offers no mask"},
      options={"init_decay_bias=-7": {"neural_memory_kwargs": KEPT},
               "train_mac.py's 4 long-term tokens, memory segments of 4 and batches of 128":
                   {"num_longterm_mem_tokens": 4, "neural_memory_segment_len": 4,
                    "neural_memory_batch_size": 128},
               "the same and init_decay_bias=-7":
                   {"num_longterm_mem_tokens": 4, "neural_memory_segment_len": 4,
                    "neural_memory_batch_size": 128, "neural_memory_kwargs": KEPT}})
  return [layer, transformer]


def _layer(dtype: str, seed: int, **option):
  import torch
  from titans_pytorch import NeuralMemory

  from experiments.conformance.torch_model import TorchModel

  torch.manual_seed(seed)
  module = NeuralMemory(**{"dim": WIDTH, "chunk_size": CHUNK} | option)

  def forward(x, state, keep_BT, doc_BT):
    return module(x, state=state, store_mask=keep_BT)

  return TorchModel(module, forward, (".to_keys.", ".to_values.", ".to_adaptive_step."), dtype)


def _transformer(dtype: str, seed: int, **option):
  import torch
  from titans_pytorch import MemoryAsContextTransformer

  from experiments.conformance.torch_model import TorchModel

  torch.manual_seed(seed)
  module = MemoryAsContextTransformer(**{
      "num_tokens": 64, "dim": WIDTH, "depth": 2, "segment_len": SEGMENT, "num_persist_mem_tokens": 4,
      "num_longterm_mem_tokens": 16, "heads": 4, "dim_head": 16} | option)
  forward = functools.partial(_continue, module)
  return TorchModel(module, forward, (".to_keys.", ".to_values.", ".to_adaptive_step."), dtype)


def _continue(module, x, state, keep_BT, doc_BT):
  """Reads a text at once, or token by token after a prefix."""
  import torch

  if state is None:
    logits, cache = module(x, return_cache=True)
    return logits, (x, cache)
  prefix, cache = state
  outs = []
  for at in range(x.shape[1]):
    prefix = torch.cat([prefix, x[:, at:at + 1]], dim=1)
    logits = None
    while logits is None:  # As `sample` does: a long-term token of its own gives no logits.
      logits, cache = module(prefix, cache=cache, return_cache=True)
    outs.append(logits[:, -1:])
  return torch.cat(outs, dim=1), (prefix, cache)
