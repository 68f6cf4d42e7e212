"""The report in a real browser: quiet, closed to the network, usable at every width."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from diptych.report import page as report

FAKE_RUN = Path(__file__).parents[1] / "unit" / "report" / "fake_run.py"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
CARDS = "#cards > .card"


@pytest.fixture(scope="module")
def fake_run():
    spec = importlib.util.spec_from_file_location("fake_run", FAKE_RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def url(fake_run, tmp_path_factory) -> str:
    return report.write(fake_run.build(tmp_path_factory.mktemp("browser") / "run")).as_uri()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="REPORT NOT CHECKED: no playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("REPORT NOT CHECKED IN A BROWSER: no chromium (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def visit(browser, url):
    """Open the report; at the end nothing may have complained, popped up or asked the network."""
    faults: list[str] = []
    contexts = []

    def watch_requests(request):
        if not request.url.startswith("data:") and request.url.split("#")[0] != url:
            faults.append(f"request: {request.url}")

    def refuse(dialog):
        faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open_page(width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("request", watch_requests)
        page.on("dialog", refuse)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def num_visible(page) -> int:
    return page.locator(f"{CARDS}:visible").count()


def tally(page) -> int:
    """Number of questions that match, as the page says it."""
    return int(re.findall(r"\d+", page.locator("output[name=tally]").inner_text())[-1])


def choose(page, name: str, value: str) -> None:
    page.locator(f"input[name={name}][value='{value}']").check()


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 2200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_never_scrolls_sideways(visit, width, scheme):
    page = visit(width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    while page.locator("[data-more]").is_visible():
        page.locator("[data-more]").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every((image) => image.alt.length > 10)")


def test_every_picture_that_is_shown_decodes(visit):
    page = visit()
    broken = page.evaluate(
        "Promise.all([...document.images].map((i) => { i.loading = 'eager';"
        " return i.decode().then(() => 0, () => 1); }))"
    )
    assert len(broken) > 60 and sum(broken) == 0


def test_filters_and_counts_agree(visit):
    page = visit()
    assert (num_visible(page), tally(page)) == (24, 120)
    page.locator("[data-more]").click()
    assert num_visible(page) == 48
    choose(page, "now", "right")
    assert tally(page) == 40
    assert page.locator(f"{CARDS}.is-wrong:visible").count() == 0
    choose(page, "change", "gained")
    gained = tally(page)
    assert 0 < gained < 40
    choose(page, "now", "wrong")
    assert (tally(page), num_visible(page)) == (0, 0)
    assert page.locator(".none").is_visible()
    page.locator("button[type=reset]").click()
    page.wait_for_function("document.querySelector('output[name=tally]').value.includes('120')")
    page.locator("select[name=kind]").select_option("trend")
    kinds = page.locator(f"{CARDS}:visible").evaluate_all("all => all.map((c) => c.dataset.kind)")
    assert len(kinds) == tally(page) > 0 and set(kinds) == {"trend"}


def test_search_and_link_from_a_kind(visit):
    page = visit()
    page.locator("input[name=words]").fill("SUPERCALIFRAGILISTIC")
    assert (tally(page), num_visible(page)) == (1, 1)
    page.locator("input[name=words]").fill("")
    page.locator("a[data-kind='count']").click()
    page.wait_for_function("document.querySelector('select[name=kind]').value === 'count'")
    page.wait_for_function("!document.querySelector('output[name=tally]').value.includes('120')")
    assert 0 < tally(page) < 40


def test_the_gallery_works_from_the_keyboard(visit):
    page = visit()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "words"
    page.keyboard.type("jk")
    assert page.locator("input[name=words]").input_value() == "jk"
    page.locator("input[name=words]").fill("")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    first = page.locator(f"{CARDS}:visible").first
    assert first.evaluate("card => card === document.activeElement")


def test_hostile_words_are_shown_as_they_are(visit, fake_run):
    page = visit()
    choose(page, "now", "wrong")
    while page.locator("[data-more]").is_visible():
        page.locator("[data-more]").click()
    shown = page.locator(".question").evaluate_all("all => all.map((q) => q.textContent)")
    for name, words in fake_run.HOSTILE.items():
        if name != "surrogate":
            assert f"Q {words}" in shown
    assert any("NUL \u2400 and escape \u241b[31m" in question for question in shown)
    assert page.locator("script").count() == 2
    assert page.locator("[onerror], [onmouseover], [onload]").count() == 0
    for question in page.locator(".question").all()[:12]:
        question.hover(force=True)


def test_the_policy_stops_what_would_get_through(browser, url):
    page = browser.new_page()
    page.goto(url)
    stopped = page.evaluate(
        """() => new Promise((resolve) => {
          const seen = [];
          document.addEventListener("securitypolicyviolation", (event) => {
            seen.push(event.effectiveDirective);
            if (seen.length === 3) resolve(seen.sort());
          });
          const inline = document.createElement("script");
          inline.textContent = "window.broken = 1";
          const image = document.createElement("img");
          image.src = "https://example.invalid/x.png";
          const styled = document.createElement("p");
          styled.setAttribute("style", "color: red");
          document.body.append(inline, image, styled);
        })"""
    )
    assert stopped == ["img-src", "script-src-elem", "style-src-attr"]
    assert page.evaluate("window.broken") is None
    page.close()


def test_charts_tell_their_values(visit):
    page = visit()
    chart = page.locator("[data-chart='0']")
    assert (
        chart.locator("[role=img]").get_attribute("aria-label").startswith("Loss, align: loss from")
    )
    chart.locator(".plot").hover()
    assert re.match(r"step \d+: loss [\d.]+, contrastive", chart.locator(".readout").inner_text())
    speed = page.locator("[data-chart='3']")
    speed.locator(".plot").focus()
    page.keyboard.press("Home")
    assert re.match(r"step 1: [\d.]+\u00a0k", speed.locator(".readout").inner_text())
    page.keyboard.press("ArrowRight")
    assert not speed.locator(".readout").inner_text().startswith("step 1:")


def test_copy_gives_the_command(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.locator("[data-copy]").first.click()
    page.wait_for_function("document.querySelector('[data-copy]').textContent !== 'Copy'")
    assert page.locator("[data-copy]").first.inner_text() in ("Copied", "Selected")
    if page.locator("[data-copy]").first.inner_text() == "Copied":
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("diptych quickstart --data 'my charts/<b>.json'")


def test_everything_but_filters_works_without_script(browser, url):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    assert num_visible(page) == 120
    assert not page.locator(".filters").is_visible()
    assert not page.locator("[data-copy]").first.is_visible()
    assert page.locator(".plot path.steady").first.is_visible()
    context.close()


CONTRAST = """(selectors) => {
  const light = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(c)) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  for (const e of document.querySelectorAll(selectors)) {
    const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || !e.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push([e.tagName, e.className, e.textContent.slice(0, 20), ratio]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(visit, scheme):
    page = visit(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 200
    assert dark == (scheme == "dark")
    assert page.evaluate(CONTRAST, "body *:not(svg *):not(option)") == []


def test_landmarks_headings_and_labels(visit):
    page = visit()
    for landmark in ("header", "nav", "main", "footer"):
        assert page.locator(landmark).count() == 1, landmark
    assert page.locator("h1").count() == 1
    problems = page.evaluate(
        """() => {
          const named = (e) => e.labels?.length || e.getAttribute("aria-label");
          const fields = [...document.querySelectorAll("input, select")].filter((e) => !named(e));
          const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
          const links = [...document.querySelectorAll("a[href^='#']")]
            .filter((a) => !document.getElementById(a.hash.slice(1)));
          const levels = [...document.querySelectorAll("h1,h2,h3,h4")].map((h) => +h.tagName[1]);
          const jumps = levels.filter((level, k) => k && level > levels[k - 1] + 1);
          const regions = [...document.querySelectorAll("section")]
            .filter((s) => !document.getElementById(s.getAttribute("aria-labelledby")));
          return [fields.length, ids.length - new Set(ids).size, links.length, jumps.length,
            regions.length];
        }"""
    )
    assert problems == [0, 0, 0, 0, 0]


def test_it_prints(visit):
    page = visit()
    page.emulate_media(media="print")
    assert not page.locator(".filters").is_visible()
    assert not page.locator("nav").is_visible()
    page.set_viewport_size({"width": 720, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
