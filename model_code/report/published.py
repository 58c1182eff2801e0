"""Every figure that the four articles report, as data: what the report puts ours beside.

The main accuracy of each run stands with its recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from model_code.recipes.catalog import get_recipe

Unit = Literal["fraction", "count", "seconds"]

IMAGENET_IMAGES = 50_000
# 156 whole batches of 64, without the partial batch at the end of the 10,000.
SWIN_TEST_IMAGES = 156 * 64
# 20 % of the 50,000 training images.
CIFAR10_VALIDATION_IMAGES = 10_000
# Seconds of each epoch, training and validation; the figure is their mean.
SECONDS_PER_EPOCH = "train/seconds"


@dataclass(frozen=True)
class PublishedFigure:
    """One figure of an article and where ours is found.

    Attributes:
        label: What was measured, in the article's words where it names it.
        recipe: Ours that repeats it.
        metric: MLflow metric that holds ours, or `SECONDS_PER_EPOCH`.
        value: As published: a fraction in [0, 1], a count of images, or seconds.
        unit: Unit of `value`.
        epoch: Epoch of the figure, counted from 1; None for the run's final figure.
        class_name: Class of a per-class accuracy; None for a figure over all images.
        images: Images that it was measured on, for one class those of all classes; None where the article does
            not say.
        qualifier: Before the value: "at most".
        remark: How the two differ, or what the article says beside the figure.
        is_same_work: True if ours measures the same work; without that no difference is shown.
    """

    label: str
    recipe: str
    metric: str
    value: float
    unit: Unit = "fraction"
    epoch: int | None = None
    class_name: str | None = None
    images: int | None = None
    qualifier: str = ""
    remark: str = ""
    is_same_work: bool = True


@dataclass(frozen=True)
class Article:
    """One article: its letter, title, a sentence about how its figures were made, and the figures.

    Attributes:
        letter: A to D.
        title: What it is about.
        remark: What holds for every figure of it.
        figures: In the article's order.
        further_metric: A second MLflow metric of ours to show beside each figure; None for none.
    """

    letter: str
    title: str
    remark: str
    figures: tuple[PublishedFigure, ...]
    further_metric: str | None = None


def _get_accuracy(recipe: str) -> float:
    accuracy = get_recipe(recipe).published_accuracy
    assert accuracy is not None, "only recipes of the articles are named here"
    return accuracy


def _resnet18(run: str, what: str) -> PublishedFigure:
    recipe = f"resnet18_cifar10_{run}"
    return PublishedFigure(
        f"{run}: {what}",
        recipe,
        "validation/best_accuracy",
        _get_accuracy(recipe),
        images=CIFAR10_VALIDATION_IMAGES,
    )


def _swin(
    label: str, metric: str, accuracy: float, epoch: int | None = None, remark: str = "", images: int | None = None
) -> PublishedFigure:
    return PublishedFigure(label, "swin_cifar10_published", metric, accuracy, epoch=epoch, remark=remark, images=images)


def _swin_class(name: str, accuracy: float) -> PublishedFigure:
    return PublishedFigure(
        f"class {name}",
        "swin_cifar10_published",
        "test/accuracy",
        accuracy,
        class_name=name,
        images=SWIN_TEST_IMAGES,
    )


def _untrained(network: str, seconds: float, remark: str) -> tuple[PublishedFigure, PublishedFigure]:
    recipe = f"{network}_imagenet_untrained"
    return (
        PublishedFigure(
            f"{network}: right",
            recipe,
            "validation/correct",
            round(_get_accuracy(recipe) * IMAGENET_IMAGES),
            "count",
            images=IMAGENET_IMAGES,
            remark=remark,
        ),
        PublishedFigure(
            f"{network}: time",
            recipe,
            "validation/seconds",
            seconds,
            "seconds",
            images=IMAGENET_IMAGES,
            is_same_work=False,
        ),
    )


_ON_VALIDATION = "the article measured on the test images, ours on the validation images"

ARTICLES = (
    Article(
        "A",
        "ResNet-18 on CIFAR-10",
        "Validation accuracy of the best epoch, chosen on the same images, after 100 epochs. Momentum, weight decay "
        "and batch size are not in the article and our choice. Ours on the test images stands apart: they were "
        "looked at once.",
        (
            _resnet18("exp", "torchvision's network, lr 0.01"),
            _resnet18("exp2", "own network, lr 0.01"),
            _resnet18("exp3", "own, improved stem, lr 0.01"),
            _resnet18("exp4", "own, improved stem, lr 0.1"),
            _resnet18("exp5", "own, improved stem, lr 0.001"),
            _resnet18("exp6", "own, improved stem, lr 0.01, decay"),
            _resnet18("exp7", "own, improved stem, lr 0.1, decay"),
            _resnet18("exp8", "own, improved stem, lr 0.001, decay"),
            _resnet18("exp9", "torchvision's from ImageNet weights, lr 0.01"),
        ),
        further_metric="test/accuracy",
    ),
    Article(
        "B",
        "Swin from scratch",
        "A small Swin Transformer on CIFAR-10, Adam, 20 epochs, no augmentation stated. The article follows the test "
        "images and measures the network of epoch 20; so does ours, but it follows 20 % of the training images, which "
        "are not learned from. The article says 10,000 test images; its log shows 156 batches of 64, which are 9,984. "
        "Ours are all that the data set has.",
        (
            _swin("epoch 1, training images", "train/accuracy", 0.4309, 1),
            _swin("epoch 1, held-out images", "validation/accuracy", 0.5330, 1, _ON_VALIDATION, SWIN_TEST_IMAGES),
            _swin("epoch 20, training images", "train/accuracy", 0.9765, 20),
            _swin(
                "epoch 20, held-out images",
                "validation/accuracy",
                _get_accuracy("swin_cifar10_published"),
                20,
                _ON_VALIDATION,
                SWIN_TEST_IMAGES,
            ),
            _swin("final, test images", "test/accuracy", 0.6775, images=SWIN_TEST_IMAGES),
            _swin_class("airplane", 0.7111),
            _swin_class("automobile", 0.6937),
            _swin_class("bird", 0.5646),
            _swin_class("cat", 0.5141),
            _swin_class("deer", 0.6276),
            _swin_class("dog", 0.6012),
            _swin_class("frog", 0.7257),
            _swin_class("horse", 0.7360),
            _swin_class("ship", 0.8418),
            _swin_class("truck", 0.7545),
            PublishedFigure(
                "time of an epoch",
                "swin_cifar10_published",
                SECONDS_PER_EPOCH,
                95,
                "seconds",
                qualifier="about",
                remark="on the author's GPU; ours is the mean over the epochs, each with its validation",
            ),
        ),
    ),
    Article(
        "C",
        "SimSiam",
        "Food-11: pretrained on the unlabelled images, the labelled ones are the memory bank of the kNN classifier, "
        "the validation images are what is measured. 224 pixels, batch 32, more than 60 hours.",
        (
            PublishedFigure(
                "supervised baseline",
                "resnet18_food11",
                "validation/best_accuracy",
                0.60,
                qualifier="at most",
            ),
            PublishedFigure(
                "SimSiam, kNN on its features",
                "simsiam_food11_cifar_stem",
                "validation/best_accuracy",
                _get_accuracy("simsiam_food11_cifar_stem"),
                remark="kNN accuracy of the best monitored epoch; most likely the article's settings",
            ),
        ),
    ),
    Article(
        "D",
        "Untrained networks",
        "The 50,000 validation images of ImageNet-1k, 1000 classes, torchvision's default initialisation, evaluation "
        "mode, random crops, two RTX 3090. Ours here are the runs with normalisation; those without stand in the table "
        "of untrained networks. The times are not of the same work: ours reads packed images of 256 pixels from "
        "memory, the article decoded files, on two GPUs.",
        (
            *_untrained("resnet50", 35.485, "25.56 M parameters, batch 256"),
            *_untrained("resnet101", 45.556, "44.55 M parameters, batch 256"),
            *_untrained("vit_b_16", 83.587, "86.57 M parameters, batch 256"),
            *_untrained("vit_l_16", 370.091, "304.33 M parameters, batch 64"),
            *_untrained("swin_t", 44.616, "28.29 M parameters, batch 256"),
            *_untrained("swin_s", 67.754, "49.61 M parameters, batch 256"),
        ),
    ),
)


# The training log of Swin from scratch: training loss and accuracy, then those of the test images, epoch by epoch.
_SWIN_EPOCHS = (
    (1.554635, 0.4309, 1.281645, 0.533),
    (1.153438, 0.5834, 1.130587, 0.5858),
    (0.958730, 0.6569, 1.057654, 0.627),
    (0.806689, 0.7137, 0.939146, 0.6678),
    (0.670009, 0.7584, 0.962207, 0.6716),
    (0.539732, 0.809, 0.965498, 0.6738),
    (0.406309, 0.8564, 1.050459, 0.6744),
    (0.298231, 0.8937, 1.093418, 0.6748),
    (0.212923, 0.9247, 1.221283, 0.6704),
    (0.168813, 0.942, 1.330179, 0.6672),
    (0.136068, 0.9525, 1.398269, 0.6711),
    (0.123808, 0.9568, 1.483130, 0.6662),
    (0.104265, 0.9637, 1.601849, 0.6641),
    (0.101227, 0.964, 1.542168, 0.6647),
    (0.084963, 0.9711, 1.613661, 0.6688),
    (0.086780, 0.9694, 1.622345, 0.6706),
    (0.079616, 0.9733, 1.660496, 0.6659),
    (0.077545, 0.9728, 1.690717, 0.6657),
    (0.079376, 0.9717, 1.608011, 0.677),
    (0.064538, 0.9765, 1.654503, 0.677),
)
_SWIN_METRICS = ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy")
# Recipe -> metric of ours -> published value of each epoch, from the first on.
PUBLISHED_CURVES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "swin_cifar10_published": dict(zip(_SWIN_METRICS, zip(*_SWIN_EPOCHS, strict=True), strict=True)),
}


def get_published_classes(recipe: str) -> dict[str, float]:
    """Return the published accuracy of each class of a recipe's run, as fractions; empty if there is none."""
    figures = (figure for article in ARTICLES for figure in article.figures)
    return {figure.class_name: figure.value for figure in figures if figure.recipe == recipe and figure.class_name}


def list_published_recipes() -> list[str]:
    """Return the recipes that stand beside a published figure, each once, in the articles' order."""
    return list(dict.fromkeys(figure.recipe for article in ARTICLES for figure in article.figures))
