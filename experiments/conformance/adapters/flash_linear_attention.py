"""flash-linear-attention: plain PyTorch forms of five of its operations.

Its layers need Triton, and thus a GPU; the plain forms are files that need PyTorch alone, and are read as
such: importing them by name imports Triton too. They are functions of queries, keys, values and gates. What
makes these of an input are projections of this file, after the docstrings of the package's layers: linear,
SiLU, keys and queries of unit length, beta = sigmoid(b(x)), g = -exp(A_log) softplus(a(x) + dt_bias) with the
layers' starts. For titans and ttt there are no layers; their gates are named in the settings, and
their states start at N(0, .02), for they divide by the spread of what a state recalls.
"""
import functools
import importlib.util
import math
import sys
import types

from experiments.conformance import subject

PACKAGE = "flash-linear-attention"
DOCUMENTED = "docstrings of fla/ops/*/naive.py and of fla/layers/*.py; its tests/ops"
WIDTH, HEADS, HEAD = 64, 6, 16
PLAIN = {"padding": "the plain forms take no mask", "documents": "the plain forms take no `cu_seqlens`",
         "float64": "they compute in float32 whatever they are given"}
OF_LAYER = f"gates and starts of its layer; {HEADS} heads of {HEAD}"
CHUNKED = {"its chunked plain form": {"form": "chunk"}}


def subjects() -> list[subject.Subject]:
  """Returns the delta rules, titans and ttt."""
  rules = {"gated_delta_rule": "naive_recurrent_gated_delta_rule", "kda": "naive_recurrent_kda",
           "gdn2": "naive_recurrent_gdn2"}
  found = [
      subject.Subject(name=f"{rule}, plain", build=functools.partial(_build, rule), size=WIDTH, lacks=PLAIN,
                      settings=f"{function}; {OF_LAYER}", options=CHUNKED)
      for rule, function in rules.items()]
  titans = subject.Subject(
      name="titans, plain", build=functools.partial(_build, "titans"), size=WIDTH, lacks=PLAIN,
      settings="chunk_titans_linear_ref, chunks of 16; theta starts at .05, alpha at .001, eta at .6 (none "
               f"are recommended); {HEADS} heads of {HEAD}",
      options={"use_chunk=False": {"form": "step"}})
  ttt = subject.Subject(
      name="ttt, plain", build=functools.partial(_build, "ttt"), size=WIDTH, lacks=PLAIN,
      settings=f"chunk_ttt_linear_ref, batches of 16; eta starts at 1 / {HEAD} (TTT's paper: 1 / width); "
               f"{HEADS} heads of {HEAD}")
  return [*found, titans, ttt]


def _plain(rule: str):
  """Returns the module of a plain form, read from its file.

  What it imports of its own package is read from files too; the package's __init__ would import Triton.
  """
  if "fla" not in sys.modules:
    _stand_in("fla", importlib.util.find_spec("fla").submodule_search_locations[0])
  root = sys.modules["fla"].__path__[0]
  for name in ("ops", f"ops.{rule}"):
    if f"fla.{name}" not in sys.modules:
      _stand_in(f"fla.{name}", f"{root}/{name.replace('.', '/')}")
  return importlib.import_module(f"fla.ops.{rule}.naive")


def _stand_in(name: str, folder: str) -> None:
  package = types.ModuleType(name)
  package.__path__ = [folder]
  sys.modules[name] = package


def _build(rule: str, dtype: str, seed: int, form: str = ""):
  import torch

  from experiments.conformance.torch_model import TorchModel

  torch.manual_seed(seed)
  module = _projections(rule)
  of_rule = {"titans": _titans, "ttt": _ttt}.get(rule, functools.partial(_delta, rule))
  forward = functools.partial(of_rule, _plain(rule), module, form)
  return TorchModel(module, forward, (".k.", ".v.", ".b.", ".w.", ".theta.", ".eta."), dtype)


