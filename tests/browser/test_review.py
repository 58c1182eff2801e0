"""The review of unsure answers in a real browser, with keys only and with a mouse."""

import itertools

import httpx
import pytest
from PIL import Image

from tests.browser.chromium import CHROMIUM
from tests.browser.test_accessibility import find_violations, show
from tests.browser.test_page import page, start_service, wait_for  # noqa: F401
from tests.contract.test_http import wait_for as wait_until
from tests.unit.serving.tiny_bundle import encode, release

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

IMAGE = {"Content-Type": "image/png"}
ASKED = "document.getElementById('asked').textContent.split(',')[0]"
STATE = "document.getElementById('review-state').textContent"


def answer_images(service, home, count=5):
    """Have the service log images from one of which the model is hardly sure on."""
    for number in range(count):
        data = encode(Image.new("RGB", (300, 200), (140 + 20 * number, 40, 0)))
        httpx.post(f"{service.url}/v1/predict", content=data, headers=IMAGE, trust_env=False).raise_for_status()
    wait_until(lambda: sum(len(file.read_bytes().splitlines()) for file in home.glob("requests/*.jsonl")) == count)


@pytest.fixture
def service(tmp_path, start_service):  # noqa: F811
    release(tmp_path / "bundles", "cifar10", "3")
    running = start_service(tmp_path, "--log-requests", "1", "--keep-pictures", "--feedback", "--review")
    answer_images(running, tmp_path)
    return running


def press(page, key):  # noqa: F811
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")


def begin(page, service):  # noqa: F811
    show(page, service.url, "light", 1200)
    unfold(page)
    page.read("document.getElementById('begin').click()")
    wait_for(page, STATE, "4 more")


def unfold(page):  # noqa: F811
    page.read("document.querySelector('.review summary').click()")


def list_feedback(home):
    return sorted(path.parent.name for path in home.glob("feedback/cifar10/*/*"))


def test_one_key_for_right_a_number_for_another_label_and_skip(page, service, tmp_path):  # noqa: F811
    begin(page, service)
    wait_for(page, "document.getElementById('reviewed').naturalWidth", 300)
    first, second = page.read(ASKED), page.read("document.querySelector('#others button').textContent.split(/[ ,]/)[1]")
    assert first != second
    press(page, "y")
    wait_for(page, STATE, "3 more")
    assert list_feedback(tmp_path) == [first]
    given = page.read("document.querySelectorAll('#others button')[1].textContent.split(/[ ,]/)[1]")
    press(page, "2")
    wait_for(page, STATE, "2 more")
    assert list_feedback(tmp_path) == sorted([first, given])
    press(page, "s")
    wait_for(page, STATE, "1 more")
    assert len(list_feedback(tmp_path)) == 2
    page.read("document.getElementById('label').value = 'white'")
    page.read("document.getElementById('any').requestSubmit()")
    wait_for(page, STATE, "0 more")
    assert list_feedback(tmp_path) == sorted([first, given, "white"])
    press(page, "y")
    wait_for(page, STATE, "Nothing is left to review.")
    assert page.read("document.activeElement.id") == "begin", "the focus is not lost"
    assert len(list_feedback(tmp_path)) == 4
    page.read("document.getElementById('begin').click()")
    wait_for(page, STATE, "0 more")  # what was skipped comes again


def test_keys_count_only_where_the_review_has_the_focus(page, service, tmp_path):  # noqa: F811
    begin(page, service)
    for elsewhere in ("file", "label"):
        page.read(f"document.getElementById('{elsewhere}').focus()")
        press(page, "y")
        press(page, "1")
    page.read("document.getElementById('queue').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="s", modifiers=2)
    assert page.read(STATE) == "4 more"
    assert list_feedback(tmp_path) == []


def test_a_service_that_shows_none_says_how_it_would(page, start_service, tmp_path):  # noqa: F811
    release(tmp_path / "bundles", "cifar10", "3")
    show(page, start_service(tmp_path).url, "light", 1200)
    assert page.read("document.querySelector('.review p').checkVisibility()") is False
    unfold(page)
    assert "without --keep-pictures it stores no image" in page.read(
        "document.querySelector('.review p').innerText.replace(/\\s+/g, ' ')"
    )
    page.read("document.getElementById('begin').click()")
    wait_for(page, "document.getElementById('review-problem').textContent.includes('--feedback --review')", True)
    assert page.read("document.getElementById('queue').hidden") is True


@pytest.mark.parametrize(("scheme", "width"), itertools.product(["light", "dark"], [390, 1200]))
def test_it_is_in_nobodys_way(page, service, tmp_path, scheme, width):  # noqa: F811
    show(page, service.url, scheme, width)
    unfold(page)
    page.read("document.getElementById('begin').click()")
    wait_for(page, STATE, "4 more")
    assert page.read("document.documentElement.scrollWidth") <= width
    page.resize(width, page.read("document.documentElement.scrollHeight"))
    page.save_screenshot(tmp_path / "review.png")
    assert find_violations(page) == []
    page.read("document.getElementById('review-problem').textContent = 'the disk did not answer'")
    assert find_violations(page) == []
