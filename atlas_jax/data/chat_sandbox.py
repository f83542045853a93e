"""The sandbox that chat templates run in, with the blocks and filters that transformers gives them."""
import functools
import importlib
import json

OPEN, CLOSE = "\ufdd0", "\ufdd1"  # Code points that stand for no character in any text.


@functools.cache
def environment():
  """Gives the sandbox that chat templates run in, and the type of its errors.

  The date of today is not among what a template may use: the same data give the same ids on every day.
  """
  try:
    jinja, sandbox = importlib.import_module("jinja2"), importlib.import_module("jinja2.sandbox")
    extensions, nodes = importlib.import_module("jinja2.ext"), importlib.import_module("jinja2.nodes")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("chat templates need the package jinja2: pip install 'atlas_jax[hf]', or give "
                              "prompts as texts and set config.data.chat_template=None") from error

  class Generation(extensions.Extension):
    """Puts marks around what stands in a {% generation %} block."""

    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller):
      return OPEN + caller() + CLOSE

  def refuse(message):
    raise jinja.TemplateError(message)

  def to_json(value, ensure_ascii=False, **options):
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)

  environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[Generation, extensions.loopcontrols])
  environment.globals["raise_exception"] = refuse
  environment.filters["tojson"] = to_json
  return environment, jinja.TemplateError
