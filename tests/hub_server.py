"""A stand-in for the Hugging Face Hub: a real HTTP server on this machine that keeps repositories in memory.

It answers what huggingface_hub asks to make a repository, send and fetch: whose token, create, model info,
preupload, LFS batch and storage, commit, tree, resolve. It fails where a test says so.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import types
import urllib.parse

from huggingface_hub import constants
from huggingface_hub.utils import _http

from atlas_jax.handover import hub

TOKEN = "hf_" + "stand1nToken" * 3
LFS_FILES = (".safetensors", ".png", ".npz")
LFS_FROM_BYTES = 10_000_000


class Repo:
  """A repository: its files now, and what was committed."""

  def __init__(self, private):
    self.private = private
    self.files: dict[str, bytes] = {}
    self.commits: list[dict] = []

  @property
  def sha(self):
    """Names the state; 40 hexadecimal digits, as of a commit."""
    return hashlib.sha1(repr((len(self.commits), sorted(self.files))).encode()).hexdigest()


class Hub:
  """What the server knows and was asked."""

  def __init__(self):
    self.users = {TOKEN: "alice"}
    self.repos: dict[str, Repo] = {}
    self.stored: dict[str, bytes] = {}  # of LFS, by SHA-256
    self.puts: list[str] = []  # of them, as they came
    self.requests: list[str] = []
    self.tokens: set[str] = set()
    self.failures: list[list] = []  # see `fail`
    self.url = ""

  def fail(self, pattern, status, *, times=1, after=0):
    """Lets requests fail: behind `after` that match, the next `times`; status 0 closes the connection."""
    self.failures.append([pattern, status, times, after])

  def failure(self, line):
    """Returns the status that a request is to fail with, None for one that is answered."""
    for failure in self.failures:
      pattern, status, times, after = failure
      if re.search(pattern, line) and times > 0:
        if after > 0:
          failure[3] -= 1
          continue
        failure[2] -= 1
        return status
    return None


@contextlib.contextmanager
def serving():
  """Yields a Hub behind a server that listens while the block runs."""
  found = Hub()
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": found}))
  server.daemon_threads = True
  found.url = f"http://127.0.0.1:{server.server_address[1]}"
  thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
  thread.start()
  try:
    yield found
  finally:
    server.shutdown()
    server.server_close()


def environment(found, cache):
  """Returns the variables by which a program of its own reaches the stand-in, with its token."""
  return {"HF_ENDPOINT": found.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
          "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def reach(monkeypatch, found, cache):
  """Lets this process reach the stand-in, with its token, and wait for nothing."""
  for name, value in environment(found, cache).items():
    monkeypatch.setenv(name, value)
  for name in ("HF_USERNAME", "HF_REPO"):
    monkeypatch.delenv(name, raising=False)
  # The library has read its environment when it was imported.
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
  monkeypatch.setattr(hub, "WAIT_S", 0.001)
  monkeypatch.setattr(_http, "time", types.SimpleNamespace(sleep=lambda seconds: None))


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one connection."""

  hub: Hub
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    """Says nothing."""

  def _act(self, method):
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    if self.headers.get("Transfer-Encoding") == "chunked":
      body = b"".join(iter(self._chunk, b""))
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    line = f"{method} {path}"
    self.hub.requests.append(line)
    token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
    self.hub.tokens.add(token)
    status = self.hub.failure(line)
    if status == 0:
      self.close_connection = True
      self.connection.close()
      return
    if status is not None:
      self._say(status, {"error": f"made to fail, with {status}"})
      return
    self._route(method, path, body, self.hub.users.get(token))

  def _route(self, method, path, body, user):
    for pattern, answer in ROUTES:
      if match := re.fullmatch(pattern, line := f"{method} {path}"):
        if method == "PUT" or line == "POST /api/validate-yaml":  # Signed addresses; open to all.
          answer(self, body, *match.groups())
        elif user is None:
          self._say(401, {"error": "Invalid credentials in Authorization header"})
        else:
          answer(self, body, user, *match.groups())
        return
    self._say(404, {"error": f"the stand-in does not know {method} {path}"})

  def _chunk(self):
    data = self.rfile.read(int(self.rfile.readline(), 16))
    self.rfile.readline()
    return data

  def _say(self, status, content, **headers):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
      self.send_header(name.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def _repo(self, user, name):
    found = self.hub.repos.get(name)
    if found is None or found.private and name.split("/")[0] != user:
      self._say(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
      return None
    return found

  def whoami(self, body, user):
    """Says whose token it is."""
    self._say(200, {"type": "user", "id": "1", "name": user, "orgs": [], "auth": {"type": "access_token"}})

  def create(self, body, user):
    """Makes a repository of the user's own."""
    asked = json.loads(body)
    owner = asked.get("organization") or user
    name = f"{owner}/{asked['name']}"
    if owner != user:
      self._say(403, {"error": "You don't have the rights to create a model under this namespace"})
    elif name in self.hub.repos:
      self._say(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
    else:
      self.hub.repos[name] = Repo(asked.get("visibility") == "private" or asked.get("private") is True)
      self._say(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})

  def validate(self, body):
    """Refuses a card without front matter."""
    front = json.loads(body)["content"].split("---\n")
    self._say(200 if len(front) > 2 else 400, {"errors": [], "warnings": []})

  def info(self, body, user, name):
    """Describes a repository."""
    if found := self._repo(user, name):
      files = [{"rfilename": path} for path in found.files]
      self._say(200, {"_id": "1", "id": name, "modelId": name, "private": found.private, "sha": found.sha,
                      "siblings": files, "tags": [], "downloads": 0, "likes": 0})

  def tree(self, body, user, name):
    """Lists the files of a repository."""
    if found := self._repo(user, name):
      self._say(200, [self._entry(path, data) for path, data in found.files.items()])

  @staticmethod
  def _entry(path, data):
    entry = {"type": "file", "path": path, "size": len(data), "oid": oid_of(path, data)}
    if is_lfs(path, len(data)):
      entry["lfs"] = {"oid": entry["oid"], "size": len(data), "pointerSize": 130}
    return entry

  def preupload(self, body, user, name):
    """Says how each file is to be sent, and what is there."""
    if found := self._repo(user, name):
      files = []
      for one in json.loads(body)["files"]:
        path = one["path"]
        there = oid_of(path, found.files[path]) if path in found.files else None
        files.append({"path": path, "uploadMode": "lfs" if is_lfs(path, one["size"]) else "regular",
                      "shouldIgnore": False, "oid": there})
      self._say(200, {"files": files})

  def batch(self, body, user, name):
    """Says where the large files that are not stored yet are to be sent."""
    if self._repo(user, name):
      objects = []
      for one in json.loads(body)["objects"]:
        where = {"upload": {"href": f"{self.hub.url}/lfs-store/{one['oid']}", "header": {}}}
        objects.append({**one, **({} if one["oid"] in self.hub.stored else {"actions": where})})
      self._say(200, {"transfer": "basic", "objects": objects})

  def store(self, body, oid):
    """Stores a large file whose checksum is right."""
    self.hub.puts.append(oid)
    if hashlib.sha256(body).hexdigest() == oid:
      self.hub.stored[oid] = body
    self._say(200 if oid in self.hub.stored else 400, {})

  def commit(self, body, user, name):
    """Changes files, all or none."""
    if not (found := self._repo(user, name)):
      return
    files = dict(found.files)
    lines = [json.loads(line) for line in body.splitlines() if line]
    for line in lines[1:]:
      value = line["value"]
      if line["key"] == "file":
        files[value["path"]] = base64.b64decode(value["content"])
      elif line["key"] == "lfsFile":
        files[value["path"]] = self.hub.stored[value["oid"]]
      else:
        del files[value["path"]]
    found.files = files
    found.commits.append(lines[0]["value"])
    self._say(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{found.sha}", "commitOid": found.sha,
                    "success": True})

  def resolve(self, body, user, name, path):
    """Gives a file."""
    if found := self._repo(user, name):
      if path not in found.files:
        self._say(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        return
      data = found.files[path]
      self._say(200, data, ETag=f'"{oid_of(path, data)}"', X_Repo_Commit=found.sha)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
  (r"GET /api/whoami-v2", Handler.whoami),
  (r"POST /api/repos/create", Handler.create),
  (r"POST /api/validate-yaml", Handler.validate),
  (rf"GET /api/models/{REPO}(?:/revision/[\w.-]+)?", Handler.info),
  (rf"GET /api/models/{REPO}/tree/\w+", Handler.tree),
  (rf"POST /api/models/{REPO}/preupload/main", Handler.preupload),
  (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.batch),
  (r"PUT /lfs-store/(\w+)", Handler.store),
  (rf"POST /api/models/{REPO}/commit/main", Handler.commit),
  (rf"(?:GET|HEAD) /{REPO}/resolve/\w+/(.+)", Handler.resolve),
)
for _method in ("GET", "HEAD", "POST", "PUT"):
  setattr(Handler, f"do_{_method}", lambda self, method=_method: self._act(method))


def is_lfs(path, size):
  """Returns whether a file is one of LFS, as the Hub decides by name and size."""
  return path.endswith(LFS_FILES) or size > LFS_FROM_BYTES


def oid_of(path, data):
  """Returns the name of a file's contents: SHA-256 in LFS, else that of git."""
  if is_lfs(path, len(data)):
    return hashlib.sha256(data).hexdigest()
  return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
