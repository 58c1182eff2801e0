"""The questions that the articles leave open, as data: why each is open, its arms and what is compared.

A contrast is treatment minus control. Recipes are named, not imported: one that does not exist yet is "not run".
"""

from dataclasses import dataclass

from model_code.report.collection import EARLY_METRIC


@dataclass(frozen=True)
class Arm:
    """One recipe of a question.

    Attributes:
        label: Its name, for people.
        recipe: Its name.
    """

    label: str
    recipe: str


@dataclass(frozen=True)
class Contrast:
    """Treatment minus control, on runs of the same seed and budget.

    Attributes:
        label: Meaning of the difference.
        treatment: Recipe.
        treatment_metric: MLflow metric of it, a fraction.
        control: Recipe; the same one where only the metric differs.
        control_metric: MLflow metric of it, a fraction.
    """

    label: str
    treatment: str
    treatment_metric: str
    control: str
    control_metric: str


@dataclass(frozen=True)
class Question:
    """One open question.

    Attributes:
        key: Short name, part of file names and anchors.
        text: The question.
        reason: Why it is open.
        arms: Recipes that answer it.
        metrics: MLflow metrics to show of every arm.
        contrasts: Comparisons that decide it.
        is_descriptive: Differences are shown and no verdict is given.
        curve: Metric whose curves are drawn in one chart, one line for each arm; empty for none.
        caution: Conditions that the comparison does not hold equal; empty for none.
    """

    key: str
    text: str
    reason: str
    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    is_descriptive: bool = False
    curve: str = "validation/accuracy"
    caution: str = ""


TEST = "test/accuracy"
VALIDATION = "validation/best_accuracy"
HEAD, KNN = "test/untrained_head_accuracy", "test/knn_accuracy"
LINEAR, MLP = "test/linear_accuracy", "test/mlp_accuracy"
AUGMENTED_LINEAR = "test/augmented_linear_accuracy"
PIXELS = "pixels_cifar10_random"


def _on(metric: str, label: str, treatment: str, control: str) -> Contrast:
    return Contrast(label, treatment, metric, control, metric)


def _probes(network: str, recipe: str, pixels: str = PIXELS) -> tuple[Contrast, ...]:
    return (
        Contrast(f"{network}: MLP probe over untrained head", recipe, MLP, recipe, HEAD),
        Contrast(f"{network}: linear probe over untrained head", recipe, LINEAR, recipe, HEAD),
        _on(LINEAR, f"{network}: linear probe over that of raw pixels", recipe, pixels),
        _on(MLP, f"{network}: MLP probe over that of raw pixels", recipe, pixels),
    )


_OWN, _OWN_FAN_OUT = "resnet18_cifar10_exp2", "resnet18_cifar10_exp2_fan_out"
_BUILT_IN_DEFAULT, _BUILT_IN = "resnet18_cifar10_exp_default", "resnet18_cifar10_exp"
_RANDOM = (
    Arm("ResNet-18", "resnet18_cifar10_random"),
    Arm("ResNet-18, BatchNorm calibrated", "resnet18_cifar10_random_calibrated"),
    Arm("AlexNet", "alexnet_cifar10_random"),
    Arm("ResNet-50", "resnet50_cifar10_random"),
    Arm("ResNet-50, BatchNorm calibrated", "resnet50_cifar10_random_calibrated"),
    Arm("ViT-B/16", "vit_b_16_cifar10_random"),
    Arm("Swin-T", "swin_t_cifar10_random"),
)
_IMAGENET_PIXELS = "pixels_imagenet_random"
_RANDOM_ON_IMAGENET = (
    Arm("AlexNet", "alexnet_imagenet_random"),
    Arm("ResNet-50", "resnet50_imagenet_random"),
    Arm("ResNet-50, BatchNorm calibrated", "resnet50_imagenet_random_calibrated"),
)
_GAUSSIAN = ("all weights Gaussian", "_gaussian")
_INITIALISED = (
    ("AlexNet", "alexnet", (_GAUSSIAN,)),
    ("ResNet-50", "resnet50", (_GAUSSIAN,)),
    ("ViT-B/16", "vit_b_16", (("last layer Gaussian", "_head"), _GAUSSIAN)),
    ("Swin-T", "swin_t", (_GAUSSIAN,)),
)
_UNTRAINED = ("resnet50", "resnet101", "vit_b_16", "vit_l_16", "swin_t", "swin_s")

