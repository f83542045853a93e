"""The page in a real browser: a conversation, the strip of the memory, and a model that writes HTML."""
import shutil

import pytest

from tests.language.serve import scripted
from tests.language.serve.test_http_server import serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
HOSTILE = '<img src=x onerror="document.title=1"> and <b>bold</b>'


@pytest.fixture(scope="module")
def browser():
  """A headless browser."""
  api = pytest.importorskip("playwright.sync_api")
  if CHROMIUM is None:
    pytest.skip("needs chromium")
  with api.sync_playwright() as playwright:
    started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield started
    started.close()


def opened(browser, port, notes):
  """Returns the page of a server; what it asks for and complains of is noted."""
  page = browser.new_page(viewport={"width": 1000, "height": 700})
  page.on("request", lambda request: notes.append(request.url))
  page.on("pageerror", lambda error: notes.append(f"error {error}"))
  page.on("console", lambda message: notes.append(f"console {message.text}"))
  page.goto(f"http://127.0.0.1:{port}/")
  page.locator("#model option").first.wait_for(state="attached")
  return page


def say(page, text):
  page.fill("#prompt", text)
  page.press("#prompt", "Enter")


@pytest.mark.slow
@pytest.mark.parametrize("template", [scripted.PLAIN, None])
def test_a_conversation_shows_the_memory_at_each_token(browser, template, tmp_path):
  notes: list[str] = []
  made = scripted.service(lambda text: HOSTILE, template=template, trace_tokens=4096, max_tokens=400)
  with serving(made, headers_s=5) as port:
    page = opened(browser, port, notes)
    for number, text in enumerate(("hello", "and on")):
      say(page, text)
      page.locator(".strip").nth(number).wait_for()
    page.screenshot(path=str(tmp_path / "page.png"))
    assert page.locator("article.assistant .text").first.inner_text() == HOSTILE
    assert page.locator("article img, article b").count() == 0
    assert page.title() == "atlas_jax"
    assert page.locator(".strip").first.locator(".row").count() == 3
    cells = page.locator(".strip").first.locator(".row").first.locator(".cells span")
    assert cells.count() == len(made.scheduler.asked[0].prompt) + len(HOSTILE) + 1
    figures = page.locator("#figures").inner_text()
    assert "tokens/s" in figures
    assert "state of 4.0 KiB" in figures
    first, second = (request.prompt for request in made.scheduler.asked)
    assert second[:len(first)] == first
    page.close()
  assert all(note.startswith((f"http://127.0.0.1:{port}/", "data:")) for note in notes), notes


@pytest.mark.slow
def test_the_page_asks_for_a_token_and_tells_errors(browser):
  token = "a-token-of-enough-length"
  with serving(scripted.service(tokens=(token,)), headers_s=5) as port:
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#token-label:not([hidden])")
    assert "no token" in page.locator("#notice").inner_text()
    page.fill("#token", token)
    page.press("#token", "Tab")
    page.locator("#model option").first.wait_for(state="attached")
    page.fill("#tokens", "100000")
    say(page, "x")
    page.locator("#notice", has_text="max_tokens").wait_for()
    page.close()
