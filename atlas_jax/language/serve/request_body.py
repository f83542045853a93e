"""Bodies of requests: JSON objects of bounded size, which come within bounded time."""
import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from atlas_jax.files import json_text
from atlas_jax.language.serve.api_error import ApiError, closing, invalid


async def read(request: Request, *, most_bytes: int, timeout_s: float) -> dict[str, Any]:
  """Reads the JSON object that a request brings.

  Args:
    request: whose body nobody has read.
    most_bytes: of the body.
    timeout_s: until all of it must be here, so that slow clients hold no connection.

  Raises:
    ApiError: 400 for what is no JSON object in UTF-8, 408, 413 and 415.
    ClientDisconnect: if the client goes away.
  """
  _check_headers(request, most_bytes)
  data = bytearray()
  try:
    async with asyncio.timeout(timeout_s):
      async for part in request.stream():
        data += part
        if len(data) > most_bytes:
          raise _too_large(most_bytes)
  except TimeoutError:
    raise closing(408, f"the body of the request did not come within {timeout_s:g} s (config.serve."
                  "body_timeout_s)") from None
  return parse(bytes(data))


def parse(data: bytes) -> dict[str, Any]:
  """Returns the object that a body holds.

  Raises:
    ApiError: if it is not UTF-8, not JSON, or no object; nothing of it is lost in silence, see `json_text`.
  """
  try:
    found = json_text.parse(data.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise invalid(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
  except json.JSONDecodeError as error:
    raise invalid(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
  except ValueError as error:
    raise invalid(f"the body {error}") from None
  if not isinstance(found, dict):
    raise invalid("the body must be a JSON object")
  return found


def _check_headers(request: Request, most_bytes: int) -> None:
  kind, _, rest = request.headers.get("content-type", "").partition(";")
  # A browser asks before it sends this type to another site, and here it is told no.
  if kind.strip().lower() != "application/json":
    raise closing(415, "the body must be JSON: send the header 'Content-Type: application/json'")
  charset = rest.lower().replace(" ", "").replace('"', "").partition("charset=")[2]
  if charset not in ("", "utf-8", "utf8"):
    raise closing(415, "the body must be UTF-8, the only charset of JSON")
  if request.headers.get("content-encoding", "identity") != "identity":
    raise closing(415, "the body is compressed; send it as it is, without 'Content-Encoding'")
  size = request.headers.get("content-length", "")
  if size.isdecimal() and (len(size) > 18 or int(size) > most_bytes):
    raise _too_large(most_bytes)


def _too_large(most_bytes: int) -> ApiError:
  return closing(413, f"the body has more than {most_bytes} bytes (config.serve.body_mib)")


__all__ = ["ClientDisconnect", "parse", "read"]
