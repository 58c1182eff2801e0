"""Every setting that the four articles state, as data: what the recipes are compared with.

The comparison is `model_code.report.settings_page`, its result docs/settings.md.
"""

from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["code", "text", "table", "log", "repository", "nowhere"]
# In place of a value.
NOT_STATED = "not stated"


@dataclass(frozen=True)
class ArticleSetting:
    """One setting of one article.

    Attributes:
        letter: Article, A to D, as in `model_code.report.published`.
        recipes: Recipes that repeat the run.
        setting: Name in the recipe's config, such as `views.hue`; words for what the config has no setting for.
        stated: The article's value as the config has it, or words; `NOT_STATED` where the article does not.
        source: Where it is stated: the article's code, text, table or log; `repository` is the public code that the
            article runs without printing the value.
        ours: What we do, where the config has no such setting.
        remark: What else the article says, or what the value means.
        reason: Why ours differs, or how it was chosen; a departure without one is declared in the recipe's docstring.
        test: Test of `ours`, a file below tests/unit and its function; empty where nothing can be tested.
    """

    letter: str
    recipes: tuple[str, ...]
    setting: str
    stated: Any
    source: Source
    ours: str = ""
    remark: str = ""
    reason: str = ""
    test: str = ""


_RESNET = tuple(f"resnet18_cifar10_exp{number}" for number in ("", *range(2, 10)))
_DECAYED = ("resnet18_cifar10_exp6", "resnet18_cifar10_exp7", "resnet18_cifar10_exp8")
_SWIN = ("swin_cifar10_published",)
_CIFAR, _FOOD, _STEM = "simsiam_cifar10_article", "simsiam_food11", "simsiam_food11_cifar_stem"
_SIMSIAM, _BOTH_FOOD = (_CIFAR, _STEM, _FOOD), (_STEM, _FOOD)
_LARGE = "vit_l_16_imagenet_untrained"
_BATCH_256 = tuple(f"{name}_imagenet_untrained" for name in ("resnet50", "resnet101", "vit_b_16", "swin_t", "swin_s"))
_UNTRAINED = (*_BATCH_256, _LARGE)


def _same_for(letter: str, recipes: tuple[str, ...], *rows: tuple[Any, ...]) -> tuple[ArticleSetting, ...]:
    """Return rows of (setting, stated, source, remark) that some recipes share; the remark may be left out."""
    return tuple(
        ArticleSetting(letter, recipes, setting, stated, source, remark="".join(remark))
        for setting, stated, source, *remark in rows
    )


def _chosen(letter: str, recipes: tuple[str, ...], setting: str, reason: str) -> ArticleSetting:
    """Return a row of a setting that the article does not state."""
    return ArticleSetting(letter, recipes, setting, NOT_STATED, "nowhere", reason=reason)


def _done(
    letter: str,
    recipes: tuple[str, ...],
    what: str,
    stated: str,
    source: Source,
    ours: str,
    reason: str = "",
    test: str = "",
) -> ArticleSetting:
    """Return a row of what the config has no setting for."""
    return ArticleSetting(letter, recipes, what, stated, source, ours, reason=reason, test=test)


def _resnet_run(run: str, network: str, learning_rate: float, remark: str = "") -> tuple[ArticleSetting, ...]:
    rows = ("network", network, "table", remark), ("learning_rate", learning_rate, "table")
    return _same_for("A", (f"resnet18_cifar10_{run}",), *rows)


_USUAL = "the code takes it from an argument that is not printed; the usual value"
_POOL = (
    "the text removes the max-pool, the printed code keeps it: so does this recipe; those that end in _nopool do not"
)

