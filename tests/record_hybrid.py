"""Writes a tiny random hybrid model of transformers' with what it computes, for tests/fixtures/hf_models.

  PYTHON tests/record_hybrid.py tests/fixtures/hf_models/qwen3_5_tiny

PYTHON has torch and transformers of the versions that it writes into versions.json; the tests need neither.
Weights are seeded noise with wide scales: norms' offsets are not 0, and half-lives differ, so that a reader
that drops one of them fails.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

SETTINGS = dict(
  vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
  num_key_value_heads=1, head_dim=16, linear_conv_kernel_dim=4, linear_key_head_dim=8,
  linear_value_head_dim=12,
  linear_num_key_heads=2, linear_num_value_heads=4, full_attention_interval=2, max_position_embeddings=256,
  rope_parameters=dict(rope_type="default", rope_theta=10_000.0, partial_rotary_factor=0.5,
                       mrope_section=[2, 1, 1], mrope_interleaved=True),
  tie_word_embeddings=False, dtype="float32")  # fmt: skip
LEFT, RIGHT, LENGTH, NEW = 7, 5, 70, 12  # The first row is longer than a chunk of 64.


def draw(model) -> None:
  """Fills the parameters."""
  generator = torch.Generator().manual_seed(0)
  noise = lambda x: torch.randn(x.shape, generator=generator)
  for name, x in model.named_parameters():
    if name.endswith("A_log"):
      x.data = torch.linspace(-2.0, 1.0, len(x))
    elif name.endswith("dt_bias"):
      x.data = -3 + noise(x)
    elif x.ndim == 1:
      x.data = (1.0 if "linear_attn.norm" in name else 0.0) + 0.3 * noise(x)
    else:
      x.data = noise(x) * (0.5 if x.ndim == 3 else x.shape[-1] ** -0.5)


def main() -> None:
  """Writes the folder."""
  folder = pathlib.Path(sys.argv[1])
  config = transformers.Qwen3_5TextConfig(**SETTINGS)
  config._attn_implementation = "eager"
  model = transformers.Qwen3_5ForCausalLM(config).eval()
  draw(model)
  model.save_pretrained(folder)
  rng = np.random.default_rng(0)
  ids = torch.tensor(rng.integers(0, SETTINGS["vocab_size"], (3, LENGTH)))
  mask = torch.ones_like(ids)
  mask[1, :LEFT], mask[2, -RIGHT:] = 0, 0
  prompt, prompt_mask = ids[:2, :20].clone(), torch.ones((2, 20), dtype=torch.long)
  prompt_mask[1, :LEFT] = 0
  with torch.no_grad():
    logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    # Without padding: a row of its own each, since positions are counted from the left here.
    rows = [model.generate(prompt[i : i + 1, LEFT * i :], max_new_tokens=NEW, do_sample=False,
                           output_logits=True, return_dict_in_generate=True) for i in range(2)]  # fmt: skip
  scores = torch.stack([torch.stack(row.logits)[:, 0] for row in rows])
  new = torch.stack([row.sequences[0, -NEW:] for row in rows])
  logps = torch.log_softmax(scores, -1).gather(-1, new[..., None])[..., 0]
  np.savez_compressed(
    folder / "reference.npz", input_ids=ids, attention_mask=mask,
    logits=(logits * mask[..., None]).numpy().astype(np.float32), greedy_prompt_ids=prompt,
    greedy_prompt_mask=prompt_mask, greedy_new_ids=new, greedy_logps=logps.numpy().astype(np.float32),
  )  # fmt: skip
  versions = {"transformers": transformers.__version__, "torch": torch.__version__}
  (folder / "versions.json").write_text(json.dumps({**versions, "largest_logit": float(logits.abs().max())}))


if __name__ == "__main__":
  main()
