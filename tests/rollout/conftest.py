"""A chat server that the tests of endpoints and judges share."""
import pytest

from tests.rollout import chat_server


@pytest.fixture(scope="session")
def _served():
  with chat_server.running() as server:
    yield server


@pytest.fixture
def server(_served):
  """A chat server that says hello, or what a test has it say."""
  return _served.use(lambda number, body: "hello")
