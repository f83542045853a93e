"""Decoders made here with a learned table of positions: Llama's tensors and the table.

Only this program reads them; the other families are those that others read too.
"""
from atlas_jax.language.pretrained.names import Row, llama

ARCHITECTURE = "AtlasForCausalLM"
MODEL_TYPE = "atlas"
DEFAULTS = llama.DEFAULTS
# S, positions: as many rows as the longest text has tokens.
TABLE = (*llama.TABLE, Row("positions", "model.embed_positions.weight", "s d", "s d"))
biases = llama.biases
