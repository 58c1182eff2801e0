"""Notes for people on a data set that was packed just now."""

from collections import Counter

import numpy as np

from model_code.data.cache import PackedDataset, list_datasets
from model_code.data.revisions import read_revision
from model_code.data.sources.images import name_some
from model_code.settings import Settings
from model_code.training.run_folder import list_finished

# Classes with fewer learned images are named.
_FEW_IMAGES = 5


def list_notes(dataset: PackedDataset, settings: Settings) -> list[str]:
    """Return lines about few images, copies, equal data sets, and runs trained on other images of the name."""
    notes = []
    if train := dataset.splits.get("train"):
        counts_K = np.bincount(train.labels_N, minlength=len(dataset.classes))
        rare = [
            f"{name} ({count})" for name, count in zip(dataset.classes, counts_K, strict=True) if count < _FEW_IMAGES
        ]
        if rare:
            notes.append(f"fewer than {_FEW_IMAGES} training images: {name_some(rare)}")
    images = read_revision(f"{dataset.name}@{dataset.checksum}", settings.cache_dir).images
    copies = sum(count - 1 for count in Counter(image.pixels for image in images).values())
    if copies:
        copied = "1 image is a copy of another" if copies == 1 else f"{copies} images are copies of others"
        notes.append(f"{copied}: `darkroom data check {dataset.name}` lists them")
    summaries = list_datasets(settings.cache_dir)
    same = [one.name for one in summaries if one.checksum == dataset.checksum and one.name != dataset.name]
    if same:
        notes.append(f"the same images are packed as {name_some(same)}")
    outdated = sum(
        run.record.config.dataset == dataset.name and run.record.data_checksum != dataset.checksum
        for run in list_finished(settings.checkpoints_dir)
    )
    if outdated:
        runs = "1 finished run was" if outdated == 1 else f"{outdated} finished runs were"
        notes.append(
            f"{runs} trained on other images of this name and can be released only with those: "
            f"`darkroom data list {dataset.name}` shows the revisions"
        )
    return notes
