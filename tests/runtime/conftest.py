"""The servers and stores that tests of the runtime fraction."""
from tests.rollout.conftest import _served, server  # noqa: F401
from tests.stores import postgres_server, store_url  # noqa: F401
