import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from model_code.models.view_average import ViewAverage, shift
from model_code.release.onnx_export import export_onnx
from serving.bundle.session import INPUT_NAME, OUTPUT_NAME

pytestmark = pytest.mark.usefixtures("one_thread")


class Scale(nn.Module):
    def forward(self, images_BHWC):
        return images_BHWC.permute(0, 3, 1, 2).float() / 64 - 2


def make_model():
    """A model that tells left from right."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    return nn.Sequential(Scale(), *layers).eval()


def draw(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_softmax_of_the_answer_is_the_mean_of_both_probabilities():
    model, images = make_model(), draw(7)
    plain, mirrored = (model(view).softmax(dim=1) for view in (images, images.flip(2)))
    assert (plain - mirrored).abs().max() > 0.1
    answer = ViewAverage(model)(images)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.softmax(dim=1), (plain + mirrored) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(answer.exp().sum(dim=1), torch.ones(7))


@torch.no_grad()
def test_an_image_and_its_mirror_image_get_the_same_answer():
    average, images = ViewAverage(make_model()), draw(4)
    torch.testing.assert_close(average(images), average(images.flip(2)), atol=1e-6, rtol=0)


@torch.no_grad()
def test_certain_answers_stay_finite():
    model = make_model()
    model[-1].weight.mul_(1e4)
    answer = ViewAverage(model)(draw(6))
    assert answer.isfinite().all()
    torch.testing.assert_close(answer.softmax(dim=1).sum(dim=1), torch.ones(6))


def test_weights_are_those_of_the_model():
    model = make_model()
    assert list(ViewAverage(model).parameters()) == list(model.parameters())


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_shifted_images_are_windows_of_the_reflected_one(pixels):
    images = draw(3)
    padded = nn.functional.pad(images.permute(0, 3, 1, 2).float(), [pixels] * 4, mode="reflect").permute(0, 2, 3, 1)
    padded = padded.to(torch.uint8)
    assert torch.equal(shift(images, pixels), padded[:, :8, :8])
    assert torch.equal(shift(images, -pixels), padded[:, 2 * pixels :, 2 * pixels :])


@torch.no_grad()
@pytest.mark.parametrize("has_mirror", [False, True])
def test_shifted_views_weigh_together_as_much_as_the_image(has_mirror):
    model, images = make_model(), draw(7)

    def ask(view):
        plain = model(view).softmax(dim=1)
        return (plain + model(view.flip(2)).softmax(dim=1)) / 2 if has_mirror else plain

    expected = ask(images) / 2 + (ask(shift(images, -2)) + ask(shift(images, 2))) / 4
    answer = ViewAverage(model, has_mirror, shift_pixels=2)(images).softmax(dim=1)
    torch.testing.assert_close(answer, expected, atol=1e-6, rtol=0)
    assert (answer - ask(images)).abs().max() > 0.01


@pytest.mark.parametrize("shift_pixels", [0, 1])
def test_onnx_answers_what_torch_answers_at_any_batch_size(tmp_path, shift_pixels):
    model, file = make_model(), tmp_path / "model.onnx"
    average = ViewAverage(model, shift_pixels=shift_pixels).eval()
    export_onnx(average, 8, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 8, 8, 3]
    for batch_size in (1, 2, 7):
        images = draw(batch_size)
        with torch.no_grad():
            expected, plain = (network(images).softmax(dim=1).numpy() for network in (average, model))
        [answer] = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
        assert answer.shape == (batch_size, 5)
        assert np.abs(answer - expected).max() < 1e-5
        assert np.abs(answer - plain).max() > 0.01
