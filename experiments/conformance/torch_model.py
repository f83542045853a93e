"""What adapters of PyTorch packages share: a module with a function that reads, as a `subject.Model`.

PyTorch is imported inside functions: it is no requirement of this project.
"""
import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.conformance import subject


class TorchModel:
  """A module whose `forward` takes and gives tensors.

  Attributes:
    module: holds the parameters.
    forward: (x, state, keep_BT, doc_BT) -> (y, state), all but x may be None.
    writes: beginnings or middles of names of the write path's parameters.
  """

  def __init__(self, module, forward: Callable, writes: tuple[str, ...], dtype: str):
    import torch

    self._torch = torch
    self.module, self._forward = module.to(getattr(torch, dtype)).eval(), forward
    self._writes = {name: leaf for name, leaf in module.named_parameters()
                    if any(part in f".{name}" for part in writes)}
    if not self._writes:
      known = ", ".join(name for name, _ in module.named_parameters())
      raise ValueError(f"no parameter's name has one of {writes}; parameters are {known}")

  def read(self, x, *, keep_BT=None, doc_BT=None) -> np.ndarray:
    with self._torch.no_grad():
      return self._forward(self._tensor(x), None, self._tensor(keep_BT), self._tensor(doc_BT))[0].numpy()

  def read_on(self, x, state) -> tuple[np.ndarray, Any]:
    with self._torch.no_grad():
      y, state = self._forward(self._tensor(x), state, None, None)
    return y.numpy(), state

  def write_parameters(self) -> dict[str, np.ndarray]:
    return {name: leaf.detach().numpy() for name, leaf in self._writes.items()}

  def loss(self, x, start, nudge) -> tuple[float, dict[str, np.ndarray]]:
    with self._moved(nudge):
      self.module.zero_grad(set_to_none=True)
      y = self._forward(self._tensor(x), None, None, None)[0]
      loss = subject.mean_loss(y, self._tensor(subject.loss_weights(tuple(y.shape), start)).to(y.dtype))
      if loss.requires_grad:
        loss.backward()
    given = {name: leaf.grad.numpy() for name, leaf in self._writes.items() if leaf.grad is not None}
    return float(loss), given

  @contextlib.contextmanager
  def _moved(self, nudge):
    """Moves parameters while it lasts, not in place: what shares their memory stays as it is."""
    before = {name: self._writes[name].data for name in nudge}
    for name, way in nudge.items():
      leaf = self._writes[name]
      leaf.data = leaf.data + self._tensor(way).to(leaf.dtype)
    try:
      yield
    finally:
      for name, data in before.items():
        self._writes[name].data = data

  def _tensor(self, x):
    return None if x is None else self._torch.as_tensor(np.array(x))
