"""A backbone with a head: the same labels as its evaluation, in PyTorch and in ONNX, and what cannot be exported."""

import math

import pytest
import safetensors.torch
import torch

from model_code.data.view_settings import ViewSettings
from model_code.errors import ReleaseError
from model_code.evaluation.features import LabelledFeatures
from model_code.evaluation.knn import knn_predict
from model_code.evaluation.metrics import predict_logits
from model_code.models import networks
from model_code.models.neighbour_vote import NeighbourVote
from model_code.release.backbone_classifier import build_classifier
from model_code.release.onnx_export import export_onnx
from model_code.training.images import TrainingImages
from model_code.training.pretraining import build_simsiam
from model_code.training.pretraining_config import SimSiamConfig
from model_code.training.probe_config import ProbeConfig
from serving.bundle.session import open_session, run_session
from tests.unit.training.small_runs import TinyNetwork, draw_images

SIDE, CLASSES = 16, ("a", "b", "c", "d")
CPU = "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "tiny", TinyNetwork)


@pytest.fixture
def config():
    return SimSiamConfig(
        recipe="simsiam_cifar10",
        network="tiny",
        embedding_width=32,
        bottleneck_width=8,
        views=ViewSettings(image_size=SIDE),
        knn_neighbours=9,
        linear=ProbeConfig(epochs=20, warmup_epochs=0, batch_size=32),
    )


@pytest.fixture
def weights(config, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "backbone.safetensors"
    safetensors.torch.save_file(build_simsiam(config).backbone.state_dict(), file)
    return file


@pytest.fixture
def images():
    train, validation, test = (
        draw_images(count, seed=seed, side=SIDE, classes=len(CLASSES)) for seed, count in enumerate((120, 60, 90))
    )
    return TrainingImages(train, validation, test, CLASSES, "")


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_a_head_answers_alike_in_pytorch_and_onnx(config, weights, images, head, tmp_path):
    built = build_classifier(config, weights, images, head)
    assert built.head == head
    logits_NK = predict_logits(built.model, images.test.images_NHWC)
    export_onnx(built.model, SIDE, tmp_path / "model.onnx")
    for size in (1, 7, 90):
        answers_NK = run_session(open_session(tmp_path / "model.onnx", CPU, 1), images.test.images_NHWC.numpy()[:size])
        assert answers_NK == pytest.approx(logits_NK.softmax(1).numpy()[:size], abs=1e-4)
        assert (answers_NK.argmax(1) == logits_NK[:size].argmax(1).numpy()).all()


def test_without_a_wish_the_better_head_on_validation_stands_there(config, weights, images):
    built = build_classifier(config, weights, images, None)
    assert built.accuracies[built.head] == max(built.accuracies.values())
    right = predict_logits(built.model, images.validation.images_NHWC).argmax(1) == images.validation.labels_N
    assert built.accuracies[built.head] == pytest.approx(float(right.float().mean()))


def test_validation_images_are_not_in_the_bank(config, weights, images):
    built = build_classifier(config, weights, images, "knn")
    assert built.model[1].bank_DM.shape[1] == len(images.train)


def test_images_that_would_have_to_be_scaled_are_refused(config, weights, images):
    larger = config.model_copy(update={"evaluation_enlargement": 1.25})
    with pytest.raises(
        ReleaseError,
        match=r"scaled to 20 pixels, and cifar10 is packed with 16: .*image_size=16 --set evaluation_enlargement=1$",
    ):
        build_classifier(larger, weights, images, None)


def test_votes_are_what_a_neighbour_has_above_the_next():
    bank_MD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    vote = NeighbourVote(bank_MD, torch.tensor([2, 0, 0, 1]), classes=3, neighbours=2, temperature=0.5)
    shares_BK = vote(torch.tensor([[3.0, 0.0]])).softmax(1)
    # Similarities 1, 0.8 and, of the first that does not vote, 0.6.
    last = math.exp(-0.8)
    votes = [0.1 / 3, math.exp(-0.4) - last + 0.1 / 3, 1 - last + 0.1 / 3]
    assert shares_BK[0].tolist() == pytest.approx([one / sum(votes) for one in votes], abs=1e-6)


def test_a_rounding_error_moves_no_share_of_the_votes():
    generator = torch.Generator().manual_seed(0)
    # Nearly collapsed: hundreds of images are as near as the last neighbour.
    features_MD = 1 + 1e-3 * torch.randn(500, 16, generator=generator)
    labels_M = torch.randint(0, 7, (500,), generator=generator)
    asked_BD = 1 + 1e-3 * torch.randn(300, 16, generator=generator)
    vote = NeighbourVote(features_MD, labels_M, 7, neighbours=20, temperature=0.1)
    shares_BK = vote(asked_BD).softmax(1)
    for _ in range(5):
        moved_BD = asked_BD * (1 + 1e-7 * torch.randn(asked_BD.shape, generator=generator))
        assert (vote(moved_BD).softmax(1) - shares_BK).abs().max() < 1e-4


def test_labels_are_nearly_those_of_the_evaluation():
    generator = torch.Generator().manual_seed(0)
    centres_KD = torch.randn(7, 16, generator=generator)
    labels_M, labels_B = (torch.randint(0, 7, (count,), generator=generator) for count in (500, 300))
    bank_MD, asked_BD = (
        centres_KD[labels] + torch.randn(len(labels), 16, generator=generator) for labels in (labels_M, labels_B)
    )
    bank = LabelledFeatures(bank_MD, labels_M, tuple("abcdefg"))
    vote = NeighbourVote(bank_MD, labels_M, 7, neighbours=50, temperature=0.1)
    assert (vote(asked_BD).argmax(1) == knn_predict(bank, asked_BD, 50, 0.1)).float().mean() > 0.97