RESNET_SETTINGS = (
    *_resnet_run("exp", "resnet18_torchvision", 0.01),
    *_resnet_run("exp2", "resnet18", 0.01),
    *_resnet_run("exp3", "resnet18_improved", 0.01, _POOL),
    *_resnet_run("exp4", "resnet18_improved", 0.1, _POOL),
    *_resnet_run("exp5", "resnet18_improved", 0.001, _POOL),
    *_resnet_run("exp6", "resnet18_improved", 0.01, _POOL),
    *_resnet_run("exp7", "resnet18_improved", 0.1, _POOL),
    *_resnet_run("exp8", "resnet18_improved", 0.001, _POOL),
    *_resnet_run("exp9", "resnet18_torchvision", 0.01),
    *_same_for(
        "A",
        ("resnet18_cifar10_exp9",),
        ("pretrained_weights", "torchvision", "code", "ImageNet's, last layer dropped"),
    ),
    *_same_for(
        "A",
        _DECAYED,
        ("schedule", "multistep", "text"),
        ("decay_points", (0.3, 0.6, 0.9), "text", "after epochs 30, 60 and 90 of 100"),
    ),
    _chosen("A", _DECAYED, "decay_factor", "PyTorch's default"),
    *_same_for(
        "A",
        tuple(name for name in _RESNET if name not in _DECAYED),
        ("decay_points", (), "table", "no decay"),
    ),
    *_same_for(
        "A",
        _RESNET,
        ("dataset", "cifar10", "text"),
        ("epochs", 100, "text"),
        ("optimizer", "sgd", "code"),
        ("is_nesterov", False, "code"),
        ("label_smoothing", 0.0, "code"),
        ("crop_padding_pixels", 4, "code"),
        ("crop_border", "black", "code"),
        ("has_flip", True, "code"),
        ("mean", (0.4914, 0.4822, 0.4465), "code"),
        ("std", (0.2023, 0.1994, 0.2010), "code"),
        ("validation_fraction", 0.2, "code"),
        ("split_seed", 42, "code"),
        ("kept_epoch", "best", "code", "the last epoch's weights are saved beside it, as in the article"),
    ),
    _chosen("A", _RESNET, "momentum", _USUAL),
    _chosen("A", _RESNET, "weight_decay", _USUAL),
    _chosen("A", _RESNET, "batch_size", "the data loaders are not printed; the usual value"),
    _chosen("A", _RESNET, "seed", "the code sets one that is not printed"),
    _done(
        "A",
        _RESNET,
        "best checkpoint",
        "only once its accuracy is above 0.7",
        "code",
        "from the first epoch on",
        "every run has one; the same where a run gets above 0.7",
        "training/test_fit.py::test_best_and_last_files_hold_the_weights_of_their_epochs",
    ),
    _done(
        "A",
        _RESNET,
        "split",
        "random.sample; for validation then pop, which fails after 189 images",
        "code",
        "a seeded permutation, stratified and disjoint",
        "run without the failure, the printed code would put training images into the validation set",
        "data/test_splits.py::test_split_is_disjoint_covers_everything_and_keeps_proportions",
    ),
    _done(
        "A",
        _RESNET,
        "images of the reported figure",
        "those that chose the epoch",
        "code",
        "those, and the test images apart",
        "a figure on the images that chose the epoch is too high",
        "training/test_training_images.py::test_training_and_validation_share_no_image",
    ),
    _done(
        "A",
        _RESNET,
        "validation loss and accuracy",
        "sum of batch means / images; mean of batch means",
        "code",
        "means over images",
        "a last batch of another size has another weight",
        "evaluation/test_classification_metrics.py::test_loss_is_the_mean_cross_entropy",
    ),
    _done(
        "A",
        _RESNET,
        "F1",
        "micro",
        "code",
        "macro",
        "micro F1 is the accuracy, as the article notes itself",
        "evaluation/test_classification_metrics.py::test_against_sklearn",
    ),
)

SWIN_SETTINGS = (
    *_same_for(
        "B",
        _SWIN,
        ("dataset", "cifar10", "text"),
        ("network", "swin_cifar", "code", "patch 2, channels 192, depths 2/6/2, heads 3/6/12, window 7, MLP ratio 1"),
        ("epochs", 20, "log", "text and code say 10"),
        ("batch_size", 64, "log", "781 steps an epoch"),
        ("optimizer", "adam", "code", "the text says SGD with momentum"),
        ("learning_rate", 1e-4, "code"),
        ("adam_betas", (0.5, 0.999), "code"),
        ("weight_decay", 0.0, "code", "Adam's default"),
        ("schedule", "plateau", "code"),
        ("decay_factor", 0.94, "code", "the text says 0.5"),
        ("plateau_watches", "train", "text", "as the printed rate, which never moves"),
        ("patience_epochs", 1, "code", "the text says 5"),
        ("min_learning_rate", 1e-6, "code", "the text says 1e-5"),
        ("label_smoothing", 0.0, "code"),
        ("mean", (0.5, 0.5, 0.5), "code"),
        ("std", (0.5, 0.5, 0.5), "code"),
        ("kept_epoch", "last", "code", "the network in memory after epoch 20 is the one that is tested"),
        ("validation_fraction", 0.0, "log"),
    ),
    _chosen("B", _SWIN, "crop_padding_pixels", "no augmentation is stated; the conclusion advises some"),
    _chosen("B", _SWIN, "has_flip", "no augmentation is stated; the conclusion advises some"),
    _done(
        "B",
        _SWIN,
        "initial weights",
        "linear layers truncated normal (0.02), biases 0, LayerNorm 1 and 0",
        "code",
        "linear layers truncated normal (0.02), biases 0, LayerNorm 1 and 0",
        test="models/test_swin.py::test_initial_weights",
    ),
    _done(
        "B",
        _SWIN,
        "dropout and drop path",
        "none",
        "log",
        "none",
        test="models/test_swin.py::test_the_published_network_drops_nothing",
    ),
    _done("B", _SWIN, "test images", "9,984 (156 batches of 64)", "log", "10,000", "the text says 10,000"),
    _done(
        "B",
        _SWIN,
        "windows of the last stage",
        "shifted in every second block",
        "code",
        "not shifted",
        "one window covers its map; the paper's code does not shift there",
        "models/test_swin.py::test_shift_only_where_the_map_has_more_than_one_window",
    ),
)

