"""Local attention by `jax.nn.dot_product_attention`: XLA's form anywhere, cuDNN's on NVIDIA GPUs."""
import jax
import jax.numpy as jnp

from atlas_jax.kernels import platform as platforms
from atlas_jax.kernels.local_attention.reference import near

CUDNN_DTYPES = ("bfloat16", "float16")


def _attend(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, window_tokens, seen_tokens, implementation):
  length = q_BTHK.shape[1]
  rows = k_BSHK.shape[1]
  at_T = jnp.arange(length) + rows - length
  at_S = jnp.arange(rows)
  lag_TS = at_T[:, None] - at_S[None, :]
  # The library's own windows know neither documents nor a traced width, hence a mask: one byte per pair of
  # rows, for all heads, where scores in float32 would be 4 H.
  seen_BTS = near(lag_TS, window_tokens, seen_tokens)[None] & (doc_BT[:, :, None] == doc_BS[:, None, :])
  return jax.nn.dot_product_attention(q_BTHK, k_BSHK, v_BSHK, mask=seen_BTS[:, None],
                                      implementation=implementation)


def xla(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, *, window_tokens: int, seen_tokens=None):
  """Leaves the scores' layout to the library; arguments as in the package. Softmax is in float32."""
  return _attend(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, window_tokens, seen_tokens, "xla")


def cudnn(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, *, window_tokens: int, seen_tokens=None):
  """Fuses scores, softmax and values in one kernel; the mask of window and documents is one of [B, T, S].

  Raises:
    ValueError: off an NVIDIA GPU, or for shapes and types the kernel lacks.
  """
  dtype = jnp.dtype(q_BTHK.dtype).name
  width = q_BTHK.shape[-1]
  others = "use impl='chunked', 'reference' or 'xla'"
  if platforms.current() != "gpu":
    raise ValueError(f"impl='cudnn' of local_attention needs an NVIDIA GPU, here is "
                     f"{platforms.current()!r}; {others}")
  if dtype not in CUDNN_DTYPES:
    raise ValueError(f"impl='cudnn' of local_attention takes {', '.join(CUDNN_DTYPES)}, got {dtype}; set "
                     f"config.model.dtype='bfloat16', or {others}")
  # Refused before anything compiles, with the forms that take it.
  if width % 8 or width > 128:
    raise ValueError(f"impl='cudnn' of local_attention needs a head width that is a multiple of 8 up to 128, "
                     f"got {width}; {others}")
  return _attend(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, window_tokens, seen_tokens, "cudnn")
