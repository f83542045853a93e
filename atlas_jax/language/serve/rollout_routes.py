"""Routes of a rollout server, by the names and bodies that clients of Atlas Core ask one with.

  GET /health/, GET /get_tensor_parallel_size/, POST /generate/, POST /reset_prefix_cache/

A reply of /generate/ also has "weight_versions", of the weights that wrote each completion. The routes that
give weights parameter by parameter over NCCL are refused by name: here /v1/weights takes them whole, and a
version with them.

Source: `vllm_server.py` of Atlas Core at commit 1cf1883.
"""
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atlas_jax.language.decoding.requests import EndEvent, TokenEvent
from atlas_jax.language.serve.answering import Service
from atlas_jax.language.serve.api_call import ApiCall, ReadContext
from atlas_jax.language.serve.api_error import ApiError, invalid
from atlas_jax.language.serve.generation import ServedCompletion, ServedGeneration
from atlas_jax.language.serve.generation_fields import GenerationFields
from atlas_jax.language.serve.json_fields import JsonFields

MAX_TOKENS = 16  # Where a request says nothing.
CLOSED = ("/init_communicator/", "/update_named_param/", "/close_communicator/")


class MissingField(ApiError):
  """An answer to a body without a field, in the shape that clients of these routes read."""

  def __init__(self, field: str, body: dict[str, Any]):
    """Takes the field's name and what the body has."""
    super().__init__(422, f"{field} is missing", param=field, code="missing_required_parameter")
    self._body = body

  def shape(self) -> dict[str, Any]:
    """Returns the body of the answer."""
    return {"detail": [{"type": "missing", "loc": ["body", self.param], "msg": "Field required",
                        "input": self._body}]}


def read(fields: JsonFields, context: ReadContext) -> ApiCall:
  """Reads a request of /generate/.

  Raises:
    ApiError: naming the field that cannot be.
  """
  if not fields.has("prompts"):
    raise MissingField("prompts", fields.rest())
  prompts = fields.need("prompts", list)
  if not prompts or not all(isinstance(one, str) for one in prompts):
    raise invalid("prompts must be a list of texts that is not empty", "prompts")
  regex = fields.take("guided_decoding_regex", str)
  max_tokens = fields.take("max_tokens", int, MAX_TOKENS, least=1)
  fields.refuse("stream", "these replies come whole; /v1/completions streams", allowed=(False,))
  generation = GenerationFields.read(fields, max_tokens=max_tokens, top_logprobs=0)
  fields.done()
  allowed = None if regex is None else context.grammar_tokens().of_regex(regex, "guided_decoding_regex")
  ids = [context.text.encode(one, opens_document=True) for one in prompts]
  requests = generation.requests(ids, model=context.model, tenant=context.tenant, limits=context.limits,
                                 end_tokens=context.text.end_tokens, allowed=allowed)
  return ApiCall(requests, IdsReply(), False)


class IdsReply:
  """Tells the ids of completions alone; see `Reply`. It has no events: these replies are never streamed."""

  def whole(self, generation: ServedGeneration) -> dict[str, Any]:
    """Returns the ids of each completion, those of a prompt together, and who wrote them."""
    done = generation.completions
    return {"completion_ids": [[event.token for event in one.tokens] for one in done],
            "weight_versions": [one.end.version for one in done if one.end is not None]}

  def opening(self) -> list[dict]:
    """Returns nothing."""
    return []

  def event(self, completion: ServedCompletion, event: TokenEvent | EndEvent) -> list[dict]:
    """Returns nothing."""
    del completion, event
    return []

  def closing(self, generation: ServedGeneration) -> list[dict]:
    """Returns nothing."""
    del generation
    return []

  def failure(self, error: ApiError) -> list[dict]:
    """Returns the error."""
    return [error.shape()]

  def message(self, completion: ServedCompletion) -> dict:
    """Returns nothing: a conversation goes on by /v1/."""
    del completion
    return {}


def add(app: Any, service: Service) -> None:
  """Adds the routes to an application."""
  @app.get("/get_tensor_parallel_size/")
  async def tensor_parallel_size(request: Request) -> Response:
    service.access.tenant(request.headers)
    return JSONResponse({"tensor_parallel_size": service.tensor_parallel_size})

  @app.post("/generate/")
  async def generate(request: Request) -> Response:
    return await service.answer(request, read)

  @app.post("/reset_prefix_cache/")
  async def reset(request: Request) -> Response:
    service.access.tenant(request.headers)
    return JSONResponse({"message": "nothing to reset: states of prefixes are kept by the weights that made "
                                    "them, and new weights use none of those before"})

  async def refuse(request: Request) -> Response:
    service.access.tenant(request.headers)
    raise ApiError(501, f"{request.url.path}: weights come whole, as a file in config.serve.weights_folder "
                        "that "
                   "POST /v1/weights names with its version", code="not_implemented")

  for path in CLOSED:
    app.add_api_route(path, refuse, methods=["POST"])