_REPOSITORY_HEAD = "the article prints the name of the variable only"
_INFERRED = "inferred: the article says that it changed only data, batch and size"

SIMSIAM_SETTINGS = (
    *_same_for(
        "C",
        _SIMSIAM,
        ("views.crop_area", (0.2, 1.0), "code"),
        ("views.crop_aspect", (3 / 4, 4 / 3), "code", "torchvision's default"),
        ("views.flip_probability", 0.5, "code"),
        ("views.jitter_probability", 0.8, "code"),
        ("views.brightness", 0.4, "code"),
        ("views.contrast", 0.4, "code"),
        ("views.saturation", 0.4, "code"),
        ("views.hue", 0.1, "code"),
        ("views.grayscale_probability", 0.2, "code"),
        ("views.blur_probability", 0.5, "code", "0 for views of 32 pixels and less, there as here"),
        ("views.blur_sigma_pixels", (0.1, 2.0), "code"),
        ("mean", (0.485, 0.456, 0.406), "code"),
        ("std", (0.229, 0.224, 0.225), "code"),
        ("evaluation_enlargement", 8 / 7, "code", "36 -> 32 or 256 -> 224 pixels"),
        ("knn_neighbours", 200, "code", "a smaller bank votes as a whole, there as here"),
        ("knn_temperature", 0.1, "code"),
        ("momentum", 0.9, "repository"),
        ("embedding_width", 2048, "repository"),
        ("bottleneck_width", 512, "repository"),
        ("linear.base_learning_rate", 30.0, "repository", _REPOSITORY_HEAD),
        ("linear.weight_decay", 0.0, "repository", _REPOSITORY_HEAD),
        ("linear.momentum", 0.9, "repository", _REPOSITORY_HEAD),
        ("linear.batch_size", 256, "repository", _REPOSITORY_HEAD),
        ("linear.epochs", 100, "repository", _REPOSITORY_HEAD),
        ("linear.warmup_epochs", 0, "repository"),
        ("linear_crop_area", (0.08, 1.0), "repository", "cropped and mirrored anew in each epoch"),
    ),
    *_same_for(
        "C",
        (_CIFAR,),
        ("dataset", "cifar10", "text"),
        ("views.image_size", 32, "text"),
        ("network", "resnet18_improved_nopool", "repository", "the text says ResNet-18"),
        ("projector_layers", 2, "repository", "the text describes three layers, the CIFAR-10 file has two"),
        ("epochs", 800, "repository"),
        ("batch_size", 512, "text"),
        ("validation_fraction", 0.0, "code"),
    ),
    *_same_for(
        "C",
        _BOTH_FOOD,
        ("dataset", "food11", "text"),
        ("views.image_size", 224, "text"),
        ("network", "resnet18_improved_nopool", "repository", _INFERRED),
        ("projector_layers", 2, "repository", _INFERRED),
        ("batch_size", 32, "text"),
    ),
    _chosen(
        "C",
        _BOTH_FOOD,
        "epochs",
        "the article says 60 hours, then 100 epochs more without gain, which simsiam_food11_continued repeats",
    ),
    *(
        row
        for recipes, remark in (((_CIFAR,), ""), (_BOTH_FOOD, _INFERRED))
        for row in _same_for(
            "C",
            recipes,
            ("base_learning_rate", 0.03, "repository", remark),
            ("weight_decay", 5e-4, "repository", remark),
            ("warmup_epochs", 10, "repository", remark),
            ("monitor_every_epochs", 1, "repository"),
        )
    ),
    _done(
        "C",
        _SIMSIAM,
        "optimiser",
        "SGD",
        "repository",
        "SGD",
        test="training/test_pretraining.py::test_the_optimiser_is_sgd_with_momentum",
    ),
    _done(
        "C",
        _SIMSIAM,
        "learning rate of the predictor",
        "constant",
        "repository",
        "constant",
        test="training/test_pretraining.py::test_the_predictor_keeps_its_learning_rate",
    ),
    _done(
        "C",
        _SIMSIAM,
        "optimiser of the linear layer",
        "SGD",
        "repository",
        "SGD",
        test="training/test_probe.py::test_linear_evaluation_is_as_written_down",
    ),
    _done(
        "C",
        _BOTH_FOOD,
        "kernel of the blur",
        "size // 20 * 2 + 1 pixels",
        "code",
        "size // 20 * 2 + 1 pixels",
        test="data/test_resampling.py::test_blur_equals_torchvision_image_by_image",
    ),
    _done(
        "C",
        (_CIFAR, _STEM),
        "interpolation of these crops",
        "bicubic",
        "repository",
        "bilinear, antialiased",
        "the one that views and supervised crops have here",
        "data/test_resampling.py::test_resized_crops_equal_torchvision_image_by_image",
    ),
    _done(
        "C",
        _BOTH_FOOD,
        "images that crops are taken from",
        "the files",
        "code",
        "the middle squares, packed at 256 pixels",
        "packed once; less than half of the sharpness, 4 % of a crop (docs/benchmarks.md)",
        "data/test_packing.py::test_pixels_are_those_that_serving_decodes",
    ),
    _done(
        "C",
        _SIMSIAM,
        "last partial batch of the bank",
        "left out",
        "text",
        "counted",
        "every image counts once",
        "evaluation/test_knn.py::test_chunks_change_nothing_and_every_image_counts_once",
    ),
    _done(
        "C",
        _SIMSIAM,
        "accuracy of the linear layer",
        "mean of batch means",
        "code",
        "share of the images",
        "every image counts once",
        "training/test_probe.py::test_linear_evaluation_is_as_written_down",
    ),
    _done(
        "C",
        _SIMSIAM,
        "top-5 accuracy",
        "labels[:, 4], not measured",
        "text",
        "label among the five highest",
        "the fifth label alone is no top-5 accuracy",
        "evaluation/test_classification_metrics.py::test_top_5_by_hand_and_against_sklearn",
    ),
    _done(
        "C",
        ("resnet18_food11",),
        "all settings",
        "none, beside a figure of at most 60 %",
        "text",
        "our choice",
        "those of a usual supervised training",
    ),
    _done(
        "C",
        ("resnet18_food11_pseudo",),
        "semi-supervised training",
        "no settings, beside no visible gain",
        "text",
        "pseudo-labels from 0.95 on",
        "the simplest method, with the settings of the supervised baseline",
    ),
)

