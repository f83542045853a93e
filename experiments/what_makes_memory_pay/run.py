"""What makes a memory pay: the shifted memory, with one choice at a time taken back.

  python -m experiments.what_makes_memory_pay.run --workdir=runs/choices \\
      --out=experiments/what_makes_memory_pay/small.json

Two blocks of width 128, 180 updates of 2,048 bytes; see the README for what came of it.
"""
from experiments import arms
from experiments.arms import Arm

PARAMS = 465_664  # Of the arm without memory.
SIZE = {"model.width": 128, "model.depth": 2, "model.heads": 4, "optim.steps": 180, "optim.warmup_steps": 15,
        "checkpoint.every_steps": 180, "eval.baselines": False, "eval.sample_tokens": 0}
CONFIG = "configs/memory_40m.py:cpu,pretrain,cells=256"


def arm(name: str, says: str, config: str = CONFIG, options: dict | None = None, **memory) -> Arm:
  """Makes an arm of the flagship from fields of config.model.memory, and its rule's options."""
  fields = SIZE | {f"model.memory.{field}": value for field, value in memory.items()}
  fields |= {f"model.memory.options.{option}": value for option, value in (options or {}).items()}
  return Arm(name, says, config, fields)


PAPER_KEYS = dict(shared_qk=False, activation="silu", conv_init="identity", conv_taps=4)
ONE_MATRIX = {"depth": 1, "residual": False}
ARMS = [
    Arm("none", "no memory", "configs/memory_40m.py:cpu,pretrain,baseline", SIZE),
    arm("full", "delta of 256 cells, shift, shared keys, n-gram taps, values of the token, block 1"),
    arm("no_shift", "a value is written under the key of its own token", shift=False),
    arm("own_queries", "queries have a projection and a convolution of their own", shared_qk=False),
    arm("attention_keys", "keys and queries are attention's keys, convolved", qkv_source="attention"),
    arm("identity_taps", "convolutions start near the token itself", conv_init="identity"),
    arm("short_taps", "keys of 2 tokens at most", conv_taps=2),
    arm("silu", "SiLU after the convolution", activation="silu"),
    arm("paper_keys", "no shift, and the papers' keys: own queries, SiLU, 4 taps near identity", shift=False,
        **PAPER_KEYS),
    arm("no_cells", "keys as they are", options={"feature_map": "none", "feature_dim": 16}),
    arm("values_in", "values of the block's input, convolved", value_source="input"),
    arm("learned_start", "fast weights start from learned ones", initial="learned"),
    arm("rms", "reads at unit mean square, however little is recalled", read_norm="rms"),
    arm("slow_writes", "write rate .01 of at most .1", write_rate_init=0.01, write_rate_max=0.1),
    arm("one_half_life", "half-lives of all heads alike", half_life_spread=1.0),
    arm("retention_995", "retention .995 per token", retention_init=0.995),
    arm("two_heads", "2 heads of width 64 in place of 4 of 32", heads=2, key_dim=64, value_dim=64),
    Arm("block_0", "the memory in block 0", CONFIG, SIZE | {"model.memory_layers": "0"}),
    Arm("all_blocks", "a memory in both blocks", CONFIG, SIZE | {"model.memory_layers": None}),
    Arm("segment_1024", "gradients over 1,024 tokens, 2 rows", CONFIG,
        SIZE | {"data.segment_len": 1_024, "data.batch_rows": 2}),
    Arm("window_16", "attention over 16 tokens", CONFIG, SIZE | {"model.window_tokens": 16}),
    Arm("none_16", "no memory, attention over 16 tokens", "configs/memory_40m.py:cpu,pretrain,baseline",
        SIZE | {"model.window_tokens": 16}),
    Arm("gates_5", "gates at 5 times the learning rate", CONFIG, SIZE | {"optim.gate_lr_scale": 5.0}),
    Arm("gates_20", "gates at 20 times the learning rate", CONFIG, SIZE | {"optim.gate_lr_scale": 20.0}),
]


def main(argv: list[str] | None = None) -> None:
  """Runs what is missing and prints the table."""
  out = arms.run(ARMS, params=PARAMS, argv=argv, says=(__doc__ or "").split("\n")[0])
  print(arms.table(arms.read(out), ARMS, {"val_bits_per_byte": "bits per byte",
                                          "memory_gain_emptied_nats": "emptied",
                                          "memory_gain_swapped_nats": "swapped", "cpu_s": "CPU-s"}))


if __name__ == "__main__":
  main()
