"""Baselines without a neural network: a trigram that saw what the model saw, and gzip."""
import contextlib

import numpy as np

from atlas_jax.evals import EvalOut, held_out, ngram


def make(train_factory, held_out_factory, tokenizer, *, max_tokens: int | None = None):
  """Makes the evaluation; it computes on the host alone, without the model.

  Args:
    train_factory: gives a fresh training source; its first `step` batches are what the model has seen. Both
      sources give all rows of the batch, also where several processes train.
    held_out_factory: gives a fresh source of held-out batches, see `held_out.batches`.
    tokenizer: of the ids.
    max_tokens: see `held_out.batches`; None reads all.

  Returns:
    run(trained, *, step) -> EvalOut with "eval/trigram_bits_per_byte", "eval/trigram_tokens" (targets it was
    fitted on) and "eval/gzip_bits_per_byte" of the bytes behind the held-out targets.
  """

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del trained, workdir
    with contextlib.closing(train_factory()) as source:
      # The very batches of the run: a source depends on its seed and the step alone, so it is read once more.
      seen = (source.next(None) for _ in range(step))
      trigram = ngram.fit(seen, vocab_size=tokenizer.vocab_size, doc_id=tokenizer.doc_id)
    texts: list[list[bytes]] = []
    # gzip needs the bytes of what the trigram reads; noted on the way, so the text is read once.
    reading = _noting_bytes(held_out.batches(held_out_factory(), max_tokens=max_tokens), tokenizer, texts)
    trigram_bits = trigram.bits_per_byte(reading)
    return EvalOut({
        "eval/trigram_bits_per_byte": trigram_bits,
        "eval/trigram_tokens": float(trigram.n_tokens),
        "eval/gzip_bits_per_byte": ngram.gzip_bits_per_byte(b"".join(part for row in texts for part in row)),
    })

  return run


def _noting_bytes(batches, tokenizer, texts: list[list[bytes]]):
  """Passes batches on and appends the bytes of each row's counted targets to that row's list."""
  for batch in batches:
    # A list for each row, over all batches: gzip finds repetitions in its
    # last 32 KiB, so a row must be in one piece.
    texts.extend([] for _ in range(len(texts), len(batch["targets_BT"])))
    for row, target_T, weight_T in zip(texts, batch["targets_BT"], batch["weight_BT"]):
      row.append(tokenizer.decode_bytes(target_T[np.asarray(weight_T) > 0]))
    yield batch
