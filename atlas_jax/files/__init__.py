"""Small files, read by one reader for each kind and written whole by one writer.

| kind | reader |
| --- | --- |
| JSON, also sealed with a checksum | `json_file`, `json_text` |
| JSON lines | `json_lines` |
| NPY, NPZ | `arrays` |
| Parquet | `parquet` |
| folders of files with checksums | `inventory` |
| paths that a file names | `inside` |
| tokenizer.json as JSON; whole tokenizers | `tokenizer_json`; `data.tokenizer` |
| chat templates | `data.chat_template`, run by `data.chat_sandbox` |
| configs of pretrained models | `language.pretrained.hf_config` |
| safetensors; PyTorch checkpoints | `language.pretrained.tensor_files`; `puzzles.torch_file` |

Any damage is a `damage.Damaged`, a ValueError of one line: the file, its line if it has lines, what is wrong
with it, and what to do. What the system refuses (no such file, no permission, disk full) stays an OSError.
`write` puts a file in its place whole and durable.
"""
