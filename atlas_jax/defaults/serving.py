"""Settings of the server, --mode=serve, and of --mode=chat; they may change whenever a run is served."""
from ml_collections import config_dict

from atlas_jax.defaults.bounds import Bounded, above_zero, at_least, or_none

OPTIONAL = config_dict.placeholder


def groups() -> dict:
  """Returns what --mode=serve and --mode=chat read besides."""
  return {
      "serve": {
          "host": "127.0.0.1",  # Address to listen at; one that other machines reach needs tokens.
          # 0: any free one.
          "port": Bounded(8_000, lambda value: 0 <= value < 2**16, "from 0 to 65535"),
          "served_as": OPTIONAL(str),  # Name of the model in requests; None: the workdir's.
          "adapters": OPTIONAL(str),  # Loaded at start, NAME=FOLDER,...; see language/serve/loading.
          # Requests may load adapters that lie in it, and the run's newest weights; None: they may not.
          "load_folder": OPTIONAL(str),
          # How completions are computed:
          "slots": at_least(1, 8),  # Completions written at the same time.
          "group_rows": at_least(1, 8),  # Slots of one decoding step; part of the numbers.
          "piece_tokens": at_least(1, 64),  # Of a prompt, read at once; part of the numbers.
          "reading_rows": at_least(1, 4),  # Prompts read at the same time.
          # Of a decoder, prompt and completion; None: 4,096, or its learned positions if fewer.
          "room_tokens": at_least(1, OPTIONAL(int)),
          # States of prefixes, so that nothing is read twice:
          "store_gib": at_least(0, 1.0),  # In memory; 0: none are kept.
          "store_every_tokens": at_least(1, 512),  # Between states of a text; a multiple of piece_tokens.
          "folder": OPTIONAL(str),  # Of states and conversations; None: they end with the program.
          "folder_gib": above_zero(8.0),  # Of states in it.
          "conversations": at_least(1, 1_000),  # Kept; the oldest are forgotten.
          # Bounds of requests:
          "queue_requests": at_least(1, 128),  # That wait; one more is told to ask again later.
          "time_limit_s": or_none(above_zero(600.0)),  # From a request to its end; None: any time.
          "max_tokens": at_least(1, 4_096),  # Of a completion; also of a chat that names no bound.
          "max_completions": at_least(1, 128),  # Of a request: prompts times n.
          "body_mib": above_zero(8.0),  # Of a request.
          "body_timeout_s": above_zero(20.0),  # For all of it to come.
          "connections": at_least(1, 256),  # At the same time.
          "trace_tokens": at_least(1, 16_384),  # Of a text whose memory is looked at.
          "drain_s": above_zero(30.0),  # For what is being written when a signal ends the server.
          # Where a training run puts new weights, see config.server; None: nobody may change them.
          "weights_folder": OPTIONAL(str),
      },
  }