QUESTIONS = (
    Question(
        "initialisation",
        "Does the own ResNet-18 beat torchvision's because of its initialisation?",
        "The article reports 84.6 % against 82.7 % and gives no reason. The two networks have the same layers; what is "
        "known to differ is how their weights start: PyTorch's default against Kaiming-normal fan-out.",
        (
            Arm("own, PyTorch's default", _OWN),
            Arm("own, torchvision's fan-out", _OWN_FAN_OUT),
            Arm("torchvision's, PyTorch's default", _BUILT_IN_DEFAULT),
            Arm("torchvision's, its own fan-out", _BUILT_IN),
        ),
        (TEST, VALIDATION),
        (
            _on(TEST, "default over fan-out, own network", _OWN, _OWN_FAN_OUT),
            _on(TEST, "default over fan-out, torchvision's network", _BUILT_IN_DEFAULT, _BUILT_IN),
            _on(TEST, "own over torchvision's, both default", _OWN, _BUILT_IN_DEFAULT),
            _on(TEST, "own over torchvision's, both fan-out", _OWN_FAN_OUT, _BUILT_IN),
            _on(TEST, "as published: own default over torchvision's fan-out", _OWN, _BUILT_IN),
        ),
    ),
    Question(
        "decay",
        "Does lowering the learning rate in three steps help at every rate?",
        "The article says that it does, and its own table denies it at a rate of 0.001: 89.7 % without, 89.3 % with.",
        tuple(
            Arm(f"rate {rate:g}, {how}", f"resnet18_cifar10_{recipe}")
            for rate, recipes in ((0.1, ("exp4", "exp7")), (0.01, ("exp3", "exp6")), (0.001, ("exp5", "exp8")))
            for how, recipe in zip(("constant", "lowered"), recipes, strict=True)
        ),
        (TEST, VALIDATION),
        tuple(
            _on(TEST, f"rate {rate:g}: lowered over constant", f"resnet18_cifar10_{low}", f"resnet18_cifar10_{same}")
            for rate, same, low in ((0.1, "exp4", "exp7"), (0.01, "exp3", "exp6"), (0.001, "exp5", "exp8"))
        ),
    ),
    Question(
        "stem",
        "What is the 3x3 stem worth?",
        "The article counts 9.2 points, against torchvision's network, whose weights also start differently.",
        (Arm("own, 3x3 stem", "resnet18_cifar10_exp3"), Arm("own, 7x7 stem", _OWN), Arm("torchvision's", _BUILT_IN)),
        (TEST, VALIDATION),
        (
            _on(TEST, "3x3 over 7x7, own network", "resnet18_cifar10_exp3", _OWN),
            _on(TEST, "as published: over torchvision's network", "resnet18_cifar10_exp3", _BUILT_IN),
        ),
    ),
    Question(
        "imagenet-weights",
        "Does a network that starts from ImageNet's weights learn faster and end better?",
        "The article reports three points more and a faster start, from one run of each; the 3x3 stem is worth more, "
        "6.2 points over the pretrained network.",
        (
            Arm("torchvision's, ImageNet weights", "resnet18_cifar10_exp9"),
            Arm("torchvision's, from scratch", _BUILT_IN),
            Arm("own, 3x3 stem, from scratch", "resnet18_cifar10_exp3"),
        ),
        (TEST, VALIDATION, EARLY_METRIC),
        (
            _on(EARLY_METRIC, "after a tenth of the epochs", "resnet18_cifar10_exp9", _BUILT_IN),
            _on(TEST, "at the end", "resnet18_cifar10_exp9", _BUILT_IN),
            _on(TEST, "3x3 stem over ImageNet weights", "resnet18_cifar10_exp3", "resnet18_cifar10_exp9"),
        ),
    ),
    Question(
        "max-pool",
        "What does the max-pool cost after the improved stem?",
        "The article's prose removes the max-pool, its printed code keeps it. Without it every later map has four "
        "times the pixels, at four times the work.",
        (
            Arm("exp3, with max-pool", "resnet18_cifar10_exp3"),
            Arm("exp3, without", "resnet18_cifar10_exp3_nopool"),
            Arm("exp6, with max-pool", "resnet18_cifar10_exp6"),
            Arm("exp6, without", "resnet18_cifar10_exp6_nopool"),
        ),
        (TEST, VALIDATION),
        (
            _on(TEST, "exp3: without over with", "resnet18_cifar10_exp3_nopool", "resnet18_cifar10_exp3"),
            _on(TEST, "exp6: without over with", "resnet18_cifar10_exp6_nopool", "resnet18_cifar10_exp6"),
        ),
    ),
    Question(
        "swin-settings",
        "Does the small Swin of the article overfit because of its settings?",
        "It ends at 97.65 % on its training images and 67.70 % on the test images. The article blames little data and "
        "advises augmentation and Swin-T at 224 pixels, and tries neither.",
        (
            Arm("as published", "swin_cifar10_published"),
            Arm("modern settings, window 4", "swin_cifar10_modern"),
            Arm("Swin-T, enlarged to 224 pixels", "swin_t_cifar10_enlarged"),
        ),
        (TEST, VALIDATION),
        (_on(TEST, "modern settings over those published", "swin_cifar10_modern", "swin_cifar10_published"),),
        caution="Network, augmentation, optimiser, epochs and the kept epoch differ together, as the table shows: the "
        "difference belongs to no single one.",
    ),
    Question(
        "random-features",
        "Do random, frozen networks carry information about the images?",
        "Deep Clustering (Caron et al. 2018) puts a random AlexNet at 12 % on ImageNet, the article finds chance. The "
        "paper trains an MLP on the frozen features, the article used the untrained head: here both, on CIFAR-10.",
        (Arm("raw pixels", PIXELS), *_RANDOM),
        (HEAD, KNN, LINEAR, MLP),
        (
            *(contrast for arm in _RANDOM for contrast in _probes(arm.label, arm.recipe)),
            *(
                _on(
                    LINEAR,
                    f"{label}: BatchNorm calibrated over default, linear probe",
                    f"{recipe}_calibrated",
                    recipe,
                )
                for label, recipe in (
                    ("ResNet-18", "resnet18_cifar10_random"),
                    ("ResNet-50", "resnet50_cifar10_random"),
                )
            ),
        ),
        curve="",
    ),
    Question(
        "random-features-imagenet",
        "Do random, frozen networks carry information about the images of ImageNet?",
        "The figures of the article and of Deep Clustering are on ImageNet: 12 % for an MLP on a random AlexNet, "
        "learned from 1.28 million images, against 0.1 % of chance. Here the probes have 40 images of each class.",
        (
            Arm("raw pixels", _IMAGENET_PIXELS),
            *_RANDOM_ON_IMAGENET,
        ),
        (HEAD, KNN, LINEAR, MLP),
        tuple(contrast for arm in _RANDOM_ON_IMAGENET for contrast in _probes(arm.label, arm.recipe, _IMAGENET_PIXELS)),
        curve="",
    ),
    Question(
        "normalisation",
        "Does normalising the images matter to an untrained network?",
        "The article's author wonders and does not try. Chance is 0.1 %, so there is little to gain.",
        tuple(
            Arm(f"{network}, {how}", f"{network}_imagenet_untrained{suffix}")
            for network in _UNTRAINED
            for how, suffix in (("normalised", ""), ("not normalised", "_raw"))
        ),
        ("validation/accuracy", "validation/top_class_share"),
        tuple(
            _on(
                "validation/accuracy",
                f"{network}: normalised over not",
                f"{network}_imagenet_untrained",
                f"{network}_imagenet_untrained_raw",
            )
            for network in _UNTRAINED
        ),
        curve="",
    ),
    Question(
        "untrained-initialisation",
        "Do untrained networks answer at chance because of how torchvision initialises them?",
        "The article suspects it and does not try. torchvision sets the last layer of a ViT to 0, which alone explains "
        "its single answer; Deep Clustering draws all weights from a Gaussian. Chance is 0.1 %. Each run is one "
        "evaluation, without a curve.",
        tuple(
            Arm(f"{label}, {how}", f"{network}_imagenet_untrained{suffix}")
            for label, network, arms in _INITIALISED
            for how, suffix in (("as torchvision starts it", ""), *arms)
        ),
        ("validation/accuracy", "validation/top_class_share"),
        tuple(
            _on(
                "validation/accuracy",
                f"{label}: {how} over torchvision's start",
                f"{network}_imagenet_untrained{suffix}",
                f"{network}_imagenet_untrained",
            )
            for label, network, arms in _INITIALISED
            for how, suffix in arms
        ),
        curve="",
    ),
    Question(
        "linear-augmentation",
        "Does the linear evaluation gain from images that are cropped and mirrored anew in each epoch?",
        "The article learns its linear layer so and reports none of its figures; features computed once cost one pass "
        "over the images instead of one for each epoch. One run of each: the differences are shown, not judged.",
        (Arm("CIFAR-10", "simsiam_cifar10_article"), Arm("Food-11, CIFAR stem", "simsiam_food11_cifar_stem")),
        (LINEAR, AUGMENTED_LINEAR, KNN),
        tuple(
            Contrast(
                f"{label}, {split} images",
                recipe,
                f"{split}/augmented_linear_accuracy",
                recipe,
                f"{split}/linear_accuracy",
            )
            for label, recipe, split in (
                ("CIFAR-10", "simsiam_cifar10_article", "test"),
                ("Food-11", "simsiam_food11_cifar_stem", "test"),
                ("Food-11", "simsiam_food11_cifar_stem", "validation"),
            )
        ),
        is_descriptive=True,
        curve="",
    ),
    Question(
        "pretraining",
        "Does pretraining with SimSiam help a classifier that is then trained on the labels?",
        "The article compares kNN on SimSiam's features with a supervised network, which tells nothing about "
        "fine-tuning.",
        (
            Arm("Food-11, pretrained and fine-tuned", "simsiam_food11_finetuned"),
            Arm("Food-11, from scratch", "resnet18_food11"),
            Arm("Food-10, pretrained and fine-tuned", "simsiam_food10_finetuned"),
            Arm("Food-10, from scratch", "resnet18_food10"),
            Arm("CIFAR-10, pretrained and fine-tuned", "simsiam_cifar10_finetuned"),
            Arm("CIFAR-10, from scratch", "resnet18_cifar10_exp6_nopool"),
        ),
        (TEST, VALIDATION),
        (
            _on(TEST, "Food-11, test images", "simsiam_food11_finetuned", "resnet18_food11"),
            _on(VALIDATION, "Food-11, validation images", "simsiam_food11_finetuned", "resnet18_food11"),
            _on(TEST, "Food-10, test images", "simsiam_food10_finetuned", "resnet18_food10"),
            _on(TEST, "CIFAR-10, test images", "simsiam_cifar10_finetuned", "resnet18_cifar10_exp6_nopool"),
        ),
        caution="The epochs of the pretraining come on top of the fine-tuned network's: equal in labels, not in "
        "computation. Fair as to the training on labels only where the table shows no setting that differs but the "
        "weights it starts from. All seeds start from one pretrained backbone, so that the interval holds the spread "
        "of fine-tuning only, not that of pretraining; runs that started from different ones are marked.",
    ),
    Question(
        "pseudo-labels",
        "Do pseudo-labels bring less than SimSiam on Food-11?",
        "The article puts supervised training at 60 % at most, sees no gain from semi-supervised learning, whose "
        "settings it does not give, and reports 71 % for kNN on SimSiam's features.",
        (
            Arm("supervised", "resnet18_food11"),
            Arm("pseudo-labels", "resnet18_food11_pseudo"),
            Arm("SimSiam, kNN", "simsiam_food11"),
            Arm("SimSiam, fine-tuned", "simsiam_food11_finetuned"),
        ),
        (VALIDATION, TEST),
        (
            _on(VALIDATION, "pseudo-labels over supervised", "resnet18_food11_pseudo", "resnet18_food11"),
            _on(TEST, "pseudo-labels over supervised, test images", "resnet18_food11_pseudo", "resnet18_food11"),
            _on(
                VALIDATION,
                "SimSiam, fine-tuned, over pseudo-labels",
                "simsiam_food11_finetuned",
                "resnet18_food11_pseudo",
            ),
        ),
        caution="Equal in labelled images, not in computation: the run with pseudo-labels goes on from the supervised "
        "one for as many epochs again, and learns from more images in each; SimSiam's epochs come on top of the "
        "fine-tuned network's. The validation images choose the epoch of every arm. SimSiam is pretrained with one "
        "seed: its kNN stands in the table and is not judged.",
    ),
    Question(
        "more-epochs",
        "Do 100 more epochs of SimSiam raise the kNN accuracy on Food-11?",
        "The article trained for 100 epochs more and saw no gain; it takes 71 % for the limit. One run of each: the "
        "difference is shown, not judged.",
        (
            Arm("200 epochs", "simsiam_food11"),
            Arm("100 more, from its best backbone", "simsiam_food11_continued"),
        ),
        (VALIDATION, "validation/untrained_knn_accuracy", KNN),
        (
            _on(VALIDATION, "validation images", "simsiam_food11_continued", "simsiam_food11"),
            _on(KNN, "test images", "simsiam_food11_continued", "simsiam_food11"),
        ),
        is_descriptive=True,
        curve="validation/knn_accuracy",
        caution="Projector, predictor and the cosine of the learning rate start anew. On the validation images the "
        "best of more epochs is compared with the best of fewer, which alone raises it a little.",
    ),
)


def list_asked_recipes() -> list[str]:
    """Return every recipe that a question names, each once."""
    arms = (arm.recipe for question in QUESTIONS for arm in question.arms)
    contrasts = (
        recipe
        for question in QUESTIONS
        for contrast in question.contrasts
        for recipe in (contrast.treatment, contrast.control)
    )
    return list(dict.fromkeys((*arms, *contrasts)))