UNTRAINED_SETTINGS = (
    *(
        row
        for recipe, network, parameters in (
            ("resnet50", "resnet50", "25.56 M"),
            ("resnet101", "resnet101", "44.55 M"),
            ("vit_b_16", "vit_b_16", "86.57 M"),
            ("vit_l_16", "vit_l_16", "304.33 M"),
            ("swin_t", "swin_t_torchvision", "28.29 M"),
            ("swin_s", "swin_s_torchvision", "49.61 M"),
        )
        for row in _same_for(
            "D", (f"{recipe}_imagenet_untrained",), ("network", network, "table", f"{parameters} parameters")
        )
    ),
    *_same_for(
        "D",
        _UNTRAINED,
        ("dataset", "imagenet-val", "text"),
        ("seed", 2022, "code", "two more seeds beside it"),
        ("initialization", "own", "text", "torchvision's"),
        ("image_size", 224, "code"),
        ("crop_area", (0.2, 1.0), "code"),
        (
            "mean",
            (0.485, 0.456, 0.406),
            "code",
            "the author wonders whether to normalise: recipes that end in _raw do not",
        ),
        ("std", (0.229, 0.224, 0.225), "code"),
        ("limit_test", None, "table", "all 50,000 images"),
    ),
    *_same_for("D", _BATCH_256, ("batch_size", 256, "table")),
    *_same_for("D", (_LARGE,), ("batch_size", 64, "table", "a comment in the code says 16")),
    _done(
        "D",
        _UNTRAINED,
        "images that crops are taken from",
        "the files",
        "code",
        "packed at 256 pixels",
        "packed once",
        "data/test_packing.py::test_pixels_are_those_that_serving_decodes",
    ),
    _done(
        "D", _UNTRAINED, "devices", "two RTX 3090", "text", "one", "answers do not depend on it; times are not compared"
    ),
    _done(
        "D",
        _UNTRAINED,
        "gradients",
        "prepared, not used",
        "code",
        "left out",
        "answers are the same",
        "evaluation/test_untrained.py::test_each_batch_goes_through_the_view_as_uint8_and_is_told",
    ),
    _done(
        "D",
        _UNTRAINED,
        "order of the images",
        "shuffled",
        "code",
        "as packed",
        "changes the crops only",
        "evaluation/test_untrained.py::test_a_memory_map_is_read_batch_by_batch_and_not_written",
    ),
)

ARTICLE_SETTINGS = (*RESNET_SETTINGS, *SWIN_SETTINGS, *SIMSIAM_SETTINGS, *UNTRAINED_SETTINGS)
