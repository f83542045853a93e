"""`atlas proxy`: an endpoint that records any agent pointed at it."""
import argparse
import asyncio
import os
import sys

from atlas_jax.runtime import proxy
from atlas_jax.runtime.cli_codes import OK
from atlas_jax.runtime.event_server import serve
from atlas_jax.runtime.proxy_sessions import ProxySessions
from atlas_jax.runtime.redaction import Redactor
from atlas_jax.runtime.settings import RuntimeSettings
from atlas_jax.runtime.store import RuntimeStore


def command(asked: argparse.Namespace, settings: RuntimeSettings) -> int:
  """Serves until it is interrupted."""
  del asked
  asyncio.run(served(settings))
  return OK


async def served(settings: RuntimeSettings) -> None:
  """Opens the store and serves the proxy until it is cancelled."""
  given = settings.proxy
  known = [one for one in (given.token, given.upstream_key) if one]
  redactor = Redactor(settings.redaction, known=known)
  store = RuntimeStore(settings.store)
  await store.open(create=True)
  try:
    app = proxy.application(proxy.Proxy(given, ProxySessions(store, redactor=redactor, tenant=given.tenant,
                                                             idle_s=given.idle_s)), given)
    print(f"atlas: http://{given.host}:{given.port}/v1 goes to {given.upstream}, and is recorded in "
          f"{settings.store.url.partition('://')[0]}; process {os.getpid()}", file=sys.stderr, flush=True)
    await serve(app, given.host, given.port)
  finally:
    await store.close()
