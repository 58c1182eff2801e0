"""Swin Transformer from scratch on CIFAR-10: the published run, the same family with modern settings, and Swin-T."""

from model_code.recipes.catalog import recipe
from model_code.training.config import TrainingConfig
from model_code.training.epoch_config import EngineSettings
from model_code.training.run_config import override

# Published against modern settings.
COMPARED_SEEDS = (0, 1, 2)


@recipe(published_accuracy=0.677, seeds=COMPARED_SEEDS, smoke={"limit_train": 160, "limit_test": 100})
def swin_cifar10_published() -> TrainingConfig:
    """Swin from scratch as published: Adam, no augmentation, 20 epochs.

    The article's text and code contradict each other: the text has SGD with momentum, a factor of 0.5 after 5 epochs in
    which the training loss does not fall, at least 1e-5, and 10 epochs; the code Adam, 0.94 after 1, at least 1e-6, and
    10 epochs. The log has 20 epochs and a rate that never moves, as it does only if the training loss is watched.

    Published: on the test images after epoch 20, whose network is the one that is tested.
    Ours: not yet measured.
    Departures: validation_fraction 0.2: 20 % of the training images are not learned from and followed after each
        epoch, where the article follows the test images; all test images are labelled, where the article's log shows
        156 batches of 64, 9,984 images; in the last stage, where one window covers the map, windows are not
        shifted (as in the paper's code).
    """
    return TrainingConfig(
        network="swin_cifar",
        epochs=20,
        batch_size=64,
        optimizer="adam",
        learning_rate=1e-4,
        adam_betas=(0.5, 0.999),
        weight_decay=0,
        schedule="plateau",
        decay_factor=0.94,
        plateau_watches="train",
        patience_epochs=1,
        min_learning_rate=1e-6,
        crop_padding_pixels=0,
        has_flip=False,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        kept_epoch="last",
    )


@recipe(seeds=COMPARED_SEEDS, smoke={"limit_train": 320, "limit_test": 100, "warmup_epochs": 1})
def swin_cifar10_modern() -> TrainingConfig:
    """The same family with window 4, AdamW, crop and flip, CutMix, label smoothing and drop-path.

    Published: no figure of its own; 0.9446 in 100 epochs is reported for another small Swin with AutoAugment, MixUp and
        erasing on top (Lee et al. 2021, arXiv:2112.13492).
    Ours: not yet measured.
    Departures: crop, flip and CutMix stand in for AutoAugment, MixUp and erasing.
    """
    return TrainingConfig(
        network="swin_cifar_window4",
        epochs=100,
        batch_size=128,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=10,
        cutmix_alpha=1.0,
        label_smoothing=0.1,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        engine=EngineSettings(precision="auto"),
    )


@recipe(smoke={"limit_train": 320, "limit_test": 100, "warmup_epochs": 1, "network": "swin_cifar_window4"})
def swin_t_cifar10_enlarged() -> TrainingConfig:
    """Swin-T on CIFAR-10 enlarged to 224 pixels, with the settings of swin_cifar10_modern: the article's own advice.

    Published: no figure of its own; the article advises Swin-T at 224 pixels and more augmentation, and does not try.
    Ours: not yet measured.
    Departures: the article names no settings; learning_rate 5e-4 in place of 1e-3, for a deeper network.
    """
    return override(swin_cifar10_modern(), {"network": "swin_t_enlarged", "learning_rate": 5e-4})
