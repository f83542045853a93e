"""Sinks of messages: the log, Telegram's Bot API, a webhook that takes what Slack takes, e-mail by SMTP.

Addresses and secrets come from the environment alone, and stand in no error and no line of the log.
"""
import email.message
import html
import json
import smtplib
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from absl import logging

from atlas_jax.defaults.bounds import names_of
from atlas_jax.fields import nearest
from atlas_jax.monitor.alerts.message import Message, redacted

TELEGRAM = "https://api.telegram.org"
COLOURS = {"critical": "#d62728", "warning": "#ff9f1c", "info": "#1f77b4"}
# Variables of each place: those that must be set, and those that may be.
VARIABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "log": ((), ()),
    "telegram": (("TELEGRAM_BOT_TOKEN", "TELEGRAM_CHAT_ID"), ("TELEGRAM_API_URL",)),
    "webhook": (("ATLAS_WEBHOOK_URL",), ()),
    "email": (("SMTP_HOST", "SMTP_FROM", "ALERT_EMAIL_TO"), ("SMTP_PORT", "SMTP_USER", "SMTP_PASSWORD")),
}
SECRET = ("TELEGRAM_BOT_TOKEN", "TELEGRAM_CHAT_ID", "ATLAS_WEBHOOK_URL", "SMTP_USER", "SMTP_PASSWORD")
LOCAL = ("localhost", "127.0.0.1", "::1")


class SendError(Exception):
  """A message was not taken; the text holds no secret."""

  def __init__(self, text: str, *, again: bool, after_s: float | None = None):
    """Takes why, whether another try may do, and how long the receiver asks to wait before it."""
    super().__init__(text)
    self.again = again
    self.after_s = after_s


class Sink(Protocol):
  """A place that messages are sent to."""

  name: str
  secrets: Sequence[str]

  def send(self, message: Message) -> None:
    """Sends a message, once; raises SendError if it was not taken."""

  def preview(self, message: Message) -> str:
    """Returns what would be sent, without secrets."""


def make(names: str, environment: Mapping[str, str], *, timeout_s: float,
         field: str = "config.alerts.sinks") -> list[Sink]:
  """Opens the places of a text with commas between them; nothing is sent yet.

  Args:
    names: such as "log,telegram".
    environment: variables by name, as `os.environ`.
    timeout_s: of one try.
    field: that names them, for errors.

  Raises:
    ValueError: for an unknown one, and for one whose variables are missing: names them, in one line.
  """
  found: list[Sink] = []
  for name in names_of(names):
    if name not in VARIABLES:
      raise ValueError(f"{field}={names!r}: there is no {name!r}; {nearest(name, VARIABLES)}")
    needed, others = VARIABLES[name]
    missing = [variable for variable in needed if not environment.get(variable, "").strip()]
    if missing:
      raise ValueError(f"{field}={names!r} asks for {name}, and the environment lacks "
                       f"{' and '.join(missing)}; export {'it' if len(missing) == 1 else 'them'}, or leave "
                       f"{name} out")
    given = {variable: environment[variable].strip() for variable in (*needed, *others)
             if environment.get(variable, "").strip()}
    for variable, value in given.items():
      if value.startswith(("${", "$(", "{{")):
        raise ValueError(f"{field}={names!r}: the variable {variable} holds a placeholder such as "
                         f"${{{variable}}} that nothing has expanded; export its value")
    found.append(MAKERS[name](given, timeout_s))
  return found


class LogSink:
  """The log of the program."""

  name = "log"
  secrets: Sequence[str] = ()

  def send(self, message: Message) -> None:
    """Logs a line."""
    level = logging.INFO if message.severity == "info" or message.state == "recovered" else logging.WARNING
    logging.log(level, "%s", self.preview(message))

  def preview(self, message: Message) -> str:
    """Returns the line."""
    return f"alert: {message.title}: {message.body}"


