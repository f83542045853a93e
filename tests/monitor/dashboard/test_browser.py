"""The dashboard in a browser: it is drawn, follows its run, stays on its page, and fits its screens.

ATLAS_JAX_SCREENSHOTS=docs/images makes the pictures of the guide anew; else they go to a temporary folder.
"""

import json
import os
import pathlib

import pytest

from atlas_jax.data.traces.store import open_store
from atlas_jax.monitor.dashboard import views
from tests.monitor.dashboard import browser, recorded
from tests.monitor.dashboard.test_sessions import trace

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
SCREENS = {"light": (1_280, False), "dark": (1_280, True), "phone": (390, False)}
# Page -> the run that it is shown of.
RUNS = {"overview": "flagship_smoke", "live_training": "flagship_smoke", "memory_deep_dive": "flagship_smoke",
        "alerts_health": "flagship_smoke", "numerical_stability": "flagship_smoke", "phases": "modular_smoke",
        "completions": "grpo_sums", "puzzles": "sudoku_4x4", "sessions": "flagship_smoke"}
# Pictures of the guide, by page; of all others one in light is enough.
IN_GUIDE = {"live_training": ("light", "dark", "phone"), "memory_deep_dive": ("light", "dark"),
            "overview": ("light",), "alerts_health": ("light", "phone"), "completions": ("light",),
            "puzzles": ("light",), "numerical_stability": ("light",), "phases": ("light",),
            "sessions": ("light", "phone")}
HIGHEST = {"light": 2_400, "dark": 2_400, "phone": 2_600}  # Pixels: a picture in a guide is no scroll.


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
  """A browser, the address of a dashboard of recorded runs, and their folder."""
  runs = recorded.copy(tmp_path_factory.mktemp("project") / "runs", alerts=("flagship_smoke",))
  with open_store(f"sqlite:///{runs}/flagship_smoke/atlas.db", create=True, writable=True) as store:
    store.write_all([trace(f"What is {number}+{3 * number}?") for number in range(12)])
  with browser.served(runs) as address, browser.browser() as opened:
    yield opened, address, runs


def pictures(tmp_path):
  folder = pathlib.Path(os.environ.get("ATLAS_JAX_SCREENSHOTS", tmp_path))
  folder.mkdir(parents=True, exist_ok=True)
  return folder


@pytest.mark.parametrize("page", list(views.pages()))
def test_every_page_is_drawn_and_fits_its_screens(shown, tmp_path, page):
  opened, address, _ = shown
  for screen in IN_GUIDE[page]:
    width, dark = SCREENS[screen]
    tab = browser.open_page(opened, address, width=width, dark=dark, page=page, run=RUNS[page])
    assert tab.locator("h2").first.inner_text() == views.pages()[page].TITLE
    assert tab.locator("[data-testid=stException]").count() == 0
    assert tab.locator(".js-plotly-plot").count() or tab.locator("[data-testid=stDataFrame]").count()
    # Nothing is wider than the screen, and the charts fill it.
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for box in [one.bounding_box() for one in tab.locator(".js-plotly-plot").all()]:
      assert box["x"] >= 0 and box["x"] + box["width"] <= width + 1 and box["width"] > 250
    tab.set_viewport_size({"width": width, "height": min(HIGHEST[screen], browser.content_height(tab))})
    browser.settle(tab)
    ground = tab.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    levels = [int(part) for part in ground[ground.index("(") + 1:-1].split(",")[:3]]
    assert (max(levels) < 64) == dark
    tab.screenshot(path=pictures(tmp_path) / f"dashboard_{page}_{screen}.png")
    tab.close()


def test_a_refresh_shows_new_rows_and_keeps_page_and_choices(shown):
  opened, address, runs = shown
  tab = browser.open_page(opened, address, page="completions", run="grpo_sums", axis="tokens")
  tab.locator("summary").first.click()
  field = tab.get_by_label("Words in prompt or completion")
  field.fill("=")
  field.press("Enter")
  browser.settle(tab)
  count = tab.locator("[data-testid=stMetricValue]").first
  before = int(count.inner_text())
  (file,) = (runs / "grpo_sums" / "completions").glob("*.jsonl")
  with file.open("a") as out:
    out.write(json.dumps({"step": 999, "prompt": "1+1=", "completion": "2", "reward": 1.0}) + "\n")
  tab.wait_for_function(f"document.querySelector('[data-testid=stMetricValue]').innerText == '{before + 1}'")
  assert field.input_value() == "=" and tab.locator("h2").first.inner_text() == "Completions"
  assert "page=completions" in tab.url and "axis=tokens" in tab.url
  tab.close()


def test_numbers_can_be_downloaded(shown):
  opened, address, _ = shown
  tab = browser.open_page(opened, address, page="live_training", run="flagship_smoke")
  with tab.expect_download() as waited:
    tab.get_by_role("button", name="CSV").first.click()
  lines = pathlib.Path(waited.value.path()).read_text().splitlines()
  assert waited.value.suggested_filename == "loss.csv" and lines[0] == "curve,step,value,low,high"
  assert any(line.startswith("held out,") for line in lines)
  tab.close()


def test_the_first_charts_are_seen_before_plotly_is_there(shown):
  opened, address, _ = shown
  tab = opened.new_page()
  held = []
  tab.route("**/PlotlyChart*", lambda route: held.append(route))
  tab.goto(f"{address}/?page=live_training&run=flagship_smoke")
  tab.wait_for_selector(".sketch img")
  assert tab.locator(".sketch").first.get_attribute("aria-label") == "Loss"
  assert tab.evaluate("document.querySelector('.sketch img').naturalWidth > 0")
  tab.wait_for_function("document.querySelector('[data-testid=stSkeleton]')")
  assert tab.locator(".main-svg").count() == 0 and tab.locator(".sketch img").first.is_visible()
  for route in held:
    route.continue_()
  tab.wait_for_selector(".js-plotly-plot .main-svg")
  browser.settle(tab)
  assert not any(one.is_visible() for one in tab.locator(".sketch").all())
  tab.close()