def _projections(rule: str):
  """Makes linear maps to queries, keys, values and gates, and the decay's parameters."""
  import torch
  from torch import nn

  inner = HEADS * HEAD
  per_channel = rule in ("kda", "gdn2")
  sizes = {"q": inner, "k": inner, "v": inner}
  gates = {"gated_delta_rule": {"a": HEADS, "b": HEADS}, "kda": {"a": inner, "b": HEADS},
           "gdn2": {"a": inner, "b": inner, "w": inner}, "titans": dict(theta=HEADS, alpha=HEADS, eta=HEADS),
           "ttt": {"eta": HEADS}}[rule]
  starts = {"theta": 0.05, "alpha": 0.001, "eta": 0.6 if rule == "titans" else 0.5}
  module = nn.ModuleDict({name: nn.Linear(WIDTH, size, bias=name in starts)
                          for name, size in {**sizes, **gates}.items()})
  for name, linear in module.items():
    nn.init.normal_(linear.weight, std=0.02)
    if name in starts:
      nn.init.constant_(linear.bias, math.log(starts[name] / (1 - starts[name])))
  if rule in ("titans", "ttt"):
    module.start = nn.Parameter(0.02 * torch.randn(HEADS, HEAD, HEAD))
  lowest = 0.0 if rule == "gated_delta_rule" else 1.0
  module.A_log = nn.Parameter(torch.log(torch.empty(HEADS).uniform_(lowest, 16)))
  low, high = math.log(0.001), math.log(0.1)
  dt = torch.exp(torch.rand(inner if per_channel else HEADS) * (high - low) + low)
  module.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
  return module


def _qkv(module, x):
  import torch.nn.functional as F

  q, k, v = (F.silu(module[name](x)).unflatten(-1, (HEADS, HEAD)) for name in "qkv")
  return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v


def _delta(rule, plain, module, form, x, state, keep_BT, doc_BT):
  import torch.nn.functional as F

  q, k, v = _qkv(module, x)
  channels = rule != "gated_delta_rule"
  g = F.softplus(module["a"](x) + module.dt_bias)
  g = g.unflatten(-1, (HEADS, HEAD)) * -module.A_log.exp()[:, None] if channels else g * -module.A_log.exp()
  gates = {"g": g, "beta": module["b"](x).sigmoid()}
  if rule == "gdn2":
    gates = {"g": g, **{name: module[name](x).sigmoid().unflatten(-1, (HEADS, HEAD)) for name in "bw"}}
  function = getattr(plain, f"naive_{form or 'recurrent'}_{rule}")
  o, state = function(q, k, v, **gates, initial_state=state, output_final_state=True)
  return o.flatten(2), state


def _titans(plain, module, form, x, state, keep_BT, doc_BT):
  import torch

  q, k, v = _qkv(module, x)
  theta, alpha, eta = (module[name](x).sigmoid()[..., None] for name in ("theta", "alpha", "eta"))
  ones, zeros = (fill(HEADS, HEAD, dtype=x.dtype) for fill in (torch.ones, torch.zeros))
  state = module.start.expand(x.shape[0], -1, -1, -1) if state is None else state
  o, state = plain.chunk_titans_linear_ref(
      q, k, v, ones, zeros, theta, alpha, eta, chunk_size=16, initial_state=state, output_final_state=True,
      use_chunk=not form)
  return o.flatten(2), state


def _ttt(plain, module, form, x, state, keep_BT, doc_BT):
  import torch

  q, k, v = _qkv(module, x)
  eta = 2 * module["eta"](x).sigmoid()[..., None] / HEAD
  ones, zeros = (fill(HEADS, HEAD, dtype=x.dtype) for fill in (torch.ones, torch.zeros))
  weights, bias = state or (module.start.expand(x.shape[0], -1, -1, -1), None)
  o, weights, bias = plain.chunk_ttt_linear_ref(
      q, k, v, ones, zeros, eta, initial_state=weights, initial_state_bias=bias, output_final_state=True)
  return o.flatten(2), (weights, bias)
