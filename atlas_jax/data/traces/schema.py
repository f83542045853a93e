"""The JSON Schema of a trace, written from the tables of `record_fields`.

  python -m atlas_jax.data.traces.schema           writes atlas_jax/data/traces/trace.schema.json
  python -m atlas_jax.data.traces.schema FILE      writes FILE
"""
import pathlib
import sys
from typing import Any

from atlas_jax.data.traces import record_fields
from atlas_jax.files import closed_pipe, write

FILE = pathlib.Path(__file__).with_name("trace.schema.json")
ID = "atlas_jax/data/traces/trace.schema.json"
METADATA_ID = ["integer", "string", "null"]


def schema() -> dict[str, Any]:
  """Returns the schema as JSON."""
  return {
      "$schema": "https://json-schema.org/draft/2020-12/schema",
      "$id": ID,
      "title": "Trace",
      "description": "One session of agents. Fields that are not named are kept as they are.",
      **_object("trace"),
      "$defs": {"step": _object("step"), "attempt": _object("attempt")},
  }


def _object(table: str) -> dict[str, Any]:
  required = record_fields.REQUIRED[table]
  properties = {name: _property(table, name, field) for name, field in record_fields.TABLES[table].items()}
  return {"type": "object", **({"required": list(required)} if required else {}), "properties": properties}


def _property(table: str, name: str, field: record_fields.Field) -> dict[str, Any]:
  types = field.types
  found: dict[str, Any] = {"description": field.meaning}
  if types:
    found["type"] = types[0] if len(types) == 1 else list(types)
  inner = record_fields.inner_table(table, name)
  if inner is not None:
    found["items"] = {"$ref": f"#/$defs/{inner}"}
  if name == "session_metadata":
    texts = {each: {"type": ["string", "null"]} for each in record_fields.METADATA_TEXTS}
    found["properties"] = {"session_id": {"type": METADATA_ID}, **texts}
  return found


@closed_pipe.quiet
def main(arguments: list[str]) -> None:
  """Writes the schema to the file that is named, else to its place in the package."""
  write.json(arguments[0] if arguments else FILE, schema())


if __name__ == "__main__":
  main(sys.argv[1:])
