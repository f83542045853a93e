"""Settings of a scheduler, and the names of its statistics."""
import dataclasses
import pathlib

STATS = {
    "waiting": "requests in the queue",
    "reading": "requests whose prompts are read",
    "ready": "requests whose prompts are read and that wait for a slot",
    "slots": "completions that may be written at the same time",
    "busy_slots": "completions that are written",
    "requests": "requests that have ended",
    "ended_stop_token": "completions that ended so; the same for the other reasons",
    "prompt_tokens": "ids of prompts",
    "shared_tokens": "of these, ids that the store knew as the start of an earlier text",
    "cached_tokens": "of these, ids whose state came from the store",
    "read_tokens": "ids of prompts that were read",
    "background_tokens": "ids of completions that were read for the store",
    "background_waiting": "texts that are still to be read for the store",
    "background_dropped": "texts that were not, because too many waited",
    "drawn_tokens": "ids of completions",
    "steps": "decoding steps of a group",
    "state_bytes": "size of the state of one stream of the first model",
    "store_states": "states in the store",
    "store_bytes": "their size in memory",
    "store_evicted": "states that made room",
    "store_refused": "states that were larger than the store",
    "disk_bytes": "size of the files of states",
    "disk_skipped": "states that were not written to the disk",
    "disk_damaged": "files that could not be read",
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a scheduler.

  Attributes:
    slots: completions that are written at the same time.
    group_rows: rows that one decoding step computes; slots are groups of so many. It is part of the numbers:
      other values may round otherwise. 1 is for a server of single streams.
    piece_tokens: of a prompt, read at once. Also part of the numbers: pieces begin at its multiples alone, so
      that a state is the same however it came to be; states are stored at its multiples.
    room_tokens: of a decoder: the longest prompt with its completion; a memory model has no limit.
    reading_rows: prompts that are read at the same time.
    queue_requests: requests that may wait.
    time_limit_s: of requests that name none; None: no limit.
    store_bytes: of states of prefixes in the host's memory; 0 keeps none.
    store_every_tokens: distance of the states that are kept of a long text, a multiple of piece_tokens;
      beside them those at ends of prompts and completions and where texts part.
    store_folder: where states are also written, and read after a restart; None: nowhere.
    store_folder_bytes: of these files.
  """

  slots: int = 8
  group_rows: int = 8
  piece_tokens: int = 64
  room_tokens: int | None = None
  reading_rows: int = 4
  queue_requests: int = 128
  time_limit_s: float | None = None
  store_bytes: int = 0
  store_every_tokens: int = 512
  store_folder: pathlib.Path | None = None
  store_folder_bytes: int = 2**33

  def __post_init__(self):
    for name in ("slots", "group_rows", "piece_tokens", "reading_rows", "queue_requests"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    for name in ("store_bytes", "store_folder_bytes"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")
    if self.time_limit_s is not None and not self.time_limit_s > 0:
      raise ValueError(f"time_limit_s={self.time_limit_s} must be above 0, or None")
    if self.store_every_tokens < 1 or self.store_every_tokens % self.piece_tokens:
      raise ValueError(f"store_every_tokens={self.store_every_tokens} must be a multiple of piece_tokens="
                       f"{self.piece_tokens}: states are those between pieces")
    if self.store_folder is not None and not self.store_bytes:
      raise ValueError(f"store_folder={str(self.store_folder)!r} is for a store, and store_bytes=0 makes "
                       "none; set store_bytes, or store_folder=None")
