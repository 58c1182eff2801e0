"""ImageNet's validation images: one split, classes by wnid."""

import hashlib
import io
import shlex
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import imagenet

from model_code.data.cache import format_remedy, list_datasets
from model_code.errors import ChecksumError, DataError

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
        (["val/ILSVRC2012_val_00000001.JPEG"], r"00000001\.JPEG' is in no .* give ILSVRC2012_devkit_t12\.tar\.gz"),
        (["val/ILSVRC_00000001.JPEG"], r"00000001\.JPEG' is in no folder named by a wnid .*<wnid>/<image>"),
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


# ILSVRC's ids do not follow the names: id 1 is the last wnid. The fourth synset is a parent of others.
ILSVRC_IDS = {WNIDS[2]: 1, WNIDS[0]: 2, WNIDS[1]: 3, "n00000001": 4}
TRUTH = (1, 3, 3, 2, 1, 2)  # of the images 1 to 6


def pack_tar(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def published(tmp_path, encode, monkeypatch):
    """The two archives as they are published, but small."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, f"{wnid}, other", "", 3 * (number == 4)) for wnid, number in ILSVRC_IDS.items()]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=fields)})
    devkit = pack_tar(
        tmp_path / "ILSVRC2012_devkit_t12.tar.gz",
        {
            "ILSVRC2012_devkit_t12/readme.txt": b"read me",
            "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, TRUTH)).encode(),
        },
    )
    images = {f"ILSVRC2012_val_{one:08}.JPEG": encode((40 * one, 0, 0), kind="JPEG") for one in range(1, 7)}
    md5 = hashlib.md5(devkit.read_bytes()).hexdigest()
    monkeypatch.setitem(imagenet.ARCHIVE_META, "devkit", (devkit.name, md5))
    return pack_tar(tmp_path / "ILSVRC2012_img_val.tar", images), devkit, images


def test_the_published_pair_is_packed_like_class_folders(add, published, write_tree):
    validation, devkit, images = published
    packed = add("imagenet-val", devkit, validation, image_size=16)
    assert packed.skipped == ()
    dataset = packed.dataset
    assert dataset.classes == WNIDS
    assert dataset.splits["validation"].labels_N.tolist() == [0, 0, 1, 1, 2, 2]
    reds = dataset.splits["validation"].images_NHWC[:, 8, 8, 0].astype(int)
    assert np.abs(reds - 40 * np.array([4, 6, 2, 3, 1, 5])).max() <= 3
    wnids = {number: wnid for wnid, number in ILSVRC_IDS.items()}
    tree = {f"{wnids[truth]}/{name}": images[name] for name, truth in zip(images, TRUTH, strict=True)}
    assert add("imagenet-val", write_tree(tree), image_size=16).dataset.checksum == dataset.checksum


def test_what_is_missing_of_the_pair_is_named(add, published, tmp_path):
    validation, devkit, images = published
    with pytest.raises(
        DataError, match=r"give ILSVRC2012_devkit_t12\.tar\.gz, which holds its label, as another --from"
    ):
        add("imagenet-val", validation)
    with pytest.raises(DataError, match=r"holds labels only; add its images with ILSVRC2012_img_val\.tar as another"):
        add("imagenet-val", devkit)
    more = pack_tar(tmp_path / "more.tar", {"ILSVRC2012_val_00000007.JPEG": images["ILSVRC2012_val_00000001.JPEG"]})
    with pytest.raises(DataError, match=r"'ILSVRC2012_val_00000007\.JPEG' is none of the images .* to 00000006\.JPEG"):
        add("imagenet-val", more, devkit)
    twice = pack_tar(tmp_path / "twice.tar", images)
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000004\.JPEG is in .*give each image once"):
        add("imagenet-val", validation, twice, devkit)


def test_labels_come_from_the_published_devkit_only(add, published, tmp_path):
    validation, devkit, _ = published
    with tarfile.open(devkit) as tar:
        tar.extractall(tmp_path / "extracted", filter="data")
    with pytest.raises(DataError, match=r"extracted is a folder; give ILSVRC2012_devkit_t12\.tar\.gz itself"):
        add("imagenet-val", validation, tmp_path / "extracted")
    other = pack_tar(
        tmp_path / "other.tar.gz", {"ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b""}
    )
    with pytest.raises(ChecksumError, match=r"other\.tar\.gz has md5"):
        add("imagenet-val", validation, other)


def test_the_remedy_is_the_command_for_the_published_files():
    command = format_remedy("imagenet-val").split("`")[1]
    assert shlex.split(command)[1:] == [
        *("data", "add", "imagenet-val"),
        *("--from", "ILSVRC2012_img_val.tar", "--from", imagenet.ARCHIVE_META["devkit"][0]),
    ]
