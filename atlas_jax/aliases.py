"""Names that other programs have for settings, so that whoever uses theirs is told ours.

The names are those of Hugging Face's Trainer, TRL, PEFT and the usual training scripts.
"""

# A run resumes by its --workdir alone, so for these words there is neither a flag nor a field to name.
RESUME = ("resume", "resume_from", "resume_from_checkpoint", "continue", "restore", "load_checkpoint",
          "auto_resume")
# Other programs keep results, logs and checkpoints apart; here all of them lie in --workdir.
WORKDIR = ("output_dir", "out_dir", "output", "save_dir", "run_dir", "log_dir", "logging_dir", "ckpt_dir",
           "checkpoint_dir", "work_dir", "outdir", "model_dir")
# Requests that are met by other means than a field.
OTHERWISE = {
    **dict.fromkeys(("train", "do_train", "training"), "training is --mode=train, and done without a flag"),
    **dict.fromkeys(("eval", "do_eval", "eval_only", "evaluate", "test", "do_test", "do_predict"),
                    "evaluating a run is --mode=eval"),
    **dict.fromkeys(("cpu", "smoke", "baseline", "variant"), "variants of a config stand behind its name, as "
                    "in --config=configs/memory_40m.py:cpu"),
    **dict.fromkeys(("gpu", "gpu_id", "device", "cuda", "accelerator", "platform", "use_cpu", "no_cuda"),
                    "all devices are used that are found; JAX_PLATFORMS=cpu in the environment takes others")}
# Messages put --config. before a name; a text that names two fields writes the second prefix out.
TEXTS = "data.path (texts, with --config.data.name=files) or --config.data.files (rows of prompts and chats)"
DTYPE = "model.dtype or --config.decoder.dtype"
# Our field for each of their names. A name is looked up without its groups.
ALIASES = {
    # Ours counts the rows of one update: over all devices, and all pieces of accumulate_steps.
    **dict.fromkeys(("batch_size", "bs", "train_batch_size", "per_device_train_batch_size", "batch",
                     "global_batch_size", "micro_batch_size"), "data.batch_rows"),
    **dict.fromkeys(("eval_batch_size", "per_device_eval_batch_size", "val_batch_size"), "eval.batch_rows"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "grad_accum_steps", "accumulation_steps",
                     "accumulate_grad_batches"), "train.accumulate_steps"),
    **dict.fromkeys(("learning_rate", "max_lr", "peak_lr", "base_lr"), "optim.lr"),
    **dict.fromkeys(("max_steps", "num_steps", "train_steps", "num_train_steps", "total_steps", "max_iters",
                     "iterations", "n_steps"), "optim.steps"),
    **dict.fromkeys(("epoch", "num_train_epochs", "num_epochs", "n_epochs", "max_epochs"),
                    "data.epochs (or of recursive models --config.puzzles.epochs)"),
    **dict.fromkeys(("warmup", "warmup_ratio", "num_warmup_steps", "lr_warmup_steps", "warmup_iters"),
                    "optim.warmup_steps"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler"), "optim.schedule"),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "gradient_clip_val", "clip_grad_norm", "clip_grad"),
                    "optim.clip_norm"),
    "optimizer": "optim.name", "optim": "optim.name", "wd": "optim.weight_decay", "ema": "optim.ema_decay",
    "adam_beta1": "optim.beta1", "adam_beta2": "optim.beta2", "adam_epsilon": "optim.eps",
    "logging_steps": "train.log_every_steps", "log_interval": "train.log_every_steps",
    "log_every": "train.log_every_steps", "eval_steps": "train.eval_every_steps",
    "eval_interval": "train.eval_every_steps", "eval_every": "train.eval_every_steps",
    "save_steps": "checkpoint.every_steps", "save_interval": "checkpoint.every_steps",
    "save_every": "checkpoint.every_steps", "save_total_limit": "checkpoint.keep_last",
    "metric_for_best_model": "checkpoint.best_metric",
    # A checkpoint here is a model to start from; to go on with a run is the case of RESUME.
    **dict.fromkeys(("model", "model_name", "model_path", "model_name_or_path", "model_id", "base_model",
                     "pretrained", "pretrained_model_name_or_path", "init_from", "load_weights", "load",
                     "load_from", "init", "checkpoint", "ckpt", "ckpt_path", "weights"),
                    "model.path"),
    **dict.fromkeys(("data", "dataset", "data_path", "data_dir", "dataset_path", "train_data", "train_file",
                     "train_files", "corpus", "input"), TEXTS),
    "dataset_name": "data.name", "dataset_text_field": "data.text_field",
    "tokenizer_name": "data.tokenizer",
    "tokenizer_name_or_path": "data.tokenizer", "vocab": "model.vocab_size", "num_workers": "data.threads",
    "dataloader_num_workers": "data.threads", "packing": "data.packed", "val_split": "data.held_out_frac",
    "test_size": "data.held_out_frac", "validation_split": "data.held_out_frac",
    "validation_file": "data.held_out_frac (a part is held out) or of ranked runs --config.ranked.eval_files",
    **dict.fromkeys(("max_seq_length", "max_seq_len", "seq_len", "seq_length", "sequence_length",
                     "block_size", "max_length", "context_length", "context_len", "cutoff_len"),
                    "data.segment_len"),
    "max_prompt_length": "data.max_prompt_tokens", "max_completion_length": "sampler.max_tokens",
    "max_new_tokens": "sampler.max_tokens",
    "num_generations": "data.group_size", "rollout_n": "data.group_size", "reward_funcs": "rewards",
    "reward": "rewards", "reward_fn": "rewards", "kl_coef": "policy.kl_weight", "kl_beta": "policy.kl_weight",
    "loss_type": "policy.preset", "epsilon_high": "policy.clip_high", "use_vllm": "sampler.kind",
    "scale_rewards": "advantage.kind", "mask_truncated_completions": "rollout.truncated",
    "teacher_model_name_or_path": "distill.teacher",
    "lmbda": "distill.on_policy_frac",
    **dict.fromkeys(("lora_r", "lora_rank", "use_peft", "use_lora", "r"), "lora.rank"),
    "lora_alpha": "lora.alpha", "lora_target_modules": "lora.targets", "target_modules": "lora.targets",
    **dict.fromkeys(("bf16", "fp16", "precision", "mixed_precision", "torch_dtype"), DTYPE),
    "gradient_checkpointing": "model.remat or --config.decoder.remat",
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "hidden_dim"),
                    "model.width or --config.decoder.width"),
    **dict.fromkeys(("num_layers", "n_layers", "n_layer", "num_hidden_layers", "layers"),
                    "model.depth or --config.decoder.depth"),
    **dict.fromkeys(("num_heads", "n_heads", "n_head", "num_attention_heads"),
                    "model.heads or --config.decoder.heads"),
    **dict.fromkeys(("window", "window_size", "sliding_window", "attention_window"),
                    "model.window_tokens (or while training --config.window.kind)"),
    # No field counts devices: config.mesh.data=-1, the default, takes all that fsdp and tensor leave.
    "random_seed": "seed", "report_to": "monitor.tensorboard", "num_gpus": "mesh.data", "gpus": "mesh.data",
    "n_gpus": "mesh.data", "devices": "mesh.data",
}
