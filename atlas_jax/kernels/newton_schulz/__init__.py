"""Newton-Schulz iteration: brings all singular values of a matrix near one, as Muon does with its updates."""
from atlas_jax.kernels import platform as platforms
from atlas_jax.kernels.newton_schulz import chunked, reference

PALLAS_PLATFORMS = ("gpu", "tpu")
# Those of them on which a measurement (README of the kernels) shows the kernel ahead of the chunked form.
PALLAS_AHEAD: tuple[str, ...] = ()


def newton_schulz(x_ES, *, steps: int = 5, impl: str = "auto"):
  """Normalizes each matrix and applies X <- a X + (b A + c A^2) X with A = X X^T some times.

  Only singular values change: after five steps those that were above 1/600 of the Frobenius norm are between
  0.65 and 1.25, smaller ones below.

  Args:
    x_ES: matrices in the last two axes, any leading axes; iterated as their transpose if taller than wide.
    steps: how often the polynomial is applied; 0 gives the matrix over its Frobenius norm.
    impl: "reference" (as written), "chunked" (backward pass by hand), "pallas" (one kernel, on chip; only
      on the platforms and for the sizes in the kernels' README), or "auto".

  Returns:
    The same shape, float32 or wider. The gradient is finite everywhere, about 5e9 at most at the zero matrix.

  Raises:
    ValueError: if impl is unknown or does not take this platform or shape, or steps or axes are too few.

  Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", for the coefficients;
    Behrouz et al. 2025, arXiv:2505.23735, for its use on a memory's momentum.
  """
  if x_ES.ndim < 2 or steps < 0:
    raise ValueError(f"newton_schulz needs two axes and steps >= 0, got shape {x_ES.shape} and steps={steps}")
  platform = platforms.current()
  if impl == "auto":
    impl = _best(x_ES, platform)
  if impl == "reference":
    return reference.newton_schulz(x_ES, steps=steps)
  if impl == "chunked":
    return chunked.newton_schulz(x_ES, steps=steps)
  if impl == "pallas" and platform in PALLAS_PLATFORMS:
    from atlas_jax.kernels.newton_schulz import pallas  # Half a second that a CPU need not spend.
    return pallas.newton_schulz(x_ES, steps=steps, platform=platform)
  raise ValueError(f"newton_schulz has no impl={impl!r} on {platform}; supported are auto, reference and "
                   f"chunked on every platform, pallas on {' and '.join(PALLAS_PLATFORMS)}")


def _best(x_ES, platform: str) -> str:
  if platform not in PALLAS_AHEAD:
    return "chunked"
  from atlas_jax.kernels.newton_schulz import pallas
  return "chunked" if pallas.problem(x_ES.shape, x_ES.dtype, platform) else "pallas"
