"""The scan of many small MLP memories over their texts, each with its state on chip from chunk to chunk."""
from atlas_jax.kernels import platform as platforms
from atlas_jax.kernels.memory_scan import chunked, reference
from atlas_jax.kernels.memory_scan.reference import ACTIVATIONS, Decay, ScanForm

PALLAS_PLATFORMS = ("gpu", "tpu")
# Those of them on which a measurement (README of the kernels) shows the kernel ahead of the chunked form.
PALLAS_AHEAD: tuple[str, ...] = ()
DEPTHS = (1, 2)


def memory_scan(q_GTK, k_GTK, v_GTM, decay: Decay, reset_GN, initial, fast, momentum, *, chunk_size: int,
                activation: str = "silu", residual: bool = True, surprise_max: float | None = None,
                impl: str = "auto"):
  """Reads and writes G memories over T tokens each, chunk by chunk; no gates, all is in `decay`.

  A memory is f(x) = act(x @ W0) @ W1 or x @ W0, plus x if residual; a token's gradient is that of half the
  squared error |f(k) - v|^2 at the weights of the chunk's start, and `Decay` says what becomes of it.

  Args:
    q_GTK, k_GTK, v_GTM: queries, keys and values; T is a multiple of chunk_size.
    decay: see `Decay`.
    reset_GN: whether the memory starts anew before the chunk: from `initial`, with momentum 0.
    initial: list of one or two matrices [G, in, out] from which memories start anew.
    fast: list of the weights before the first token.
    momentum: list of the momentum before it; () without momentum.
    chunk_size: tokens whose gradients are taken at the same weights.
    activation, residual, surprise_max: see `ScanForm`.
    impl: "reference" (every gradient in full), "chunked" (dual form), "pallas" (one kernel, on the platforms
      and for the sizes in the kernels' README), or "auto".

  Returns:
    out_GTM, fast and momentum after the last token, and without a gradient surprise_GT (norm of each token's
    gradient before the bound) and loss_GT.

  Raises:
    ValueError: if impl is unknown or does not take this platform or these shapes, or an option is wrong.

  Source: Behrouz et al. 2025, Titans, arXiv:2501.00663, Eq. 9-18; the dual form is of Sun et al. 2024,
    arXiv:2407.04620, section 2.5, here for MLPs with momentum and gates of every token.
  """
  # Gates, resets and padding are in the arrays already: what is left is static.
  form = ScanForm(activation, residual, surprise_max)
  _check(q_GTK, v_GTM, reset_GN, fast, form, chunk_size)
  arguments = (q_GTK, k_GTK, v_GTM, decay, reset_GN, list(initial), list(fast), list(momentum))
  platform = platforms.current()
  if impl == "auto":
    impl = _best(arguments, chunk_size, platform)
  if impl == "reference":
    return reference.memory_scan(*arguments, chunk_size=chunk_size, form=form)
  if impl == "chunked":
    return chunked.memory_scan(*arguments, chunk_size=chunk_size, form=form)
  if impl == "pallas" and platform in PALLAS_PLATFORMS:
    from atlas_jax.kernels.memory_scan import pallas  # Half a second that a CPU need not spend.
    return pallas.memory_scan(*arguments, chunk_size=chunk_size, form=form, platform=platform)
  raise ValueError(f"memory_scan has no impl={impl!r} on {platform}; supported are auto, reference and "
                   f"chunked on every platform, pallas on {' and '.join(PALLAS_PLATFORMS)}")


def _best(arguments, chunk_size: int, platform: str) -> str:
  # Lowering on a platform says nothing of speed there: "auto" waits for a measurement.
  if platform not in PALLAS_AHEAD:
    return "chunked"
  from atlas_jax.kernels.memory_scan import pallas
  return "chunked" if pallas.problem(*arguments, chunk_size=chunk_size, platform=platform) else "pallas"


def _check(q_GTK, v_GTM, reset_GN, fast, form: ScanForm, chunk_size: int):
  if len(fast) not in DEPTHS:
    raise ValueError(f"memory_scan takes memories of one or two matrices, got {len(fast)}")
  if form.activation not in ACTIVATIONS:
    raise ValueError(f"memory_scan has no activation={form.activation!r}; known are {', '.join(ACTIVATIONS)}")
  if form.residual and q_GTK.shape[-1] != v_GTM.shape[-1]:
    raise ValueError("residual=True needs keys and values of one width, got "
                     f"{q_GTK.shape[-1]} and {v_GTM.shape[-1]}")
  if form.surprise_max is not None and form.surprise_max <= 0:
    raise ValueError(f"surprise_max={form.surprise_max} must be positive, or None for no bound")
  if reset_GN.shape[1] * chunk_size != q_GTK.shape[1]:
    raise ValueError(f"{q_GTK.shape[1]} tokens are not {reset_GN.shape[1]} chunks of {chunk_size}")
