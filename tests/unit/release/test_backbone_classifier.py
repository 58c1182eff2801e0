"""A backbone with a head: the same labels as its evaluation, in PyTorch and in ONNX, and what cannot be exported."""

import pytest
import safetensors.torch
import torch

from model_code.data.view_settings import ViewSettings
from model_code.data.views import plain_view
from model_code.evaluation.features import LabelledFeatures
from model_code.evaluation.knn import knn_predict
from model_code.evaluation.metrics import predict_logits
from model_code.models import networks
from model_code.models.neighbour_vote import NeighbourVote
from model_code.release.backbone_classifier import build_classifier
from model_code.release.onnx_export import export_onnx
from model_code.training.images import TrainingImages
from model_code.training.pretraining import build_simsiam, evaluation_features, load_backbone
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("enlargement", [1.25, 1.5])
def test_images_that_the_evaluation_scales_are_scaled_in_the_graph(config, weights, images, enlargement, tmp_path):
    scaled = config.model_copy(update={"evaluation_enlargement": enlargement, "views": ViewSettings(image_size=12)})
    built = build_classifier(scaled, weights, images, "knn")
    model = load_backbone(scaled, weights)
    expected_NCHW = model[0](plain_view(images.test.images_NHWC, 12, enlargement))
    seen_NCHW = built.model[0][:2](images.test.images_NHWC)
    assert seen_NCHW.shape == expected_NCHW.shape == (90, 3, 12, 12)
    # But for the rounding of the view to uint8.
    assert (seen_NCHW - expected_NCHW).abs().max() <= 0.5 / 255 / min(scaled.std) + 1e-5
    bank = evaluation_features(scaled, model, images.train, CLASSES)
    expected_N = knn_predict(bank, evaluation_features(scaled, model, images.test, CLASSES).features_ND, 9, 0.1)
    logits_NK = predict_logits(built.model, images.test.images_NHWC)
    assert (logits_NK.argmax(1) == expected_N).float().mean() > 0.9
    export_onnx(built.model, SIDE, tmp_path / "model.onnx")
    answers_NK = run_session(open_session(tmp_path / "model.onnx", CPU, 1), images.test.images_NHWC.numpy())
    assert answers_NK == pytest.approx(logits_NK.softmax(1).numpy(), abs=1e-4)


def test_the_linear_layer_learns_from_crops_where_the_run_does(config, weights, images):
    plain = build_classifier(config, weights, images, "linear")
    cropped = build_classifier(config.model_copy(update={"linear_crop_area": (0.2, 0.5)}), weights, images, "linear")
    unchanged = build_classifier(config.model_copy(update={"linear_crop_area": (1.0, 1.0)}), weights, images, "linear")
    weight, other, near = (built.model[1].state_dict()["weight"] for built in (plain, cropped, unchanged))
    assert (weight - near).norm() < (weight - other).norm()


def test_a_vote_falls_to_0_near_the_first_image_that_does_not_vote():
    angles = torch.tensor([0.0, 0.7, 1.0, 1.001])
    bank_MD = torch.stack([angles.cos(), angles.sin()], 1)
    vote = NeighbourVote(bank_MD, torch.tensor([2, 0, 1, 0]), classes=3, neighbours=3, temperature=0.5)
    shares_BK = vote(torch.tensor([[3.0, 0.0]])).softmax(1)
    similarity = angles.double().cos()
    weights = ((similarity - 1) / 0.5).exp()
    edge = float(similarity[2] - similarity[3]) / 5e-3
    assert 0 < edge < 1
    votes = [float(weights[1]) + 2 / 3, edge * float(weights[2]) + 2 / 3, 1 + 2 / 3]
    assert shares_BK[0].tolist() == pytest.approx([one / sum(votes) for one in votes], abs=1e-4)


@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("neighbours", [20, 200])
def test_a_rounding_error_moves_no_share_of_the_votes(spread, neighbours):
    generator = torch.Generator().manual_seed(0)
    # Nearly collapsed: hundreds of images are as near as the last neighbour.
    features_MD = 1 + spread * torch.randn(500, 16, generator=generator)
    labels_M = torch.randint(0, 7, (500,), generator=generator)
    asked_BD = 1 + spread * torch.randn(300, 16, generator=generator)
    vote = NeighbourVote(features_MD, labels_M, 7, neighbours, temperature=0.1)
    shares_BK = vote(asked_BD).softmax(1)
    for _ in range(5):
        moved_BD = asked_BD * (1 + 1e-7 * torch.randn(asked_BD.shape, generator=generator))
        assert (vote(moved_BD).softmax(1) - shares_BK).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("classes", "width", "noise", "is_unequal"),
    [(7, 16, 1.0, False), (11, 128, 3.0, False), (11, 128, 4.0, True), (10, 512, 8.0, True)],
)
def test_labels_are_those_of_the_evaluation(classes, width, noise, is_unequal):
    generator = torch.Generator().manual_seed(0)
    centres_KD = torch.randn(classes, width, generator=generator)
    shares_K = torch.linspace(1, 5 if is_unequal else 1, classes)
    labels_M, labels_B = (
        torch.multinomial(shares_K, count, replacement=True, generator=generator) for count in (2000, 500)
    )
    bank_MD, asked_BD = (
        centres_KD[labels] + noise * torch.randn(len(labels), width, generator=generator)
        for labels in (labels_M, labels_B)
    )
    bank = LabelledFeatures(bank_MD, labels_M, tuple("abcdefghijk"[:classes]))
    voted_B = NeighbourVote(bank_MD, labels_M, classes, neighbours=200, temperature=0.1)(asked_BD).argmax(1)
    expected_B = knn_predict(bank, asked_BD, 200, 0.1)
    accuracies = [float((found_B == labels_B).float().mean()) for found_B in (voted_B, expected_B)]
    assert 0.3 < accuracies[1] < 1
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.015)
    assert (voted_B == expected_B).float().mean() > 0.95


@pytest.mark.parametrize("bank_size", [1, 3, 20])
def test_a_smaller_bank_votes_as_a_whole(bank_size):
    generator = torch.Generator().manual_seed(0)
    bank_MD, asked_BD = torch.randn(bank_size, 8, generator=generator), torch.randn(50, 8, generator=generator)
    labels_M = torch.arange(bank_size) % 4
    bank = LabelledFeatures(bank_MD, labels_M, tuple("abcd"))
    vote = NeighbourVote(bank_MD, labels_M, 4, neighbours=20, temperature=0.5)
    assert torch.equal(vote(asked_BD).argmax(1), knn_predict(bank, asked_BD, 20, 0.5))
