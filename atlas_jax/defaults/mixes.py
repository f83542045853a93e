"""Settings of a mix of memory and attention: what a config sets besides config.model.memory_mix."""
from collections.abc import Mapping

import ml_collections

# Values under their own tokens' keys, through convolutions: without attention nothing else mixes tokens.
OWN_TOKEN = dict(conv_taps=4, shift=False, shared_qk=False, activation="silu", value_source="input",
                 conv_init="identity", read_norm="rms")


def set_mix(config: ml_collections.ConfigDict, mix: str, usual: ml_collections.ConfigDict, *,
            ff_widths: Mapping[str, int], inner_width: int) -> None:
  """Changes the model of a config with memory_mix="gate" to another mix, at about as many parameters.

  Args:
    config: of the recipe memory_lm, whose memory follows the delta rule.
    mix: a file in models/blocks.
    usual: the default config, for fields that the mix does not read.
    ff_widths: by mix, the width of the feed-forward layers that makes up for what the mix adds or leaves out.
    inner_width: that of the layers that mix "e2e" trains as it reads.

  Raises:
    ValueError: if the mix is none of `ff_widths`.
  """
  model = config.model
  if mix not in ff_widths:
    raise ValueError(f"config argument 'mix={mix}' is unknown; known are {', '.join(sorted(ff_widths))}")
  model.memory_mix = mix
  model.ff_width = ff_widths[mix]
  if mix in ("none", "only"):
    model.memory_layers = None
  if mix in ("none", "conv"):
    config.eval.gain_max_tokens = usual.eval.gain_max_tokens  # There is no memory to measure.
  if mix == "only":
    model.heads = usual.model.heads
    model.window_tokens = usual.model.window_tokens
    model.memory.update(OWN_TOKEN)
    model.memory.options = {"momentum": False}  # In place of the default's, which lift keys to cells.
  if mix == "e2e":
    first = model.depth - max(1, model.depth // 4)  # The last quarter of the blocks.
    model.memory_layers = ",".join(map(str, range(first, model.depth)))
    model.inner.update(batch_tokens=model.window_tokens, ff_width=inner_width)
    model.memory.chunk_size = usual.model.memory.chunk_size
