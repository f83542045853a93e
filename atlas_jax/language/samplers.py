"""The sampler that a config names: "native", "vllm", "server", or a dotted module of one's own.

Such a module has make(config, start, mesh, workdir), as of `load`, and gives a `decoding.sampler.Sampler`:
`load` takes parameters, `generate` writes completions; `sampler.assemble` puts them together, and
`sampler.ScriptedSampler` is a small one to read.
"""
from atlas_jax import modules
from atlas_jax.language import server_sampler
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import Sampler
from atlas_jax.language.initial_model import InitialModel


def load(config, start: InitialModel, mesh, workdir=None) -> Sampler:
  """Makes the sampler that config.sampler.kind names; it has no weights yet.

  Args:
    config: resolved; with the groups data, sampler, vllm and server.
    start: the model that writes.
    mesh: where a sampler of our own computes.
    workdir: of the run, for the log of a server and what it reads; None: a folder for temporary files.

  Raises:
    ValueError, ModuleNotFoundError: if the model cannot be served that way, or a field cannot be.
  """
  if config.sampler.kind == "native":
    return NativeSampler(start.language, start.tokenizer, mesh)
  if config.sampler.kind == "server":
    return server_sampler.make(start.language, start.tokenizer, workdir=workdir, **config.server)
  # Before the import below, which a sampler of one's own does not need.
  if config.sampler.kind != "vllm":
    return modules.attribute(config.sampler.kind, "make", field="sampler.kind")(config, start, mesh, workdir)
  from atlas_jax.language.vllm import sampler as vllm  # Its extra is needed by those alone who use it.
  return vllm.make(start.language, start.tokenizer, like=start.folder, workdir=workdir,
                   longest_tokens=config.data.max_prompt_tokens + config.sampler.max_tokens, **config.vllm)
