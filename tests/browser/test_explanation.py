"""The occlusion map over an image in a real browser."""

import itertools

import pytest
from PIL import Image

from tests.browser.chromium import CHROMIUM
from tests.browser.test_accessibility import find_violations, show
from tests.browser.test_page import page, start_service, url, wait_for  # noqa: F401
from tests.unit.serving.tiny_bundle import encode

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

TOLD = "document.querySelector('#results [role=status]').textContent"
BUTTON = "document.querySelector('#results button')"
# Alpha of the overlay at a point of the image, given as a share of its width and height.
ALPHA = """(([x, y]) => {
  const canvas = document.querySelector('#results canvas');
  const at = [Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1];
  return canvas.getContext('2d').getImageData(...at).data[3];
})"""


def look_at(page, url, tmp_path, scheme="light", width=1200):  # noqa: F811
    """Show an image that is red, and not black, only because of a part left of the middle; ask what decided."""
    image = Image.new("RGB", (400, 200), (126, 0, 0))
    image.paste((255, 0, 0), (120, 20, 140, 40))  # the first cell of the square that the model sees
    file = tmp_path / "corner.png"
    file.write_bytes(encode(image))
    show(page, url, scheme, width)
    page.choose_files("#file", [file])
    wait_for(page, "document.getElementById('progress').textContent", "1 of 1 looked at")
    assert page.read(f"{BUTTON}.hidden") is False
    page.read(f"{BUTTON}.click()")
    wait_for(page, f"{TOLD}.startsWith('Bright squares decided more.')", True)


def test_the_map_lies_over_what_the_model_sees(page, url, tmp_path):  # noqa: F811
    look_at(page, url, tmp_path)
    boxes = page.read(
        "['img', 'canvas'].map((one) => document.querySelector(`#results ${one}`).getBoundingClientRect())"
        ".map((one) => [one.left, one.top, one.width, one.height])"
    )
    assert boxes[0] == pytest.approx(boxes[1])
    assert page.read(f"{ALPHA}([.02, .5])") == 204, "beside the square"
    assert page.read(f"{ALPHA}([.5, .05])") == 204, "above the square"
    assert page.read(f"{ALPHA}([.325, .15])") == 0, "what decided most is bright"
    assert page.read(f"{ALPHA}([.5, .5])") > 100
    assert page.read(f"{ALPHA}([.65, .8])") > 100
    assert "What decided: Bright squares" in page.read("document.querySelector('#results canvas').ariaLabel")
    page.read(f"{BUTTON}.click()")
    wait_for(page, f"{TOLD}.startsWith('Bright')", True)
    assert page.read("document.querySelectorAll('#results canvas').length") == 1


def test_a_refusal_is_told(page, url, tmp_path):  # noqa: F811
    look_at(page, url, tmp_path)
    page.read('window.fetch = async () => new Response(\'{"error": {"message": "full"}}\', { status: 413 })')
    page.read(f"{BUTTON}.click()")
    wait_for(page, TOLD, "full")
    assert page.read(f"{BUTTON}.disabled") is False


@pytest.mark.parametrize(("scheme", "width"), itertools.product(["light", "dark"], [390, 1200]))
def test_it_is_in_nobodys_way(page, url, tmp_path, scheme, width):  # noqa: F811
    look_at(page, url, tmp_path, scheme, width)
    assert page.read("document.documentElement.scrollWidth") <= width
    page.resize(width, page.read("document.documentElement.scrollHeight"))
    page.save_screenshot(tmp_path / "explanation.png")
    assert find_violations(page) == []
