"""Servers on this machine that answer as Telegram, a webhook and an SMTP server do, and note what comes."""

import contextlib
import http.server
import json
import socketserver
import threading
import time

TOKEN = "123456789:AAE-not_a_real_token_at_all_0123456789"
CHAT = "-1009876543210"


class Served:
  """A server in a thread while a block lasts; `server` is made by who inherits."""

  def __enter__(self):
    threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
    return self

  def __exit__(self, *error):
    self.server.shutdown()
    self.server.server_close()


class Receiver(Served):
  """An HTTP server; `plan` holds answers for the next requests, and behind them all is well.

  An answer is (status, JSON), "sleep" (for longer than a client waits), or "parse": text that the client
  formats is refused, as Telegram refuses marks that it cannot read.
  """

  def __init__(self, plan=()):
    self.plan, self.got, self.tries = list(plan), [], 0
    receiver = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        receiver._answer(self)

      def log_message(self, *args):
        """Says nothing."""

    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

  def _answer(self, request):
    body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
    self.tries += 1
    answer = self.plan.pop(0) if self.plan else (200, {"ok": True, "result": {}})
    if answer == "sleep":
      time.sleep(1.5)
      return
    if answer == "parse":
      if "parse_mode" in body:
        said = "Bad Request: can't parse entities: Unsupported start tag"
        answer = (400, {"ok": False, "error_code": 400, "description": said})
      else:
        answer = (200, {"ok": True})
    if answer[0] == 200:
      self.got.append({"path": request.path, **body})
    content = json.dumps(answer[1]).encode()
    with contextlib.suppress(OSError):  # A client that gave up.
      request.send_response(answer[0])
      request.send_header("Content-Length", str(len(content)))
      request.end_headers()
      request.wfile.write(content)

  @property
  def texts(self):
    """The texts that were taken."""
    return [one["text"] for one in self.got]

  @property
  def environment(self):
    """The variables with which messages come here."""
    return {"TELEGRAM_BOT_TOKEN": TOKEN, "TELEGRAM_CHAT_ID": CHAT, "TELEGRAM_API_URL": self.url,
            "ATLAS_WEBHOOK_URL": f"{self.url}/services/T000/B000/verysecretpart"}


class MailServer(Served):
  """An SMTP server without encryption; `answers` are codes for the next mails, then all is well."""

  def __init__(self, answers=()):
    self.mails, self.answers = [], list(answers)
    mail_server = self

    class Handler(socketserver.StreamRequestHandler):
      def handle(self):
        mail_server._talk(self)

    self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    self.server.daemon_threads = True
    self.port = self.server.server_address[1]

  def _talk(self, handler):
    say = lambda line: handler.wfile.write(f"{line}\r\n".encode())
    say("220 here")
    while line := handler.rfile.readline().decode().strip():
      word = line.split()[0].upper()
      if word == "DATA":
        say("354 go on")
        lines = []
        while (text := handler.rfile.readline().decode().rstrip("\r\n")) != ".":
          lines.append(text)
        code = self.answers.pop(0) if self.answers else 250
        if code == 250:
          self.mails.append("\n".join(lines))
        say(f"{code} done")
      else:
        say("221 bye" if word == "QUIT" else "250 well")

  @property
  def environment(self):
    """The variables with which mails come here."""
    return {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(self.port), "SMTP_FROM": "run@example.org",
            "ALERT_EMAIL_TO": "a@example.org, b@example.org"}
