"""Errors of the API, in the shape that its clients read: {"error": {"message", "type", "param", "code"}}."""
from collections.abc import Mapping
from typing import Any

RETRY_AFTER_S = 10  # Told where it is not known when another try may succeed.
# Status -> (type, code where none is given). Clients choose by status whether they try again.
KINDS: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    409: ("invalid_request_error", "conflict"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    422: ("invalid_request_error", "missing_required_parameter"),
    429: ("rate_limit_error", "queue_full"),
    431: ("invalid_request_error", "headers_too_large"),
    500: ("server_error", "internal_error"),
    501: ("server_error", "not_implemented"),
    503: ("server_error", "unavailable"),
    504: ("server_error", "timeout"),
}


class ApiError(Exception):
  """An answer that is an error.

  Attributes:
    status: of HTTP.
    message: what is wrong and what to do, for whoever wrote the request.
    param: the field of the request, such as "messages[0].content"; None: no single one.
    code: for programs.
    headers: of the answer.
  """

  def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
               headers: Mapping[str, str] | None = None):
    super().__init__(message)
    self.status = status
    self.message = message
    self.param = param
    self.code = code or KINDS[status][1]
    self.headers = dict(headers or {})

  def shape(self) -> dict[str, Any]:
    """Returns the body of the answer."""
    return shape(self.status, self.message, param=self.param, code=self.code)


def shape(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
  """Returns the body of an error's answer; a status without a kind of its own is that of its hundred."""
  kind, usual = KINDS[status] if status in KINDS else KINDS[500 if status >= 500 else 400]
  return {"error": {"message": message, "type": kind, "param": param, "code": code or usual}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
  """Returns the error of a request that cannot be: status 400."""
  return ApiError(400, message, param=param, code=code)


def closing(status: int, message: str) -> ApiError:
  """Returns an error behind which the connection ends, because what the client still sends is not read."""
  return ApiError(status, message, headers={"Connection": "close"})


def busy(message: str, retry_after_s: float = RETRY_AFTER_S, *, status: int = 503) -> ApiError:
  """Returns an error that may have passed after some seconds."""
  return ApiError(status, message, headers={"Retry-After": str(max(1, round(retry_after_s)))})
