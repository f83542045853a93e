"""The names that statistics of layers have among a run's metrics."""


def layer_metrics(stats: dict) -> dict:
  """Names each layer's statistics memory/NAME/layer_00 and so on."""
  return {f"memory/{name}": value for name, value in stats.items()}
