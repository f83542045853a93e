"""Sending to and fetching from the Hugging Face Hub, with retries, and errors that say what to do.

A commit holds all files or none. What the Hub has already is not sent again, in this call or a later one: it
is known there by its SHA-256 (the library asks for each large file before it sends it), so that the same call
goes on with an upload that broke off.

Source: the library huggingface_hub, of which only functions that its versions 1 and 2 share are called.
"""
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from absl import logging

from atlas_jax.handover import place

WAIT_S = 2.0  # Before the second attempt, doubled from then on,
MOST_WAIT_S = 60.0  # up to this.
PREFIX = "hf:"
# What is fetched: nothing that executes when it is read.
TAKEN = ("*.json", "*.jsonl", "*.safetensors", "*.npz", "*.jinja", "*.model", "*.txt", "*.md", "*.png")
_REPO = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")
Value = TypeVar("Value")


class HubError(OSError):
  """The Hub refused, failed, or could not be reached; the message says what to do."""


class SentCommit(NamedTuple):
  """An upload that has arrived."""

  repo: str  # OWNER/NAME
  commit: str
  url: str
  private: bool


def _library():
  import huggingface_hub  # Of an extra, and slow: only what is uploaded or fetched needs it.
  from huggingface_hub.utils import disable_progress_bars
  if not sys.stderr.isatty():
    disable_progress_bars()
  return huggingface_hub


def _api(token: str | None):
  # The endpoint is read now, not when the library was imported.
  return _library().HfApi(token=token or None, endpoint=os.environ.get("HF_ENDPOINT") or None,
                          library_name="atlas_jax")


def named(repo: str, *, token: str, attempts: int) -> str:
  """Returns OWNER/NAME of a repository that may be given by NAME alone: the owner is whose token it is.

  Raises:
    HubError: if the Hub does not say.
  """
  if "/" in repo:
    return repo
  owner = _tried("asking whose token it is, for", _api(token).whoami, repo=repo, attempts=attempts)["name"]
  return f"{owner}/{repo}"


def send(folder, repo: str, *, token: str, private: bool, attempts: int, message: str,
         replaced: str | None = None) -> SentCommit:
  """Sends all files of a folder in one commit; the repository is made if it is not there.

  Args:
    folder: whose files, also in its folders, become those of the repository.
    repo: OWNER/NAME.
    token: with the right to write.
    private: whether a repository that is made is private; one that is public is then refused.
    attempts: of each request that the Hub fails or does not answer.
    message: of the commit.
    replaced: a folder of the repository, whose other files are removed; None: no file is.

  Raises:
    HubError: says what to do; the same call goes on where this one ended.
  """
  folder = pathlib.Path(folder)
  api = _api(token)

  def tried(what: str, call: Callable[[], Value]) -> Value:
    return _tried(what, call, repo=repo, attempts=attempts)

  tried("making the repository", lambda: api.create_repo(repo, private=private, exist_ok=True))
  info = tried("reading the repository", lambda: api.model_info(repo))
  if private and not info.private:
    raise HubError(f"the repository {repo} on the Hugging Face Hub is public, and "
                   "config.upload.private=True: nothing was sent; set --config.upload.private=False, make it "
                   "private, or name another one with --config.upload.repo")
  names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
  old = [one.rfilename for one in info.siblings or []
         if replaced is not None and one.rfilename.startswith(f"{replaced}/") and one.rfilename not in names]
  hub = _library()

  def commit():
    # Made anew for every attempt: what a commit has begun with cannot be used again.
    operations: list[Any] = [hub.CommitOperationAdd(name, str(folder / name)) for name in names]
    operations += [hub.CommitOperationDelete(name) for name in old]
    return api.create_commit(repo, operations, commit_message=message)

  made = tried("sending", commit)
  return SentCommit(repo, made.oid, f"{api.endpoint}/{repo}", bool(info.private))


