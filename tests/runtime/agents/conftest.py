"""A chat server that the tests of endpoints fraction."""
from tests.rollout.conftest import _served, server

__all__ = ["_served", "server"]
