"""The service's page in a real browser: several images at once, what is not sure, what is no image."""

import time

import pytest

from tests.browser.chromium import CHROMIUM, open_page
from tests.contract.conftest import start_service  # noqa: F401
from tests.unit.serving.tiny_bundle import paint, release

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")


@pytest.fixture
def page():
    with open_page() as page:
        yield page


@pytest.fixture
def url(tmp_path, start_service):  # noqa: F811
    thresholds = {"target_error": 0.05, "overall": 0.5, "per_class": (0.0, 0.0, None, 0.0, 0.0, 0.0)}
    thresholds |= {"selections": (), "selections_overall": ()}
    calibration = {"temperature": 1.0, "reliability": (), "thresholds": thresholds}
    release(tmp_path / "bundles", "cifar10", "3", manifest={"calibration": calibration})
    return start_service(tmp_path).url


def wait_for(page, expression, wanted):
    deadline = time.monotonic() + 20
    while (found := page.read(expression)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


TITLES = "[...document.querySelectorAll('#results h2')].map((one) => one.textContent)"


def test_several_images_are_looked_at_together(page, url, tmp_path):
    files = []
    for colour in ("red", "green", "blue"):
        files.append(tmp_path / f"{colour}.png")
        files[-1].write_bytes(paint(colour, size=(40, 30)))
    files.append(tmp_path / "broken.png")
    files[-1].write_bytes(b"no image")
    page.open(url)
    wait_for(page, "document.getElementById('about')?.textContent.startsWith('cifar10 version 3')", True)
    page.choose_files("#file", files)
    wait_for(page, "document.getElementById('progress').textContent", "4 of 4 looked at, 1 not answered")
    titles = page.read(TITLES)
    assert [title.split(",")[0] for title in titles] == ["red", "green", "Not sure: perhaps blue", "No answer"]
    assert page.read("document.querySelectorAll('#results li').length") == 15
    assert page.read("document.querySelector('#results img').naturalWidth") == 40
    assert "cifar10 version 3 (fp32) in " in page.read("document.querySelector('#results p').textContent")
    assert "broken.png: " in page.read("document.querySelectorAll('#results p')[3].textContent")
    assert {address.split("/")[2] for address in page.requested if address.startswith("http")} == {url.split("/")[2]}


REFUSE_FIRST = """
(() => {
  const original = window.fetch;
  const refused = new Set();
  window.fetch = (address, options) => {
    if (options.method !== "POST" || refused.has(options.body)) return original(address, options);
    refused.add(options.body);
    const full = { status: 503, headers: { "Retry-After": "1" } };
    return Promise.resolve(new Response('{"error": {"message": "full"}}', full));
  };
  return true;
})()
"""


def test_images_that_a_full_service_refuses_are_sent_again(page, url, tmp_path):
    files = [tmp_path / f"{colour}.png" for colour in ("red", "green")]
    for file in files:
        file.write_bytes(paint(file.stem))
    page.open(url)
    wait_for(page, "document.getElementById('about')?.textContent.startsWith('cifar10 version 3')", True)
    assert page.read(REFUSE_FIRST)
    page.choose_files("#file", files)
    wait_for(page, "document.getElementById('progress').textContent", "2 of 2 looked at")


def test_a_service_with_keys_asks_for_one(page, start_service, tmp_path):  # noqa: F811
    release(tmp_path / "bundles")
    keys = tmp_path / "keys.txt"
    keys.write_text("a-key-of-the-service\n")
    page.open(start_service(tmp_path, "--api-keys", keys).url)
    wait_for(page, "document.getElementById('problem')?.textContent", "This server wants an API key.")

    def use(key):
        page.read(f"document.getElementById('key').value = '{key}'")
        page.read("document.getElementById('access').requestSubmit()")

    use("something-else-entirely")
    wait_for(page, "document.getElementById('problem').textContent", "This key is not one of this server's.")
    use("a-key-of-the-service")
    wait_for(page, "document.getElementById('about').textContent.startsWith('cifar10 version 1')", True)
    assert page.read("document.getElementById('access').hidden") is True
    image = tmp_path / "red.png"
    image.write_bytes(paint("red"))
    page.choose_files("#file", [image])
    wait_for(page, f"{TITLES}.join().split(',')[0]", "red")


def test_pasted_images_are_looked_at_too(page, url):
    page.open(url)
    wait_for(page, "document.getElementById('about')?.textContent.startsWith('cifar10 version 3')", True)
    page.read(
        f"""(async () => {{
            const data = new DataTransfer(), bytes = Uint8Array.from({list(paint("yellow"))});
            data.items.add(new File([bytes], "yellow.png", {{ type: "image/png" }}));
            document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: data }}));
        }})()"""
    )
    wait_for(page, f"{TITLES}.join().split(',')[0]", "yellow")


@pytest.mark.parametrize("width", [360, 1200])
def test_everything_fits_a_phone_and_a_desk(page, url, tmp_path, width):
    page.resize(width, 900)
    page.open(url)
    wait_for(page, "document.getElementById('about')?.textContent.startsWith('cifar10 version 3')", True)
    image = tmp_path / ("a-very-long-name-" * 8 + ".png")
    image.write_bytes(paint("red", size=(900, 300)))
    page.choose_files("#file", [image])
    wait_for(page, "document.getElementById('progress').textContent", "1 of 1 looked at")
    assert page.read("document.documentElement.scrollWidth") <= width
    page.save_screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5000


def test_people_who_do_not_see_it_or_have_no_mouse_can_use_it(page, url):
    page.open(url)
    wait_for(page, "document.getElementById('about')?.textContent.startsWith('cifar10 version 3')", True)
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert page.read("document.activeElement.id") == "file"
    assert page.read("document.getElementById('progress').getAttribute('role')") == "status"
    assert page.read("document.documentElement.lang") == "en"
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    names = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if "role" in node}
    assert ("heading", "What is in these images?") in names
    assert any(role == "button" and "Choose images" in name for role, name in names), names