class TelegramSink:
  """A chat, by a bot."""

  name = "telegram"

  def __init__(self, given: Mapping[str, str], timeout_s: float):
    """Takes variables of the environment by name."""
    self.secrets = [given["TELEGRAM_BOT_TOKEN"], given["TELEGRAM_CHAT_ID"]]
    base = given.get("TELEGRAM_API_URL", TELEGRAM).rstrip("/")
    _check_url("TELEGRAM_API_URL", base)
    self._url = f"{base}/bot{given['TELEGRAM_BOT_TOKEN']}/sendMessage"
    self._chat = given["TELEGRAM_CHAT_ID"]
    self._timeout_s = timeout_s

  def send(self, message: Message) -> None:
    """Sends it with a bold title, and as it stands where the Bot API cannot read that."""
    try:
      self._post({"text": self._formatted(message), "parse_mode": "HTML"})
    except _RefusedError as error:
      if error.status != 400 or "parse" not in error.said:
        raise
      self._post({"text": message.plain})

  def preview(self, message: Message) -> str:
    """Returns the formatted text."""
    return self._formatted(message)

  def _formatted(self, message: Message) -> str:
    return f"{message.mark} <b>{html.escape(message.title)}</b>\n{html.escape(message.body)}"

  def _post(self, fields: dict[str, Any]) -> None:
    _post(self._url, {"chat_id": self._chat, "disable_web_page_preview": True, **fields}, self.name,
          self.secrets, self._timeout_s)


class WebhookSink:
  """An address that takes what Slack's incoming webhooks take."""

  name = "webhook"

  def __init__(self, given: Mapping[str, str], timeout_s: float):
    """Takes variables of the environment by name."""
    self._url = given["ATLAS_WEBHOOK_URL"]
    _check_url("ATLAS_WEBHOOK_URL", self._url)
    # An error may hold a part of the address: its path is what is secret.
    self.secrets = [self._url, urllib.parse.urlsplit(self._url).path.strip("/")]
    self._timeout_s = timeout_s

  def send(self, message: Message) -> None:
    """Sends title, text, and the fields of the event."""
    _post(self._url, self._payload(message), self.name, self.secrets, self._timeout_s)

  def preview(self, message: Message) -> str:
    """Returns the JSON that is sent."""
    return json.dumps(self._payload(message), ensure_ascii=False)

  def _payload(self, message: Message) -> dict[str, Any]:
    shown = {name: getattr(message, name) for name in ("run", "rule", "severity", "state", "step", "metric",
                                                       "value")}
    # Slack reads &, < and > as its own marks.
    text = message.plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    fields = [{"title": name, "value": str(value), "short": True} for name, value in shown.items()
              if value not in (None, "")]
    return {"text": text, "attachments": [{"color": COLOURS[message.severity], "fields": fields}]}


class EmailSink:
  """Addresses, by an SMTP server."""

  name = "email"

  def __init__(self, given: Mapping[str, str], timeout_s: float):
    """Takes variables of the environment by name."""
    self._host = given["SMTP_HOST"]
    port = given.get("SMTP_PORT", "587")
    if not port.isdecimal() or not 0 < int(port) < 65_536:
      raise ValueError(f"the variable SMTP_PORT={port!r} must be a whole number, such as 587 or 465")
    self._port = int(port)
    self._user = given.get("SMTP_USER")
    self._password = given.get("SMTP_PASSWORD")
    if (self._user is None) != (self._password is None):
      raise ValueError("the variables SMTP_USER and SMTP_PASSWORD belong together; export both, or neither")
    self._from = given["SMTP_FROM"]
    self._to = names_of(given["ALERT_EMAIL_TO"])
    self.secrets = [one for one in (self._user, self._password) if one]
    self._timeout_s = timeout_s

  def send(self, message: Message) -> None:
    """Sends a mail; a password goes over an encrypted connection alone, or to this very machine."""
    try:
      with self._connected() as server:
        server.send_message(self._mail(message))
    except smtplib.SMTPResponseException as error:
      # By the standard 4xx may pass, and 5xx stays.
      raise SendError(redacted(f"email: the server answered {error.smtp_code}", self.secrets),
                      again=error.smtp_code < 500) from None
    except smtplib.SMTPRecipientsRefused as error:
      codes = [code for code, _ in error.recipients.values()]
      raise SendError(f"email: the server refused the addresses of ALERT_EMAIL_TO ({codes})",
                      again=all(code < 500 for code in codes)) from None
    except (OSError, smtplib.SMTPException) as error:
      raise SendError(redacted(f"email: {type(error).__name__}: {error}", self.secrets), again=True) from None

  def preview(self, message: Message) -> str:
    """Returns the mail."""
    return self._mail(message).as_string()

  def _connected(self) -> smtplib.SMTP:
    context = ssl.create_default_context()
    if self._port == 465:
      server: smtplib.SMTP = smtplib.SMTP_SSL(self._host, self._port, timeout=self._timeout_s,
                                              context=context)
    else:
      server = smtplib.SMTP(self._host, self._port, timeout=self._timeout_s)
      server.ehlo()
      if server.has_extn("starttls"):
        server.starttls(context=context)
        server.ehlo()
      elif self._password and self._host not in LOCAL:
        server.close()
        raise SendError("email: the server offers no encryption (STARTTLS), and the password is not sent "
                        "without; use port 465", again=False)
    if self._user and self._password:
      server.login(self._user, self._password)
    return server

  def _mail(self, message: Message) -> email.message.EmailMessage:
    mail = email.message.EmailMessage()
    mail["Subject"] = " ".join(f"[atlas_jax] {message.title}".split())
    mail["From"] = self._from
    mail["To"] = ", ".join(self._to)
    mail.set_content(message.plain)
    return mail


