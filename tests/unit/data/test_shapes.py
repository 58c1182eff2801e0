import numpy as np
import pytest

from model_code.data.sources.shapes import SHAPE_CLASSES, generate_shapes
from model_code.errors import UsageError


@pytest.mark.slow
def test_the_default_set_is_pinned(add):
    added = add("shapes")
    assert added.dataset.checksum == "daa1dcb59ac59c6c3c07df44a29a0d66b059dc13afd5364e2d515631283738e0"
    assert added.dataset.classes == SHAPE_CLASSES
    assert {name: split.images_NHWC.shape for name, split in added.dataset.splits.items()} == {
        "train": (3000, 32, 32, 3),
        "test": (1000, 32, 32, 3),
    }
    assert np.bincount(added.dataset.splits["train"].labels_N).tolist() == [300] * 10
    assert add("shapes").reused


def test_train_and_test_share_no_image():
    splits = generate_shapes(train_per_class=20, test_per_class=20).splits
    images = [image.tobytes() for split in splits.values() for image in split.images_NHWC]
    assert len(set(images)) == 400


def test_pixels_alone_say_little():
    """Nearest class mean, the simplest linear classifier, stays far below what an outline tells."""
    splits = generate_shapes(train_per_class=100, test_per_class=50).splits
    train, test = (splits[name].images_NHWC.reshape(len(splits[name]), -1) / 255.0 for name in ("train", "test"))
    labels = splits["train"].labels_N
    means = np.stack([train[labels == label].mean(axis=0) for label in range(10)])
    predicted = ((test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert np.mean(predicted == splits["test"].labels_N) < 0.35


@pytest.mark.parametrize("settings", [{"image_size": 8}, {"train_per_class": 0}, {"test_per_class": 0}])
def test_impossible_settings(settings):
    with pytest.raises(UsageError):
        generate_shapes(**settings)
