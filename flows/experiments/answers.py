"""Answers of a run's weights for some images, to ask them again on another machine.

Shape suffixes: N = images, H = height, W = width, C = the three colour channels, D = outputs.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from model_code.data.cache import PackedDataset, open_dataset
from model_code.errors import ChecksumError, DataError
from model_code.evaluation.metrics import predict_logits
from model_code.training.config import TrainingConfig
from model_code.training.images import Images
from model_code.training.pretraining import evaluation_features, load_backbone
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.run_folder import RunFolder, RunRecord
from model_code.training.supervised import load_model

IMAGES = 32
TOLERANCE = 1e-3  # of the largest output; float32 on two machines differs by some 1e-6 of it
_SPLITS = ("test", "validation", "train")


class Answers(BaseModel):
    """What the best weights of a run answer for some images.

    Attributes:
        split: Where the images are from.
        indices: The images.
        outputs: Logits or features of each, float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str
    indices: tuple[int, ...]
    outputs: tuple[tuple[float, ...], ...]


def open_images(record: RunRecord, cache_dir: Path) -> PackedDataset | None:
    """Return the images that a run was trained on; None if they are not here, or others under their name."""
    with suppress(DataError):
        dataset = open_dataset(record.config.dataset, cache_dir)
        return dataset if dataset.checksum == record.data_checksum else None
    return None


def ask_weights(folder: RunFolder, dataset: PackedDataset) -> Answers:
    """Ask the best weights of a run, on the CPU, about images that are evenly spread over the test images.

    Args:
        folder: Folder of a complete run that left weights.
        dataset: The images that it was trained on.
    """
    split = next(split for split in _SPLITS if split in dataset.splits)
    count = len(dataset.splits[split].labels_N)
    indices = tuple(np.unique(np.linspace(0, count - 1, IMAGES).astype(int)).tolist())
    outputs = tuple(map(tuple, _ask(folder, dataset, split, indices).tolist()))
    return Answers(split=split, indices=indices, outputs=outputs)


def check_answers(folder: RunFolder, dataset: PackedDataset, answers: Answers) -> None:
    """Ask the weights again.

    Raises:
        ChecksumError: They answer otherwise: the code or its libraries are not those of the training.
    """
    before_ND = torch.tensor(answers.outputs)
    now_ND = _ask(folder, dataset, answers.split, answers.indices)
    allowed = TOLERANCE * max(1.0, float(before_ND.abs().max()))
    difference = float((now_ND - before_ND).abs().max()) if now_ND.shape == before_ND.shape else float("inf")
    if not difference <= allowed:
        raise ChecksumError(
            f"run {folder.record.run_id}: its weights answer otherwise here than where they were packed, by "
            f"{difference:.2g} (allowed {allowed:.2g}); use the same code and libraries on both machines"
        )


def _ask(folder: RunFolder, dataset: PackedDataset, split: str, indices: tuple[int, ...]) -> Tensor:
    """Return logits or features, float32 [N, D]."""
    config, result = folder.record.config, folder.result
    assert result is not None, "the caller asks complete runs"
    weights = folder.path / str(result.best_weights)
    images_NHWC = torch.from_numpy(np.ascontiguousarray(dataset.splits[split].images_NHWC[list(indices)]))
    if isinstance(config, TrainingConfig):
        return predict_logits(load_model(config, len(dataset.classes), dataset.image_size, weights), images_NHWC)
    assert isinstance(config, SimSiamConfig), "other kinds leave no weights"
    images = Images(images_NHWC, torch.zeros(len(images_NHWC), dtype=torch.int64))
    return evaluation_features(config, load_backbone(config, weights), images, dataset.classes).features_ND
