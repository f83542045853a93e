"""Settings of the store of the runtime."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class StoreSettings:
  """A store, and how it is written to.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  url: str = "sqlite:///.atlas/atlas.db"
  spool: str = ".atlas/spool"  # folder
  batch_rows: int = 200        # events that are written together, at most,
  batch_s: float = 0.25        # and the longest that they wait
  lease_s: float = 30.0        # after which a session whose process is silent may be taken over
  heartbeat_s: float = 10.0
  retry_s: float = 5.0         # between tries of a store that is down
  reap_s: float | None = 60.0  # between looks for sessions whose process is gone; None: at the start alone
  stall_s: float = 10.0        # for an answer of the store, before it counts as down

  def __post_init__(self):
    for name in ("batch_rows", "batch_s", "lease_s", "heartbeat_s", "retry_s", "stall_s"):
      if not getattr(self, name) > 0:
        raise ValueError(f"store.{name}={getattr(self, name)} must be above 0")
    if self.reap_s is not None and not self.reap_s > 0:
      raise ValueError(f"store.reap_s={self.reap_s} must be above 0, or None")
    if self.heartbeat_s * 2 > self.lease_s:
      raise ValueError(f"store.heartbeat_s={self.heartbeat_s} must be at most half of "
                       f"store.lease_s={self.lease_s}, so that one late heartbeat loses no session")
