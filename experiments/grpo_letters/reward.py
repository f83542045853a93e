"""The reward of the toy: how many of the ids that were drawn are ASCII letters."""


def letters(prompt, completion, answer, tokens) -> float:
  """Returns the fraction of ids that are ASCII letters among those drawn, 0 where there is none.

  It reads ids, not text: of a thousand ids only 256 are bytes, and the others have no text at all.
  """
  del prompt, completion, answer
  return sum(65 <= token <= 90 or 97 <= token <= 122 for token in tokens) / max(1, len(tokens))
