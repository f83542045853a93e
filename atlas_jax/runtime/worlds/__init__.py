"""Worlds in which the runtime shows what it does, without keys, network or other programs."""
