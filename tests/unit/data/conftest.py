"""Small real sources: class folders, zips, tars and Kaggle's layout, with one plain colour per image."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from model_code.data.add import AddedDataset, add_dataset
from model_code.data.cache import PackedDataset


def encode_image(colour: tuple[int, int, int] = (10, 20, 30), size: int = 16, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def png() -> bytes:
    return encode_image()


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return encode_image


@pytest.fixture
def write_tree(tmp_path: Path) -> Callable[[Mapping[str, bytes], str], Path]:
    """Write {relative name: bytes} below tmp_path/<folder>."""

    def write(files: Mapping[str, bytes], folder: str = "source") -> Path:
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / folder

    return write


@pytest.fixture
def class_files() -> Callable[..., dict[str, bytes]]:
    """{`<split>/<class>/<number>.png`: bytes}, the colour telling split, class and number."""

    def build(
        classes: Sequence[str] = ("cat", "dog"), splits: Sequence[str] = ("train", "test"), per_class: int = 3
    ) -> dict[str, bytes]:
        return {
            f"{split}/{name}/{number:04}.png": encode_image((split_index * 100, class_index * 10, number % 256))
            for split_index, split in enumerate(splits)
            for class_index, name in enumerate(classes)
            for number in range(per_class)
        }

    return build


@pytest.fixture
def add(tmp_path: Path) -> Callable[..., AddedDataset]:
    def run(name: str, *sources: Path, **settings: object) -> AddedDataset:
        return add_dataset(
            name,
            sources,
            **{"cache_dir": tmp_path / "cache", "data_dir": tmp_path / "data", "progress": False, **settings},
        )

    return run


@pytest.fixture
def pack(add: Callable[..., AddedDataset]) -> Callable[..., PackedDataset]:
    """Pack one source at 8 pixels."""

    def run(source: Path, name: str = "pets") -> PackedDataset:
        return add(name, source, image_size=8).dataset

    return run
