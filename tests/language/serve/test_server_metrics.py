"""Numbers for Prometheus: of this server alone, with their meanings."""
from atlas_jax.language.serve.server_metrics import ServerMetrics


def test_two_servers_of_one_process_count_apart():
  one, other = (ServerMetrics(lambda: {"slots": 8}, {"slots": "places"}) for _ in range(2))
  one.count({"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}})
  assert b"atlas_jax_cached_tokens_total 2.0" in one.text()[0]
  assert b"atlas_jax_cached_tokens_total 0.0" in other.text()[0]
  assert b"# HELP atlas_jax_scheduler_slots places" in one.text()[0]
  assert one.text()[1].startswith("text/plain")
