"""Checkers of names and sentences: the field's words, one meaning per class name, and fields that exist."""

import ast
import collections
import io
import pathlib
import re
import tokenize

from atlas_jax.defaults import runtime
from tests.house import PACKAGE, Function, sources

# Words of our own, as a part of any name in the package, and what the field says.
PRIVATE = {
  "slope": "gradient or grad", "slopes": "gradients or grads", "knobs": "settings or SamplingParams",
  "yardstick": "baseline", "yardsticks": "baselines", "heat": "temperature",
}  # fmt: skip
# Words that are well in a sentence, and that say too little as a part of a name.
NAMES = {
  "share": "a fraction, probability or weight", "shares": "fractions, probabilities or weights",
  "told": "what it is, such as recorded, metrics or warned",
}  # fmt: skip
# Runs have saved these: a field of the config, and one of a rollout in checkpoints.
SAVED = {("atlas_jax/rollout/policy_training.py", "reference_share"), ("atlas_jax/rollout/source.py", "told")}
# Phrases in comments and texts, and what the field says.
PHRASES = {
  r"\b(?:a|the|its|their|least|this) share\b|\bshares? of\b": "fraction, part, probability or weight",
  r"\bpublished[ _](?:models?|decoders?|folders?|checkpoints?|llama|qwen)\b": "pretrained",
}
# How arrays of positions are called: `place_B` and its like.
PLACE = re.compile(r"places?_[A-Z]+$")
# Names of definitions at the top of a module that say less than the field's.
DEFINITIONS = {
  "Given": "LoadedParams", "Anchor": "ReferenceUpdate", "Start": "InitialModel", "Knobs": "SamplingParams",
  "Asked": "a request", "Written": "an output", "Listed": "ProblemList", "Coded": "EncodedGroup",
  "Draws": "StableRandom", "Bound": "nothing: hand over what is needed", "open_start": "load_initial_model",
  "of_row": "parse_row", "travel": "copy", "TRAVELS": "COPIED_FILES",
  "KEPT": "SAVED_NAMES", "the_rule": "build_rule", "conv_reach": "conv_mask", "last_real": "last_valid",
}  # fmt: skip
# How no docstring begins: a function says what it returns or does, all else names what it describes.
OPENINGS = ("Gives", "What", "Which", "How", "Where", "Who", "Whether")
# Groups of the config whose keys a user makes up.
OPEN = ("agent.options", "data.fields", "data.options", "model.memory.options", "vllm.arguments",
        "alerts.rules")
FIELD = re.compile(r"\bconfig\.([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)")


def _said(token: str, *, is_name: bool) -> list[str]:
  """Lists what is wrong with a token: a name, a comment or a text."""
  words = re.findall(r"[a-z]+", token.lower().replace("_", " "))
  bad = [f"{word} is {PRIVATE[word]}" for word in words if word in PRIVATE]
  if not is_name:
    return bad + [f"{found[0]} is {better}" for phrase, better in PHRASES.items()
                  for found in re.finditer(phrase, token, re.IGNORECASE)]
  bad += [f"{token} is {NAMES[word]}" for word in words if word in NAMES]
  return bad + ([f"{token} is position_{token.partition('_')[2]}"] if PLACE.match(token) else [])


def word_violations(root: pathlib.Path) -> list[str]:
  """Finds private words in names, comments and texts of the package, where the field has its own."""
  bad = []
  for relative, path, tree in sources(root, PACKAGE):
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
      if (relative, token.string) not in SAVED:
        bad += [f"{relative}:{token.start[0]}: {said}"
                for said in _said(token.string, is_name=token.type == tokenize.NAME)]
    for node in tree.body:
      if isinstance(node, Function | ast.ClassDef) and node.name in DEFINITIONS:
        bad.append(f"{relative}:{node.lineno}: {node.name} is {DEFINITIONS[node.name]}")
  return bad


def opening_violations(root: pathlib.Path) -> list[str]:
  """Finds docstrings that begin with a clause in place of a verb or a noun."""
  bad = []
  for relative, _, tree in sources(root, PACKAGE):
    for node in ast.walk(tree):
      if isinstance(node, Function | ast.ClassDef | ast.Module):
        words = (ast.get_docstring(node) or "").split()
        if words and words[0] in OPENINGS:
          bad.append(f"{relative}: a docstring begins with {' '.join(words[:4])!r}")
  return bad


def class_violations(root: pathlib.Path) -> list[str]:
  """Finds class names with several meanings in the package."""
  places = collections.defaultdict(list)
  for relative, _, tree in sources(root, PACKAGE):
    for node in ast.walk(tree):
      if isinstance(node, ast.ClassDef):
        places[node.name].append(f"{relative}:{node.lineno}")
  return [f"{', '.join(found)}: all are called {name}" for name, found in places.items() if len(found) > 1]


def fields_of(config, prefix: str = "") -> set[str]:
  """Lists the fields and groups of a config by dotted name."""
  names = set()
  for name, value in config.items():
    names.add(prefix + name)
    if hasattr(value, "items"):
      names |= fields_of(value, f"{prefix}{name}.")
  return names


def field_violations(root: pathlib.Path, known: set[str]) -> list[str]:
  """Finds fields of the config that a text names and that do not exist."""
  bad = []
  of_runtime = fields_of(runtime.default()) | known | {"rim"}
  for relative, _, tree in sources(root, PACKAGE, "configs", "scripts"):
    for node in ast.walk(tree):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for name in FIELD.findall(node.value):
          is_file = name.rpartition(".")[2] in ("json", "py", "md")
          # The runtime has a config of its own.
          names = of_runtime if "runtime" in str(relative) else known
          if not (is_file or name in names or name.rpartition(".")[0] in OPEN):
            bad.append(f"{relative}:{node.lineno}: there is no config.{name}")
  return bad
