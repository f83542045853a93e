"""Which test file tests a module of the package that has none of its name, and why not."""

import fnmatch
import pathlib

PARTS = "a part of what is tested as a whole"
PAGE = "a page of the report, drawn from a run's numbers"
SETTINGS = "settings, checked as a whole"
# Module of the package, with wildcards -> (test file, reason).
ELSEWHERE = {
  "__init__.py": ("test_readme.py", "the names that the README's programs import"),
  "aliases.py": ("test_flags.py", "refusals of other programs' names"),
  "closing.py": ("test_train.py", "the end of the loop"),
  "opening.py": ("test_train.py", "the start of the loop"),
  "command.py": ("test_flags.py", "the flags of the program"),
  "defaults/*": ("test_config.py", SETTINGS),
  "explain.py": ("test_failures.py", "what is said of failures"),
  "fields.py": ("test_config.py", SETTINGS),
  "files/*": ("faults/test_mutations.py", "every kind of file is damaged at random"),
  "modes.py": ("test_main.py", "the modes of the program"),
  **{f"plan/{name}.py": ("plan/test_planning.py", PARTS) for name in ("advice", "compiled", "update")},
  "plan/device_groups.py": ("plan/test_hlo.py", PARTS),
  "kernels/platform.py": ("plan/test_planning.py", "what is compiled for another platform"),
  "modules.py": ("test_flags.py", "refusals of names"),
  "workdir.py": ("test_house.py", "names alone"),
  "data/chat_template.py": ("data/test_chats.py", PARTS),
  "data/countdown.py": ("data/test_arithmetic.py", "both tasks that are made here"),
  "data/messages.py": ("data/test_chats.py", PARTS),
  "data/problems.py": ("data/test_prompts.py", PARTS),
  "data/recall/documents.py": ("data/test_episodes.py", "rows of documents are read there"),
  "data/recall/haystack.py": ("data/recall/test_recall.py", PARTS),
  "data/recall/options.py": ("data/recall/test_recall.py", PARTS),
  "data/recall/sample.py": ("data/recall/test_recall.py", PARTS),
  "data/traces/store_rows.py": ("data/traces/test_store.py", PARTS),
  "data/ranked_tasks.py": ("data/test_ranked.py", PARTS),
  **{f"data/traces/{name}.py": (f"data/traces/test_{test}.py", PARTS) for name, test in {
    "record_fields": "record", "rejects": "jsonl", "step_prompts": "conversation", "steps": "record",
    "values": "record"}.items()},
  **{f"runtime/{name}.py": ("runtime/test_proxy.py", PARTS)
     for name in ("proxy_replies", "proxy_sessions", "http_guard")},
  "data/traces/served_tokens.py": ("runtime/test_proxy.py", "rows of sessions that a proxy recorded"),
  "evals/__init__.py": ("evals/test_perplexity.py", PARTS),
  "evals/examples.py": ("recipes/test_sft.py", "the evaluation of one recipe"),
  "evals/held_out.py": ("evals/test_perplexity.py", PARTS),
  "evals/ranking.py": ("recipes/test_ranked.py", "the evaluation of one recipe"),
  "evals/recall/pictures.py": ("evals/recall/test_asking.py", PARTS),
  "evals/sample.py": ("evals/test_baselines.py", "small evaluations together"),
  "handover/package.py": ("handover/test_upload.py", PARTS),
  "kernels/local_attention/*": ("kernels/test_local_attention.py", "forms of one operation"),
  "kernels/memory_scan/*": ("kernels/test_memory_scan.py", "forms of one operation"),
  "kernels/newton_schulz/*": ("kernels/test_newton_schulz.py", "forms of one operation"),
  "kernels/vocab_loss/*": ("kernels/test_vocab_loss.py", "forms of one operation"),
  "language/pretraining.py": ("recipes/test_memory_lm_start.py", "what recipes of memory models share"),
  "language/assets.py": ("language/test_export.py", "what a run keeps is read back"),
  "language/decoding/completion_writer.py": ("language/decoding/test_scheduler.py", PARTS),
  "language/decoding/prompt_reading.py": ("language/decoding/test_conversations.py", PARTS),
  "language/decoding/requests.py": ("language/decoding/test_scheduler.py", PARTS),
  "language/decoding/scheduler_settings.py": ("language/decoding/test_scheduler.py", PARTS),
  "language/decoding/serving_loop.py": ("language/decoding/test_scheduler.py", PARTS),
  "language/decoding/slot_group.py": ("language/decoding/test_scheduler.py", PARTS),
  "language/decoding/state_disk.py": ("language/decoding/test_prefix_store.py", PARTS),
  "language/decoding/stops.py": ("language/decoding/test_native.py", PARTS),
  "language/first_params.py": ("recipes/test_adapter_start.py", "what recipes share"),
  **{f"language/serve/{name}.py": (f"language/serve/test_{test}.py", PARTS) for name, test in {
    "answering": "app", "api_call": "text_completions", "api_error": "app", "chat_prompt": "conversations",
    "event_stream": "app", "generation_fields": "text_completions", "http_protocol": "http_server",
    "request_body": "app", "response_reply": "responses", "served_text": "text_completions",
    "token_report": "text_completions"}.items()},
  "language/lengths.py": ("recipes/test_sft_refusals.py", "what recipes share"),
  "language/pretrained/adapters.py": ("recipes/test_adapter_start.py", PARTS),
  "language/pretrained/hf_config.py": ("language/pretrained/test_hf_import.py", PARTS),
  "language/pretrained/hybrid_config.py": ("language/pretrained/test_hybrid_import.py", PARTS),
  "language/pretrained/model_folder.py": ("recipes/test_ranked.py", "what one recipe offers at its end"),
  "language/pretrained/names/*": ("language/pretrained/test_hf_import.py", "a table for each family"),
  "language/pretrained/tensor_files.py": ("language/pretrained/test_foreign_files.py", PARTS),
  "language/vllm/client.py": ("language/vllm/test_sampler.py", PARTS),
  "language/vllm/engine.py": ("language/vllm/test_server.py", PARTS),
  "language/vllm/weights.py": ("language/vllm/test_sampler.py", PARTS),
  "language/other_model.py": ("recipes/test_gkd.py", "the teacher of one recipe, the student of another"),
  "losses/importance.py": ("losses/test_policy.py", PARTS),
  "losses/objectives.py": ("losses/test_policy.py", PARTS),
  "losses/policy_metrics.py": ("losses/test_policy.py", PARTS),
  "losses/sft.py": ("losses/test_token_logprobs.py", PARTS),
  "memory/descent.py": ("memory/test_rules_contract.py", "the scaffold of rules"),
  "memory/exponential.py": ("memory/test_rules_contract.py", "the scaffold of rules"),
  "memory/flops.py": ("monitor/test_memory_flops.py", "compared with compiled programs"),
  "memory/muon.py": ("memory/test_rules_contract.py", "the scaffold of rules"),
  "memory/on_chip.py": ("kernels/test_memory_scan.py", "the kernel below a rule"),
  "memory/projections.py": ("memory/test_shift.py", PARTS),
  "memory/rules/*": ("memory/test_rules_contract.py", "the contract that every rule passes"),
  "memory/ttt.py": ("memory/test_rules_contract.py", "the scaffold of rules"),
  "memory/types.py": ("memory/test_rules_contract.py", "types alone"),
  "models/blocks/*": ("models/test_blocks_contract.py", "the contract that every mix passes"),
  "models/gated_delta_net.py": ("models/test_hybrid_decoder.py", PARTS),
  "models/grouped_attention.py": ("models/test_decoder.py", PARTS),
  "models/layer_metrics.py": ("recipes/test_memory_lm.py", "what recipes share"),
  "models/layers.py": ("memory/test_norms.py", PARTS),
  "models/lora.py": ("language/pretrained/test_peft.py", "adapters beside those of another program"),
  "models/memories.py": ("models/test_lm_layers.py", "what memories hold, from outside"),
  "models/mixing.py": ("models/test_blocks_contract.py", "types alone"),
  "models/ngrams.py": ("models/test_lm_controls.py", "a control"),
  "models/rope.py": ("models/test_decoder.py", PARTS),
  "models/segments.py": ("models/test_mixes.py", PARTS),
  "models/stacks.py": ("models/test_lm_layers.py", PARTS),
  "models/trm_baselines.py": ("models/test_trm.py", PARTS),
  "monitor/alerts/__main__.py": ("monitor/alerts/test_afterwards.py", PARTS),
  "monitor/alerts/journal.py": ("monitor/alerts/test_afterwards.py", PARTS),
  "monitor/alerts/measures.py": ("monitor/alerts/test_engine.py", PARTS),
  "monitor/alerts/message.py": ("monitor/alerts/test_sinks.py", PARTS),
  "monitor/alerts/watch.py": ("monitor/alerts/test_afterwards.py", PARTS),
  "monitor/accuracy_panel.py": ("monitor/test_phases.py", PAGE),
  "monitor/curves.py": ("monitor/test_report.py", PAGE),
  "monitor/dashboard/__main__.py": ("monitor/dashboard/test_main.py", "the command that starts it"),
  "monitor/dashboard/render.py": ("monitor/dashboard/test_app.py", PARTS),
  "monitor/dashboard/views/*": ("monitor/dashboard/test_views.py", "every page passes the same checks"),
  "monitor/memory_panels.py": ("monitor/test_report.py", PAGE),
  "monitor/puzzle_panels.py": ("monitor/test_report.py", PAGE),
  "monitor/skipped.py": ("test_train.py", PARTS),
  "monitor/schema_page.py": ("monitor/test_schema.py", "the page of the schema"),
  "monitor/speed_panel.py": ("monitor/test_report.py", PAGE),
  "monitor/time_panel.py": ("monitor/test_report.py", PAGE),
  "monitor/watch.py": ("monitor/test_high_loss.py", "the parts of it in a run"),
  "parallel/agree.py": ("parallel/test_peers.py", PARTS),
  "parallel/compiled.py": ("parallel/test_launch.py", PARTS),
  "parallel/signals.py": ("test_interrupted.py", "programs that are stopped"),
  "parallel/wire.py": ("parallel/test_peers.py", PARTS),
  "monitor/schema_post_training.py": ("monitor/test_schema.py", PARTS),
  "rollout/endpoint_settings.py": ("rollout/test_endpoint.py", PARTS),
  "rollout/policy_training.py": ("recipes/test_grpo.py", "what recipes share"),
  "data/traces/runtime_rows.py": ("runtime/test_store.py", "the SQL of a store, tested through it"),
  **{f"runtime/cli_{name}.py": (f"runtime/test_{test}.py", PARTS)
     for name, test in (("codes", "cli"), ("config", "sdk_fields"), ("env", "cli"), ("deploy", "assembly"),
                        ("run", "cli"), ("store", "cli"))},
  "runtime/made_parts.py": ("runtime/test_assembly.py", PARTS),
  "runtime/prompt_metric.py": ("runtime/test_cli_optimise.py", PARTS),
  "runtime/settings_groups.py": ("runtime/test_settings.py", PARTS),
  "runtime/reflection_tasks.py": ("runtime/test_reflection.py", PARTS),
  "runtime/reflection_log.py": ("runtime/test_reflection.py", PARTS),
  "runtime/fingerprint.py": ("runtime/test_routing.py", PARTS),
  "runtime/group_commit.py": ("runtime/test_store_faults.py", PARTS),
  "runtime/records.py": ("runtime/test_session.py", PARTS),
  "runtime/store_settings.py": ("runtime/test_store.py", PARTS),
  "runtime/watching.py": ("runtime/test_runtime.py", PARTS),
  "runtime/cli_proxy.py": ("runtime/test_proxy.py", PARTS),
  "runtime/result.py": ("runtime/test_session.py", "types alone"),
  "runtime/spool.py": ("runtime/test_store_faults.py", PARTS),
  "runtime/work.py": ("runtime/test_session.py", PARTS),
  "pipeline/*": ("pipeline/test_stages.py", "stages are tested as they follow one another"),
  "rollout/prompted.py": ("rollout/test_source.py", PARTS),
  "rollout/teaching_metrics.py": ("rollout/test_teacher_source.py", PARTS),
  "runtime/discover_worker.py": ("runtime/test_discover.py", "the program that it starts"),
  "runtime/agents/agent.py": ("runtime/agents/test_python.py", "types alone"),
  "runtime/agents/replies.py": ("runtime/agents/test_python.py", PARTS),
  "runtime/agents/signatures.py": ("runtime/agents/test_python.py", PARTS),
  "puzzles/arc/challenges.py": ("puzzles/solve/test_task_file.py", PARTS),
  "puzzles/arc/leaks.py": ("puzzles/arc/test_evaluation.py", PARTS),
  "puzzles/arc/plan.py": ("puzzles/arc/test_build.py", PARTS),
  "puzzles/arc/tasks.py": ("puzzles/arc/test_arc.py", PARTS),
  "puzzles/boards/__init__.py": ("puzzles/boards/test_csv_files.py", PARTS),
  "puzzles/boards/hashing.py": ("puzzles/boards/test_sudoku.py", PARTS),
  "puzzles/boards/maze_solver.py": ("puzzles/boards/test_maze.py", PARTS),
  "puzzles/boards/sudoku_*.py": ("puzzles/boards/test_sudoku.py", PARTS),
  "puzzles/initial_model.py": ("recipes/test_trm_start.py", "runs that start from others"),
  "puzzles/puzzle_set.py": ("puzzles/test_sampler.py", PARTS),
  "puzzles/solve/*": ("puzzles/solve/test_solve.py", PARTS),
  "recipes/__init__.py": ("recipes/test_contract.py", "the contract that every recipe passes"),
  "rollout/async_loop.py": ("rollout/test_reward_calls.py", PARTS),
  "rollout/chat_form.py": ("rollout/test_endpoint.py", PARTS),
  "rollout/endpoint_limits.py": ("rollout/test_endpoint.py", PARTS),
  "rollout/reply_cache.py": ("rollout/test_endpoint.py", PARTS),
  "rollout/judges/case.py": ("rollout/judges/test_rim.py", PARTS),
  "rollout/judges/group_prompts.py": ("rollout/judges/test_group_judge.py", PARTS),
  "rollout/judges/group_reward.py": ("rollout/judges/test_group_judge.py", PARTS),
  "rollout/judges/prompts.py": ("rollout/judges/test_rim.py", PARTS),
  "rollout/judges/verdicts.py": ("rollout/judges/test_tiers.py", PARTS),
  "rollout/arrays.py": ("rollout/test_source.py", PARTS),
  "rollout/ask.py": ("rollout/test_source.py", PARTS),
  "rollout/distill_rows.py": ("rollout/test_distill_source.py", PARTS),
  "rollout/held_out.py": ("evals/test_problems.py", PARTS),
  "rollout/user_functions.py": ("rollout/test_rewards.py", PARTS),
}  # fmt: skip


