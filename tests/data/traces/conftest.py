"""Stores for the tests of traces."""
from tests.stores import postgres_server, store_url  # noqa: F401  Fixtures, found here by name.