def fetch(source: str) -> pathlib.Path:
  """Returns the folder of a run that was handed over.

  Args:
    source: a folder; or OWNER/NAME on the Hub, also OWNER/NAME@REVISION, which is fetched to the user's cache
      if need be. "hf:" may stand before it.

  Raises:
    ValueError: if it is neither.
    HubError: if the Hub does not give it.
    ModuleNotFoundError: if the package that fetches is missing.
  """
  folder = pathlib.Path(source).expanduser()
  if folder.is_dir() and not source.startswith(PREFIX):
    return folder
  name = source.removeprefix(PREFIX)
  if not _REPO.fullmatch(name) or ".." in name:
    raise ValueError(f"--from={source} is neither a folder nor OWNER/NAME of the Hugging Face Hub")
  try:
    hub = _library()
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"--from={source} is no folder here, and to fetch it from the Hugging Face Hub "
                              f"needs the package huggingface_hub: {place.EXTRA}") from error
  repo, _, revision = name.partition("@")
  token = os.environ.get(place.TOKEN, "").strip() or None

  def get() -> str:
    return hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(TAKEN), token=token,
                                 endpoint=os.environ.get("HF_ENDPOINT") or None)

  return pathlib.Path(_tried("fetching", get, repo=repo, attempts=3))


def name_of(source: str) -> str:
  """Returns the name of a model that `fetch` gives: NAME of OWNER/NAME, or that of the folder."""
  folder = pathlib.Path(source).expanduser()
  if folder.is_dir() and not source.startswith(PREFIX):
    return folder.resolve().name
  return source.removeprefix(PREFIX).partition("@")[0].rpartition("/")[2]


def _tried(what: str, call: Callable[[], Value], *, repo: str, attempts: int) -> Value:
  """Returns what a call gives, after several attempts where the Hub fails or cannot be reached."""
  for attempt in range(1, attempts + 1):
    try:
      return call()
    except Exception as error:  # Errors of the library, of HTTP below it, and of what the Hub answered.
      status = _status(error)
      passing = status in (408, 429) or status >= 500 if status else _is_network(error)
      if not passing or attempt == attempts:
        raise HubError(place.redacted(_line(what, repo, error, status))) from error
      wait_s = min(MOST_WAIT_S, WAIT_S * 2 ** (attempt - 1))
      logging.warning("%s %s: %s; tried again in %.0f s", what, place.redacted(repo),
                      f"the Hub answers {status}" if status else type(error).__name__, wait_s)
      time.sleep(wait_s)
  raise AssertionError("config.upload.attempts is at least 1")


def _line(what: str, repo: str, error: BaseException, status: int | None) -> str:
  hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
  if status == 401:
    # The Hub also answers so about a repository that is not there, so that nobody learns which names exist.
    return (f"{what} {repo}: the Hub does not accept {place.TOKEN} (401), or there is no such repository; "
            f"check the name, and make a token at {hub}/settings/tokens")
  if status == 403:
    return (f"{what} {repo}: {place.TOKEN} has no right to do this (403); it needs the right to write there, "
            f"and {place.OWNER} or config.upload.repo must name an owner it belongs to")
  if status == 404:
    return (f"{what} {repo}: there is no such repository or revision at {hub} (404), or it is private and "
            "not yours")
  words = " ".join(str(error).split())[:200]
  if status is None and _is_offline(error):
    return (f"{what} {repo}: HF_HUB_OFFLINE is set, or the repository is neither in the cache nor to be "
            f"reached at {hub} ({words})")
  why = f"the Hub answers {status}" if status else f"{type(error).__name__}: {words}"
  return (f"{what} {repo} at {hub} failed: {why}; what has arrived is kept, the same command goes on from "
          "there")


def _chain(error: BaseException | None):
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
  """Returns the HTTP status behind an error, None if the Hub gave no answer."""
  for one in _chain(error):
    status = getattr(getattr(one, "response", None), "status_code", None)
    if isinstance(status, int) and status >= 400:
      return status
  return None


def _is_network(error: BaseException) -> bool:
  """Returns whether an error is one of reaching the Hub, by the library that raised it."""
  return any(type(one).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "hf_xet")
             or isinstance(one, ConnectionError | TimeoutError) for one in _chain(error))


def _is_offline(error: BaseException) -> bool:
  names = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "IncompleteSnapshotError")
  return any(type(one).__name__ in names for one in _chain(error))
