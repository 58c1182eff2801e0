"""axe finds nothing wrong with the page: without results and with every kind, narrow and wide, light and dark."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest

from tests.browser.chromium import CHROMIUM
from tests.browser.test_page import page, start_service, url, wait_for  # noqa: F401
from tests.unit.serving.tiny_bundle import paint

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

PACKAGE = importlib.util.find_spec("axe_playwright_python")


def read_axe():
    """Return axe's script, without importing the package around it: that wants a browser driver."""
    return (Path(PACKAGE.origin).parent / "axe.min.js").read_text()


def find_violations(page):  # noqa: F811
    """Return what axe finds, one line for each element; that it looked at the page is checked."""
    page.read(f"{read_axe()}; undefined")
    # All of them: also advice, and what is not on by itself.
    rules = page.read("axe.getRules().map((rule) => rule.ruleId)")
    options = {"rules": {rule: {"enabled": True} for rule in rules}}
    found = json.loads(page.read(f"axe.run(document, {json.dumps(options)}).then((found) => JSON.stringify(found))"))
    passed = {one["id"] for one in found["passes"]}
    assert passed >= {"color-contrast", "label", "region", "page-has-heading-one", "html-has-lang"}
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {node['target']} {node['html'][:120]} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def show(page, url, scheme, width):  # noqa: F811
    page.resize(width, 900)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(url)
    wait_for(page, "document.getElementById('about')?.textContent.startsWith('cifar10 version 3')", True)
    assert page.read("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")


@pytest.mark.parametrize(("scheme", "width"), itertools.product(["light", "dark"], [360, 1200]))
def test_nothing_is_in_anybodys_way(page, url, tmp_path, scheme, width):  # noqa: F811
    show(page, url, scheme, width)
    page.save_screenshot(tmp_path / "empty.png")
    assert find_violations(page) == []
    files = [tmp_path / name for name in ("red.png", "green.png", "blue, which is not sure.png", "broken.png")]
    for file, colour in zip(files, ("red", "green", "blue", None), strict=True):
        file.write_bytes(paint(colour, size=(400, 300)) if colour else b"no image")
    page.choose_files("#file", files)
    wait_for(page, "document.getElementById('progress').textContent", "4 of 4 looked at, 1 not answered")
    page.read("say('65 images: the first 64 are looked at.')")
    page.resize(width, page.read("document.documentElement.scrollHeight"))
    page.save_screenshot(tmp_path / "results.png")
    titles = page.read("[...document.querySelectorAll('#results h2')].map((one) => one.textContent.split(',')[0])")
    assert titles == ["red", "green", "Not sure: perhaps blue", "No answer"]
    # What the browser cannot show, also a TIFF, has no torn icon.
    wait_for(page, "[...document.querySelectorAll('#results .none')].map((one) => one.textContent)", ["No preview"])
    assert page.read("document.querySelectorAll('#results img').length") == 3
    assert find_violations(page) == []


def test_axe_sees_what_is_wrong(page, url):  # noqa: F811
    show(page, url, "light", 1200)
    page.read("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\"><p style=\"color:#ddd\">pale</p>')")
    assert {line.split()[0] for line in find_violations(page)} >= {"image-alt", "color-contrast", "region"}
