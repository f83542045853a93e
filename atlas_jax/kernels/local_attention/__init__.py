"""Causal attention over the last window of tokens of the same document."""
from atlas_jax.kernels.local_attention import chunked, library, reference

FORMS = {"reference": reference.local_attention, "chunked": chunked.local_attention, "xla": library.xla,
         "cudnn": library.cudnn}


def local_attention(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, *, window_tokens: int, seen_tokens=None,
                    impl: str = "auto"):
  """Attends to the last `window_tokens` tokens, the query's own included.

  Args:
    q_BTHK: queries; query t sits at row S - T + t of the keys.
    k_BSHK, v_BSHK: keys and values: S - T rows from earlier calls, then those of the T tokens.
    doc_BT, doc_BS: document of each query and key; only equal ones meet.
    window_tokens: how many keys a query sees at most.
    seen_tokens: [] int32, from 1 to window_tokens: how many of these it sees; all forms take it. Traced, so
      that work and memory are those of window_tokens. None: all.
    impl: "reference" (every pair of rows), "chunked" (neighbouring blocks only), "xla" and "cudnn" (of
      jax.nn.dot_product_attention; cuDNN's only on NVIDIA GPUs), or "auto", one of the first two: none of
      the others has been measured on hardware.

  Returns:
    [B, T, H, K] in the queries' dtype; softmax is in float32 or wider.

  Raises:
    ValueError: if impl is unknown, or not for this platform, type or width, or seen_tokens is a plain number
      out of range.
  """
  # Blocks are of a whole window: with T at most a window, the one block would score 2 W keys for each of W
  # queries, padding included, where "reference" scores T times S. A decoded token has T = 1.
  if impl == "auto":
    impl = "chunked" if q_BTHK.shape[1] > window_tokens else "reference"
  if impl not in FORMS:
    raise ValueError(f"impl={impl!r} is unknown for local_attention; known are auto, {', '.join(FORMS)}")
  # A traced number has no value yet; `near` cuts it at the window.
  if isinstance(seen_tokens, int) and not 1 <= seen_tokens <= window_tokens:
    raise ValueError(f"seen_tokens={seen_tokens} must be from 1 to window_tokens={window_tokens}")
  return FORMS[impl](q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, window_tokens=window_tokens,
                     seen_tokens=seen_tokens)
