"""ImageNet's validation images: one split, classes by wnid."""

import io

import numpy as np
import pytest
from PIL import Image

from model_code.data.cache import list_datasets
from model_code.errors import DataError

WNIDS = ("n01440764", "n01443537", "n15075141")


def list_files(content, prefix="val/"):
    """Two images per wnid, in an order that is not that of the names."""
    return {f"{prefix}{wnid}/ILSVRC2012_val_{number:08}.JPEG": content for wnid in reversed(WNIDS) for number in (2, 1)}


@pytest.mark.parametrize("prefix", ["val/", "", "validation/", "imagenet/", "ILSVRC/CLS-LOC/val/"])
def test_one_split_with_sorted_wnids(add, tmp_path, write_tree, encode, prefix):
    added = add("imagenet-val", write_tree(list_files(encode(kind="JPEG"), prefix)))
    dataset = added.dataset
    assert list(dataset.splits) == ["validation"]
    assert dataset.classes == WNIDS
    assert dataset.splits["validation"].labels_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.image_size == 256
    assert list_datasets(tmp_path / "cache")[0].counts == {"validation": 6}


def test_all_thousand_classes_keep_their_order(add, write_tree, encode):
    content = encode(size=8)
    names = [f"n{number:08}" for number in np.random.default_rng(0).permutation(1000)]
    dataset = add("imagenet-val", write_tree({f"{name}/1.png": content for name in names}), image_size=8).dataset
    assert dataset.classes == tuple(f"n{number:08}" for number in range(1000))
    assert dataset.splits["validation"].labels_N.tolist() == list(range(1000))


def test_grey_and_cmyk_jpegs_keep_their_colours(add, write_tree):
    """Both occur in ImageNet; packed they are RGB like any other."""

    def encode_mode(mode):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 40), (200, 100, 100) if mode != "L" else (90, 90, 90)).convert(mode).save(buffer, "JPEG")
        return buffer.getvalue()

    files = {f"val/{wnid}/1.JPEG": encode_mode(mode) for wnid, mode in zip(WNIDS, ("L", "CMYK", "RGB"), strict=True)}
    added = add("imagenet-val", write_tree(files), image_size=16)
    assert added.skipped == ()
    images_NHWC = added.dataset.splits["validation"].images_NHWC.astype(int)
    for image_HWC, colour in zip(images_NHWC, [(90, 90, 90), (200, 100, 100), (200, 100, 100)], strict=True):
        assert np.abs(image_HWC - colour).max() <= 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val/cat/1.png", "val/dog/1.png"], r"'val/cat/1\.png' is in no folder named by a wnid such as n01440764"),
        (["val/n01440764/1.png"], r"found 1 class \(n01440764\); at least 2"),
        (["train/n01440764/1.png", "train/n01443537/1.png"], r"found only train; a validation folder"),
        (
            [f"{split}/{wnid}/1.png" for split in ("train", "val") for wnid in WNIDS],
            r"found train beside validation; .*give the val folder alone",
        ),
        (["val/ILSVRC2012_val_00000001.JPEG"], r"00000001\.JPEG' is in no folder named by a wnid .*<wnid>/<image>"),
        (["val/readme.txt"], r"no images found"),
    ],
)
def test_wrong_layouts(add, write_tree, png, names, message):
    with pytest.raises(DataError, match=message) as caught:
        add("imagenet-val", write_tree(dict.fromkeys(names, png)))
    assert "\n" not in str(caught.value)


def test_other_names_still_need_training_images(add, write_tree, png):
    with pytest.raises(DataError, match=r"found only validation; a train folder"):
        add("birds", write_tree(list_files(png)))
