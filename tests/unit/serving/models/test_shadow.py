import asyncio

import numpy as np
import pytest

from serving.bundle.store import BundleReference, hash_file, write_challenger
from serving.decoding.encoded import EncodedImage
from serving.errors import BundleError, OverloadedError
from serving.models.model_set import ModelSet
from serving.models.shadow import Shadow
from tests.unit.serving.tiny_bundle import COLOURS, make_bundle, paint, point_at, release

TURNED = ("green", "red", *list(COLOURS)[2:])  # the challenger confuses the first two
IMAGES = [EncodedImage(paint(colour), None) for colour in ("red", "blue", "blue", "white")]


@pytest.fixture
def models(tmp_path):
    models = ModelSet(tmp_path / "bundles", threads=1)
    release(models.bundles_dir)
    folder = make_bundle(models.bundles_dir, softness=9000.0, manifest={"classes": TURNED})
    sha256 = hash_file(folder / "manifest.json")
    write_challenger(
        models.bundles_dir, "cifar10", BundleReference(version="2", bundle=folder.name, manifest_sha256=sha256)
    )
    models.refresh()
    return models


async def classify(model, images):
    return model.classify(np.stack([model.decode(image.data) for image in images]))


async def offer(shadow, models, times=1):
    champion = models.select(None)
    probabilities_NK = await classify(champion, IMAGES)
    for _ in range(times):
        shadow.offer(champion, IMAGES, probabilities_NK)
    while shadow._running is not None and not shadow._running.done():
        await asyncio.sleep(0.01)
    return shadow.describe(champion)


def test_labels_that_differ_are_counted(models):
    told = []
    shadow = Shadow(models, 1.0, classify, lambda *given: told.append(given))
    state = asyncio.run(offer(shadow, models))
    assert (state.version, state.count, state.agreement_fraction) == ("2", 4, 0.75)
    assert told == [("cifar10", "1", "2", 3, 1)]


def test_a_version_that_is_gone_leaves_no_count(models):
    shadow = Shadow(models, 1.0, classify)
    asyncio.run(offer(shadow, models))
    point_at(models.bundles_dir, "cifar10", "3", make_bundle(models.bundles_dir, softness=6000.0))
    models.refresh()
    assert asyncio.run(offer(shadow, models)).count == 4
    assert list(shadow._counts) == [("cifar10", "3", "2")]


def test_one_comparison_at_a_time(models):
    shadow = Shadow(models, 1.0, classify)
    assert asyncio.run(offer(shadow, models, times=5)).count == 4


def test_what_a_canary_answers_is_not_compared_with_itself(models):
    shadow, champion = Shadow(models, 1.0, classify), models.select(None)
    canary = models.get_challenger("cifar10")

    async def run():
        shadow.offer(canary, IMAGES, await classify(canary, IMAGES))

    asyncio.run(run())
    assert shadow._running is None
    assert shadow.describe(champion).count == 0


def test_a_share_of_nothing_compares_nothing(models):
    state = asyncio.run(offer(Shadow(models, 0.0, classify), models, times=50))
    assert (state.count, state.agreement_fraction) == (0, None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BundleError("the device is gone"), "challenger version 2: the device is gone"),
        (ValueError("of a library"), "challenger version 2 failed"),
        (OverloadedError("full"), None),
    ],
)
def test_a_challenger_that_fails_is_logged_and_harms_nobody(models, caplog, error, line):
    async def fail(_, __):
        raise error

    shadow = Shadow(models, 1.0, fail)
    champion = models.select(None)

    async def run():
        shadow.offer(champion, IMAGES, await classify(champion, IMAGES))
        await shadow._running

    asyncio.run(run())
    assert (line in caplog.text) if line else not caplog.text
    assert shadow.describe(champion).count == 0