def own_tests(module: pathlib.PurePath) -> list[pathlib.PurePath]:
  """Lists where a module's own test may stand; that of a package also beside its folder."""
  if module.name != "__init__.py" or not module.parent.name:
    return [module.with_name(f"test_{module.name}")]
  name = f"test_{module.parent.name}.py"
  return [module.parent / name, module.parent.parent / name]


def violations(package: pathlib.Path, tests: pathlib.Path) -> list[str]:
  """Finds modules without a test, and entries above that are of no module or name no test."""
  bad, used = [], set()
  for path in sorted(package.rglob("*.py")):
    module = path.relative_to(package)
    is_empty = path.name == "__init__.py" and "\ndef " not in path.read_text()
    if is_empty or any((tests / own).exists() for own in own_tests(module)):
      continue
    found = [pattern for pattern in ELSEWHERE if fnmatch.fnmatch(module.as_posix(), pattern)]
    used |= set(found)
    if not found:
      bad.append(f"{module} has no test {own_tests(module)[0]}; write one, or say in tests/mirror.py why not")
  unused = sorted({*ELSEWHERE} - used)
  missing = sorted({file for file, _ in ELSEWHERE.values() if not (tests / file).exists()})
  bad += [f"tests/mirror.py: {pattern} is of no module without a test" for pattern in unused]
  return bad + [f"tests/mirror.py: there is no {file}" for file in missing]
