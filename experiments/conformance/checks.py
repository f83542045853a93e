"""Checks that any memory must pass, whatever its rule; each gives a status and the numbers behind it.

Every reading begins from a model that was built for it alone, so that a model that keeps something from call
to call fails the one check that asks for that. Differences are the largest over outputs, relative to the
largest output. The smallest text that shows a fault is read: three chunks and a little.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.conformance.subject import Model, Subject

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}  # Of outputs that must agree.
GROWTH = 100.0  # Factor by which reads of the same few tokens may grow or shrink over that distance.
READABLE = 1e-4  # Fraction of its length by which a read must move: a thousand times float32's rounding.
DISTANCE = 1024  # Tokens after which one write is still to be read.
FILLERS = 4  # Distinct tokens between a write and its read: too few to overwrite what they do not resemble.
STEP = {"float64": 1e-5, "float32": 1e-2}  # Of finite differences, relative to the parameter.
SLOPE_TOLERANCE = {"float64": 1e-3, "float32": 0.05}
SLOPE_FLOOR = {"float64": 1e-8, "float32": 1e-3}  # Effects below are rounding, relative to the loss's size.


class Finding(NamedTuple):
  """Result of one check."""

  status: str  # "pass", "part", or "fail"
  text: str
  numbers: dict


class Trial(NamedTuple):
  """A subject under one precision, draw of its start, and option."""

  subject: Subject
  dtype: str = "float64"
  seed: int = 0
  option: dict = {}

  def model(self) -> Model:
    """Builds the model anew."""
    return self.subject.build(self.dtype, self.seed, **self.option)

  @property
  def chunk(self) -> int:
    """Returns the size of its grid, at least that of a text worth reading."""
    return max(self.subject.chunk, 4)

  @property
  def length(self) -> int:
    """Returns the tokens of a text: three chunks and a little."""
    return 3 * self.chunk + 5

  @property
  def tolerance(self) -> float:
    """Returns how far outputs that must agree may differ."""
    return TOLERANCE[self.dtype]

  def text(self, rows: int, length: int, draw: int = 0) -> np.ndarray:
    """Draws a text; the same one for the same arguments."""
    rng = np.random.default_rng([1, draw])
    if self.subject.ids:
      return rng.integers(0, self.subject.size, (rows, length))
    return rng.normal(size=(rows, length, self.subject.size)).astype(self.dtype)

  def other(self, x) -> np.ndarray:
    """Returns tokens of which each differs from that of `x`."""
    if self.subject.ids:
      return (x + 1 + self.text(*x.shape, draw=99) % (self.subject.size - 1)) % self.subject.size
    return self.text(*x.shape[:2], draw=99)

  def shape(self, rows: int, length: int) -> str:
    """Describes a text for a reader who wants to see the same."""
    inside = f"ids below {self.subject.size}" if self.subject.ids else f"standard normal {self.dtype}"
    size = "" if self.subject.ids else f", {self.subject.size}"
    return f"x [{rows}, {length}{size}] ({inside}), seed {self.seed}"


def distance(found, wanted) -> float:
  """Returns the largest difference, relative to the largest that was wanted; infinite if not finite."""
  found, wanted = (np.asarray(y, np.float64) for y in (found, wanted))
  if found.shape != wanted.shape:
    raise ValueError(f"outputs have shape {found.shape}, {wanted.shape} was wanted")
  if not found.size:
    return 0.0
  if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
    return float("inf")
  return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-300))


def causality(trial: Trial) -> Finding:
  """Exchanges one token after another: no output before it may move."""
  size, length = trial.chunk, trial.length
  x = trial.text(2, length)
  y = trial.model().read(x)
  found = {}
  for at in (1, size - 1, size, size + size // 2, 2 * size, length - 2):
    changed = x.copy()
    changed[:, at:at + 1] = trial.other(x[:, at:at + 1])
    early = trial.model().read(changed)[:, :at]
    scale = np.abs(y).max()
    found[at] = float(np.abs(early - y[:, :at]).max() / scale) if np.isfinite(y).all() else float("inf")
  worst = max(found, key=lambda at: found[at])
  text = (f"{trial.shape(2, length)}: exchanging token {worst} moves outputs before it by "
          f"{found[worst]:.2g} of the largest output (bound {trial.tolerance:g})")
  return Finding("pass" if found[worst] <= trial.tolerance else "fail", text, {"moved": found})


def halves(trial: Trial) -> Finding:
  """Cuts a text into calls that pass the state on: outputs are those of one call."""
  size, length = trial.chunk, trial.length
  x = trial.text(1, length)
  y = trial.model().read(x)
  middle = size + size // 2 + 1
  # The second is how a text is written: a prompt, and tokens one by one over the next end of a chunk.
  places = {"at a chunk's end": (size, length), "one by one": (*range(size // 2, size + 4),),
            "anywhere": (middle, middle + 1, length)}
  found, raised = {}, {}
  for where, cuts in places.items():
    model, state, parts = trial.model(), None, []
    try:
      for begin, end in zip((0, *cuts), cuts):
        part, state = model.read_on(x[:, begin:end], state)
        parts.append(part)
      found[where] = distance(np.concatenate(parts, axis=1), y[:, :cuts[-1]])
    except Exception as error:  # One place that raises says nothing of the others.
      found[where] = float("inf")
      raised[where] = f"raise {type(error).__name__}: {' '.join(str(error).split())[:200]}"
  cut = {"at a chunk's end": f"after token {size}", "one by one": f"after each from token {size // 2} on",
         "anywhere": f"after tokens {middle} and {middle + 1}"}
  done = _by_place(trial, found, f"{trial.shape(1, length)}: calls cut ", cut, "differ from one call")
  for where, what in raised.items():
    said = done.text.replace(f"{cut[where]} differ from one call by inf", f"{cut[where]} {what}")
    done = done._replace(text=said)
  return done


def padding(trial: Trial) -> Finding:
  """Puts padding among the tokens: outputs of the others are those without it."""
  size, length = trial.chunk, trial.length
  x = trial.text(1, length)
  y = trial.model().read(x)
  found, content = {}, {}
  places = {"at a chunk's end": ((0, size), (size, size)), "anywhere": ((size // 2, size // 2 + 1),)}
  for where, blocks in places.items():
    found[where] = 0.0
    for at, count in blocks:
      keep_BT = np.ones((1, length + count), bool)
      keep_BT[:, at:at + count] = False
      outs = []
      for draw in (50, 51):
        junk = trial.text(1, count, draw)
        padded = np.concatenate([x[:, :at], junk, x[:, at:]], axis=1)
        outs.append(trial.model().read(padded, keep_BT=keep_BT)[:, keep_BT[0]])
      found[where] = max(found[where], *(distance(out, y) for out in outs))
      content[where] = max(content.get(where, 0.0), distance(outs[0], outs[1]))
  cut = {"at a chunk's end": f"{size} tokens before tokens 0 and {size}",
         "anywhere": f"{size // 2 + 1} tokens before token {size // 2}"}
  text = f"{trial.shape(1, length)}: padding of "
  done = _by_place(trial, found, text, cut, "moves the others' outputs")
  worst = max(content.values())
  more = f"; what stands in the padding moves them by {worst:.2g}"
  return done._replace(text=done.text + more, numbers=done.numbers | {"content": content})


def packing(trial: Trial) -> Finding:
  """Packs two documents into a row: outputs are those of each alone."""
  size, length = trial.chunk, trial.length
  x = trial.text(1, length)
  found = {}
  begins = {"at a chunk's end": size, "anywhere": size + size // 2 + 1}
  for where, cut in begins.items():
    doc_BT = (np.arange(length) >= cut).astype(np.int32)[None]
    packed = trial.model().read(x, doc_BT=doc_BT)
    alone = [trial.model().read(part) for part in (x[:, :cut], x[:, cut:])]
    found[where] = distance(packed, np.concatenate(alone, axis=1))
  text = f"{trial.shape(1, length)}: a document that begins at token "
  at = {where: f"{begin}" for where, begin in begins.items()}
  return _by_place(trial, found, text, at, "reads differently from alone")


def _by_place(trial: Trial, found: dict, begin: str, cut: dict, end: str) -> Finding:
  """Judges differences at each place, such as the chunk grid; good at some of them is a part."""
  good = [where for where, value in found.items() if value <= trial.tolerance]
  status = "pass" if len(good) == len(found) else "part" if good else "fail"
  bad = [where for where in found if where not in good] or good
  text = begin + "; ".join(f"{cut[where]} {end} by {found[where]:.2g}" for where in bad)
  fine = f"; right {' and '.join(good)}" if status == "part" else ""
  return Finding(status, f"{text} (bound {trial.tolerance:g}){fine}", {"moved": found})


def rows(trial: Trial) -> Finding:
  """Reads three rows together and each alone: outputs are the same."""
  x = trial.text(3, trial.length)
  together = trial.model().read(x)
  alone = np.concatenate([trial.model().read(x[row:row + 1]) for row in range(3)])
  found = distance(together, alone)
  text = (f"{trial.shape(3, trial.length)}: rows read together differ from rows read alone by {found:.2g} "
          f"(bound {trial.tolerance:g})")
  return Finding("pass" if found <= trial.tolerance else "fail", text, {"moved": found})


def gradient(trial: Trial) -> Finding:
  """Compares gradients of keys, values and write gates, from later outputs, with finite differences."""
  size = trial.chunk
  x, start = trial.text(1, trial.length), 2 * size
  loss, gradients = trial.model().loss(x, start, {})
  rng = np.random.default_rng(2)
  found, dead, unseen = {}, [], []
  step, scale = STEP[trial.dtype], max(abs(loss), 1e-3)
  for name, value in trial.model().write_parameters().items():
    way = rng.normal(size=value.shape)
    way *= (np.linalg.norm(value) or 1.0) / np.linalg.norm(way)
    ends = [trial.model().loss(x, start, {name: sign * step * way})[0] for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    given = float(np.sum(gradients[name] * way)) if name in gradients else 0.0
    found[name] = {"finite_difference": slope, "gradient": given}
    if abs(slope) <= SLOPE_FLOOR[trial.dtype] * scale:
      unseen.append(name)
    elif not abs(slope - given) <= SLOPE_TOLERANCE[trial.dtype] * max(abs(slope), abs(given)):
      dead.append(name)
  shape = f"{trial.shape(1, trial.length)}, outputs from token {start} on"
  if dead:
    said = ", ".join(f"{name}: {found[name]['gradient']:.2g} where the finite difference is "
                     f"{found[name]['finite_difference']:.2g}" for name in dead)
    return Finding("fail", f"{shape}: gradients are wrong or missing ({said})", found)
  if len(unseen) == len(found):
    return Finding("fail", f"{shape}: no parameter of the write path moves them ({', '.join(unseen)})", found)
  more = f"; without effect there: {', '.join(unseen)}" if unseen else ""
  return Finding("pass", f"{shape}: gradients equal finite differences{more}", found)


def liveness(trial: Trial) -> Finding:
  """Writes one token, long ago and lately, and reads it: the read must know which token it was."""
  size = trial.chunk
  near = FILLERS * -(-2 * size // FILLERS)
  asked = FILLERS * -(-2 * size // FILLERS) + DISTANCE
  length = size * -(-(asked + FILLERS) // size)
  fillers = trial.text(1, FILLERS, draw=7)
  plain = np.concatenate([fillers] * (length // FILLERS + 1), axis=1)[:, :length]
  needle = trial.text(1, 1, draw=8)
  moved, growth = {}, 1.0
  # The tokens before needle and question are the same: what is written under the context is asked for too.
  for where, back in (("old", DISTANCE), ("near", near)):
    outs = []
    for token in (needle, trial.other(needle)):
      x = plain.copy()
      x[:, asked - back:asked - back + 1] = token
      x[:, asked:asked + 1] = needle
      y = np.asarray(trial.model().read(x), np.float64)[0].reshape(length, -1)
      outs.append(y[asked:asked + FILLERS])
      early, late = (np.linalg.norm(part) for part in (y[size:2 * size], y[asked - size:asked]))
      growth = max(growth, _factor(early, late))
    out, changed = outs
    lengths = np.maximum(np.linalg.norm(out, axis=1), 1e-300)
    moved[where] = float((np.linalg.norm(changed - out, axis=1) / lengths).max())
  good = growth <= GROWTH and all(READABLE <= value < np.inf for value in moved.values())
  text = (f"x [1, {length}] of {FILLERS} tokens in turn, seed {trial.seed}, {trial.dtype}: exchanging the "
          f"one token written {DISTANCE} tokens ago moves the read of it by {moved['old']:.2g} of its "
          f"length, {near} tokens ago by {moved['near']:.2g} (at least {READABLE:g}); reads change in size "
          f"by a factor of {growth:.2g} (at most {GROWTH:g})")
  return Finding("pass" if good else "fail", text, {"moved": moved, "growth": growth})


def _factor(early: float, late: float) -> float:
  """Returns by how much one length exceeds the other; infinite if one is not finite."""
  if not (np.isfinite(early) and np.isfinite(late)):
    return float("inf")
  return float(max(early, late) / max(min(early, late), 1e-300))


def emptied(trial: Trial) -> Finding:
  """Empties the memory: nothing of an earlier text may be left, and the reads must change."""
  size = trial.chunk
  x = trial.text(1, trial.length)
  probe = x[:, size // 2:size // 2 + size]
  used = trial.model()
  used.read(x)
  fresh = trial.model().read(probe)
  left = distance(used.read(probe), fresh)
  found, good = {"left": left}, left <= trial.tolerance
  text = (f"{trial.shape(1, trial.length)}, read before {size} of its tokens: {left:.2g} of it is left in a "
          f"new call (bound {trial.tolerance:g})")
  if "state" not in trial.subject.lacks:
    full = _after(trial, x, probe)
    swapped = _after(trial, trial.text(1, trial.length, draw=3), probe)
    found["emptied"], found["swapped"] = distance(fresh, full), distance(swapped, full)
    found["length"] = float(np.linalg.norm(fresh) / max(np.linalg.norm(full), 1e-300))
    good = good and min(found["emptied"], found["swapped"]) >= READABLE
    text += (f"; emptying moves reads by {found['emptied']:.2g}, another text's memory by "
             f"{found['swapped']:.2g} (at least {READABLE:g}); an emptied read is {found['length']:.2g} "
             "times as long")
  return Finding("pass" if good else "fail", text, found)


def _after(trial: Trial, x, probe) -> np.ndarray:
  """Returns what `probe` reads after a text."""
  model = trial.model()
  _, state = model.read_on(x, None)
  return model.read_on(probe, state)[0]


CHECKS: dict[str, Callable[[Trial], Finding]] = {
    "causality": causality, "halves": halves, "padding": padding, "packing": packing, "rows": rows,
    "gradient": gradient, "liveness": liveness, "emptied": emptied}
NEEDS = {"halves": "state", "padding": "padding", "packing": "documents"}
SEEDS = {"liveness": (0, 1, 2, 3, 4)}  # Draws of the start, where gates are drawn; one that passes is enough.
