"""CIFAR-10 as its authors publish it: `cifar-10-python.tar.gz` or the extracted folder `cifar-10-batches-py`.

The files are Python pickles. A pickle can run any code while it is read, so they are read only after their
checksum matched, and then by a reader that knows nothing but arrays and plain containers.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels, red first.
"""

import hashlib
import io
import pickle
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy._core.multiarray import _reconstruct

from model_code.data.checksums import check_md5, format_mismatch
from model_code.data.download import download_file
from model_code.data.sources.archives import Archive, open_archive
from model_code.data.sources.images import CIFAR10_CLASSES, ImageSource, PixelSplit, order_classes
from model_code.data.sources.layout import DATASETS, KnownDataset, layout
from model_code.errors import ChecksumError, DataError

ARCHIVE_NAME = "cifar-10-python.tar.gz"
FOLDER_NAME = "cifar-10-batches-py"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
META_FILE = "batches.meta"
SPLIT_FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
FILE_MD5S: Mapping[str, str] = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    META_FILE: "5ff9c542aee3614f3951f8cda6e48888",
}
IMAGE_SIZE = 32


def is_cifar_archive(path: Path) -> bool:
    """Return whether `path` looks like the published archive, by its name, or its folder, by its files."""
    if path.is_dir():
        return any((folder / META_FILE).is_file() for folder in (path, path / FOLDER_NAME))
    return path.name == ARCHIVE_NAME


def read_cifar_archive(
    path: Path,
    expected_classes: tuple[str, ...] | None = None,
    archive_md5: str = ARCHIVE_MD5,
    file_md5s: Mapping[str, str] = FILE_MD5S,
) -> ImageSource:
    """Read the published archive or its extracted folder.

    Args:
        path: `cifar-10-python.tar.gz`, `cifar-10-batches-py` or the folder that holds it.
        expected_classes: Class names that must be found; None takes those in the file, in its order.
        archive_md5: MD5 of the archive, hexadecimal.
        file_md5s: MD5 of each file of the extracted folder, hexadecimal.

    Returns:
        The source with pixels [N, 32, 32, 3], train and test, in the order of the files.

    Raises:
        ChecksumError: A file is not the published one.
        DataError: A file is missing, or does not hold what it must.
    """
    if not path.is_dir():
        check_md5(path, archive_md5)
    with open_archive(path) as archive:
        members = {PurePosixPath(name).name: name for name in archive.files if _is_in_place(name)}
        wanted = [META_FILE, *(name for names in SPLIT_FILES.values() for name in names)]
        missing = [name for name in wanted if name not in members]
        if missing:
            raise DataError(f"{path}: missing {', '.join(missing)}; copy or download the whole archive again")
        # Reading in the archive's order runs through the compressed file once.
        contents = {name: archive.read(member) for name, member in _in_order(archive, members) if name in wanted}
    if path.is_dir():
        for name in wanted:
            found = hashlib.md5(contents[name], usedforsecurity=False).hexdigest()
            if found != file_md5s[name]:
                raise ChecksumError(format_mismatch(path / members[name], found, file_md5s[name]))
    return _build_source(path, contents, expected_classes)


def download_cifar10(data_dir: Path, url: str | None = None, is_progress_shown: bool = True) -> Path:
    """Fetch the published CIFAR-10 archive, unless it is there already.

    Args:
        data_dir: Folder of downloads.
        url: Address of a mirror; None for where torchvision fetches it.
        is_progress_shown: True to show progress.

    Returns:
        The archive, checked.

    Raises:
        UsageError, DownloadError, ChecksumError, DiskFullError: As `download_file`.
    """
    if url is None:
        from torchvision.datasets import CIFAR10

        url = CIFAR10.url
    return download_file(url, data_dir / ARCHIVE_NAME, ARCHIVE_MD5, is_progress_shown=is_progress_shown)


DATASETS["cifar10"] = KnownDataset(
    image_size=IMAGE_SIZE, classes=CIFAR10_CLASSES, fetch=download_cifar10, counts={"train": 50_000, "test": 10_000}
)


@layout(ARCHIVE_NAME, lambda archive: any(PurePosixPath(name).name == META_FILE for name in archive.files))
def _read_wrapped(archive: Archive, expected_classes: tuple[str, ...] | None) -> ImageSource:
    return read_cifar_archive(archive.path, expected_classes)


def _is_in_place(name: str) -> bool:
    return str(PurePosixPath(name).parent) in (".", FOLDER_NAME)


def _in_order(archive: Archive, members: Mapping[str, str]) -> list[tuple[str, str]]:
    position = {name: index for index, name in enumerate(archive.files)}
    return sorted(members.items(), key=lambda item: position[item[1]])


def _build_source(path: Path, contents: Mapping[str, bytes], expected_classes: tuple[str, ...] | None) -> ImageSource:
    meta = load_batch(contents[META_FILE], f"{path}/{META_FILE}")
    names = meta.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}/{META_FILE}: no label_names; copy or download the archive again")
    if expected_classes is not None:
        order_classes(names, expected_classes, str(path))
    index = {name: (expected_classes or tuple(names)).index(name) for name in names}
    relabel = np.array([index[name] for name in names], dtype=np.int64)
    splits = {}
    for split, files in SPLIT_FILES.items():
        batches = [_read_batch(contents[name], f"{path}/{name}", len(names)) for name in files]
        splits[split] = PixelSplit(
            np.concatenate([images for images, _ in batches]),
            relabel[np.concatenate([labels for _, labels in batches])],
        )
    return ImageSource(f"CIFAR-10 as published, {path.name}", expected_classes or tuple(names), splits)


def _read_batch(content: bytes, where: str, class_count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    batch = load_batch(content, where)
    data, labels = batch.get("data"), batch.get("labels")
    row_bytes = 3 * IMAGE_SIZE * IMAGE_SIZE
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (row_bytes,)):
        raise DataError(f"{where}: 'data' is not a uint8 array [N, {row_bytes}]; download the archive again")
    if not (
        isinstance(labels, list)
        and len(labels) == len(data)
        and all(isinstance(label, int) and 0 <= label < class_count for label in labels)
    ):
        raise DataError(f"{where}: 'labels' are not {len(data)} whole numbers from 0 to {class_count - 1}")
    images_NHWC = data.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE).transpose(0, 2, 3, 1)
    return images_NHWC, np.array(labels, dtype=np.int64)


def load_batch(content: bytes, where: str) -> dict[str, Any]:
    """Read one pickled dictionary of arrays and plain containers; nothing else can be in it.

    Raises:
        DataError: The bytes are no pickle, ask for anything else, or hold no dictionary.
    """
    try:
        loaded = _BatchUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        raise DataError(f"{where} is not a CIFAR-10 batch ({error}); copy or download the archive again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{where} holds a {type(loaded).__name__}, not a CIFAR-10 batch; download the archive again")
    return loaded


class _BatchUnpickler(pickle.Unpickler):
    """Builds arrays and plain containers and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the overridden signature
        allowed: dict[tuple[str, str], Callable[..., object]] = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode_latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return allowed[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which no batch needs")
    return text.encode("latin1")