MAKERS: dict[str, Any] = {"log": lambda given, timeout_s: LogSink(), "telegram": TelegramSink,
                          "webhook": WebhookSink, "email": EmailSink}


class _RefusedError(SendError):
  """A server answered, and not with success."""

  def __init__(self, text: str, *, status: int, said: str, again: bool, after_s: float | None):
    super().__init__(text, again=again, after_s=after_s)
    self.status = status
    self.said = said


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  """Follows nothing: a message with an address that is secret must not go elsewhere."""

  def redirect_request(self, *args, **kwargs):
    """Refuses."""
    return None


def _check_url(variable: str, url: str) -> None:
  parts = urllib.parse.urlsplit(url)
  if parts.scheme not in ("http", "https") or not parts.hostname:
    raise ValueError(f"the variable {variable} must hold an address that begins with https://")


def _post(url: str, payload: dict[str, Any], name: str, secrets: Sequence[str], timeout_s: float) -> None:
  """Posts JSON; raises SendError with what the server or the network said."""
  request = urllib.request.Request(url, json.dumps(payload).encode(),
                                   {"Content-Type": "application/json", "User-Agent": "atlas_jax"})
  try:
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s) as answer:
      answer.read(2**16)
  except urllib.error.HTTPError as error:
    raise _refusal(error, name, secrets) from None
  except (OSError, ValueError) as error:  # ValueError: of an answer that is no HTTP.
    reason = getattr(error, "reason", error)
    raise SendError(redacted(f"{name}: {type(reason).__name__}: {reason}", secrets), again=True) from None


def _refusal(error: urllib.error.HTTPError, name: str, secrets: Sequence[str]) -> _RefusedError:
  try:
    said = error.read(2**14).decode("utf-8", "replace")
  except OSError:
    said = ""  # The status stands, whatever broke behind it.
  after_s = None
  description = said
  try:
    answer = json.loads(said)
    if isinstance(answer, dict):
      description = str(answer.get("description", said))
      after_s = _seconds((answer.get("parameters") or {}).get("retry_after"))
  except (ValueError, AttributeError):
    pass  # An answer that is no JSON has its words alone.
  after_s = after_s if after_s is not None else _seconds(error.headers.get("Retry-After"))
  text = redacted(f"{name}: HTTP {error.code}: {description[:200]}", secrets)
  return _RefusedError(text, status=error.code, said=description.lower(),
                       again=error.code in (408, 425, 429) or error.code >= 500, after_s=after_s)


def _seconds(value: Any) -> float | None:
  try:
    return max(0.0, float(value))
  except (TypeError, ValueError):
    return None
