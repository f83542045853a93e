"""The servers and stores that tests of the runtime share."""
from tests.stores import postgres_server, store_url  # noqa: F401
