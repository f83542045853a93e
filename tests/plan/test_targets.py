"""The table of machines: every number has a source, the text of a GPU is what XLA reads, kinds are found."""

import datetime

import pytest

from atlas_jax.plan import targets

GIB = 2**30
NAMES = ["rtx5090", "rtx4090", "rtx5060ti16", "a100_80", "h100", "h200", "v5e", "v5p", "v6e"]


def test_the_table_has_the_targets_of_plans_and_this_machine():
  assert targets.names() == [*NAMES, "cpu"]
  with pytest.raises(ValueError, match="--target=tpu9 is unknown; it must be one of rtx5090"):
    targets.load("tpu9")


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source_with_a_title_and_a_date(name):
  target = targets.load(name)
  fields = ["memory_bytes", "memory_bandwidth_bytes_s", "launch_s", "vector_flops_s", "ici_bytes_s",
            "dcn_bytes_s", *(f"flops_s.{precision}" for precision in targets.PRECISIONS)]
  for field in fields:
    source = target.sources[field]
    assert source["title"]
    datetime.date.fromisoformat(source["date"])
  assert set(target.flops_s) == set(targets.PRECISIONS)
  assert target.flops_s["bfloat16"] >= target.flops_s["float32"] >= target.flops_s["float32_highest"] > 1e12
  assert 10 * GIB < target.limit_bytes <= target.memory_bytes < 150 * GIB
  assert 1e11 < target.memory_bandwidth_bytes_s < 1e13


@pytest.mark.parametrize("name", NAMES)
def test_gpus_have_a_description_for_the_compiler_and_tpus_a_topology(name):
  target = targets.load(name)
  if target.kind == "tpu":
    assert target.topology == name and target.gpu_target_config is None
    return
  text = target.gpu_target_config
  assert text is not None and target.topology is None
  lines = [line.strip() for line in text.splitlines()]
  assert lines.count("}") == sum(line.endswith("{") for line in lines) == 4
  values = dict(line.split(": ", 1) for line in lines if ": " in line)
  assert values["platform_name"] == '"CUDA"'
  assert values["device_description_str"] == f'"{target.description}"'
  assert float(values["memory_bandwidth"]) == target.memory_bandwidth_bytes_s
  assert float(values["shared_memory_per_block_optin"]) < float(values["shared_memory_per_core"])
  assert {"threads_per_warp", "l2_cache_size", "clock_rate_ghz", "registers_per_core_limit"} <= values.keys()


def test_the_description_of_the_h100_has_the_fields_that_the_compiler_took():
  lines = targets.load("h100").gpu_target_config.splitlines()
  assert "  core_count: 132" in lines and "  clock_rate_ghz: 1.98" in lines
  start = lines.index("  cuda_compute_capability {")
  assert lines[start + 1:start + 4] == ["    major: 9", "    minor: 0", "  }"]


def test_a_device_kind_leads_to_its_target():
  assert targets.peak_of_kind("NVIDIA H200") == targets.load("h200").flops_s["bfloat16"]
  assert targets.peak_of_kind("NVIDIA H100 PCIe") == 756e12
  assert targets.peak_of_kind("Abacus 3000") is None
