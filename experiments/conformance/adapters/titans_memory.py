"""titans-memory: its memory layer, and its four models, made by `build_model(TitansConfig(...))`."""
import functools

from experiments.conformance import subject

PACKAGE = "titans-memory"
DOCUMENTED = "its README (PyPI) and the docstring of the package `titans`"
WIDTH, CHUNK, WINDOW = 32, 32, 32
LACKS = {"state": "it offers no state; `generate` reads the whole text again for each token",
         "padding": "it offers no mask", "documents": "it offers no numbers or starts of packed documents"}
WRITES = {"LMM": "memory", "MAC": "long_mem", "MAG": "long_mem", "MAL": "long_mem"}
OPTIONS = {"use_decay=False": {"use_decay": False}, "use_momentum=False": {"use_momentum": False}}


def subjects() -> list[subject.Subject]:
  """Returns the layer and each variant of the model."""
  layer = subject.Subject(
      name="NeuralMemory", build=_layer, size=WIDTH, chunk=CHUNK, lacks=LACKS, options=OPTIONS,
      settings=f"2 layers, four times as wide inside; d_model {WIDTH} for 512, chunk_size {CHUNK} as in "
               "TitansConfig.tiny")
  models = [
      subject.Subject(
          name=f"Titans{variant}", build=functools.partial(_model, variant), size=64, ids=True, chunk=CHUNK,
          lacks=LACKS, options=OPTIONS,
          settings=f"TitansConfig.tiny: chunk_size {CHUNK}, 8 persistent tokens; d_model {WIDTH} for 256, 2 "
                   f"layers for 6, window {WINDOW} for 512, so that attention alone does not reach back far")
      for variant in WRITES]
  return [layer, *models]


def _layer(dtype: str, seed: int, **option):
  import torch
  from titans import NeuralMemory

  from experiments.conformance.torch_model import TorchModel

  torch.manual_seed(seed)
  module = NeuralMemory(d_model=WIDTH, d_hidden=4 * WIDTH, n_layers=2, chunk_size=CHUNK, **option)
  return TorchModel(module, lambda x, state, keep_BT, doc_BT: (module(x), None), _writes(""), dtype)


def _model(variant: str, dtype: str, seed: int, **option):
  import torch
  from titans.utils import TitansConfig, build_model

  from experiments.conformance.torch_model import TorchModel

  torch.manual_seed(seed)
  module = build_model(TitansConfig(
      variant=variant, vocab_size=64, d_model=WIDTH, n_layers=2, mem_layers=2, n_persistent=8,
      chunk_size=CHUNK, window=WINDOW, **option))
  return TorchModel(module, lambda x, state, keep_BT, doc_BT: (module(x)["logits"], None),
                    _writes(f".{WRITES[variant]}"), dtype)


def _writes(inside: str) -> tuple[str, ...]:
  return tuple(f"{inside}.{name}." for name in ("W_K", "W_V", "gate_theta"))
