"""What a step does beside the network, on a simulated CUDA device: nothing waits for it, or is copied to it."""

import copy

import pytest
import torch

from model_code.data.augmentation import crop_and_flip, resized_crop
from model_code.data.mixing import cut_out, erase_rectangles, mix_images
from model_code.data.view_settings import ViewSettings
from model_code.data.views import two_views
from model_code.training.moving_average import MovingAverage
from tests.unit.training.fake_cuda import CUDA, Watch, fake_cuda
from tests.unit.training.small_runs import TinyNetwork

BATCH, SIDE = 6, 32
VIEWS = ViewSettings(image_size=SIDE, blur_probability=0.5)
AUGMENTATIONS = {
    "crop and flip": lambda images, generator: crop_and_flip(images, 4, True, generator),
    "crop, mirrored border": lambda images, generator: crop_and_flip(images, 4, True, generator, border="reflect"),
    "resized crop": lambda images, generator: resized_crop(images, 24, (0.2, 1.0), generator),
    "two views": lambda images, generator: torch.cat(two_views(images, generator, VIEWS)),
    "cutout": lambda images, generator: cut_out(images, 8, generator),
    "erasing": lambda images, generator: erase_rectangles(images, 0.5, generator),
    "mixing": lambda images, generator: mix_images(images, torch.arange(BATCH), 1.0, 0.2, generator)[0],
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_neither_waits_for_the_device_nor_copies_to_it_nor_sorts(name):
    with fake_cuda() as generator:
        images_BHWC = torch.zeros(BATCH, SIDE, SIDE, 3, dtype=torch.uint8)
        with Watch() as watch:
            changed = AUGMENTATIONS[name](images_BHWC, generator)
    assert changed.device == CUDA
    assert watch.operations > 5
    assert watch.waits == []
    assert watch.assignments == []


def test_a_moving_average_neither_waits_for_the_device_nor_copies_to_it(monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", lambda _: TinyNetwork(4))  # fake tensors cannot be copied deeply
    with fake_cuda():
        model = TinyNetwork(4)
        average = MovingAverage(model, 0.9)
        with Watch() as watch:
            average.update()
            average.update()
    assert watch.operations >= 4
    assert watch.waits == []


def test_the_watch_sees_what_waits_and_what_is_copied():
    with fake_cuda(), Watch() as watch:
        images = torch.zeros(3)
        images[torch.arange(3)] = torch.ones(3)
        torch.tensor([1.0, 2.0], device="cpu").to(CUDA)
        images.cpu()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            float(images.sum())
    assert len(watch.waits) == 3
    assert len(watch.assignments) == 1


def test_a_moving_average_is_that_of_torch_and_copies_counters():
    torch.manual_seed(0)
    model = TinyNetwork(4)
    theirs = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    ours = MovingAverage(model, 0.9)
    for _ in range(5):
        model(torch.rand(4, 3, 8, 8)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.rand_like(parameter))
        theirs.update_parameters(model)
        ours.update()
    expected = theirs.module.state_dict()
    for name, tensor in ours.module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, expected[name]), name
    assert int(ours.module.body[1].num_batches_tracked) == int(model.body[1].num_batches_tracked) == 5
    again = MovingAverage(TinyNetwork(4), 0.9)
    again.load_state_dict(ours.state_dict())
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))
    again.load_state_dict(theirs.state_dict())  # what an earlier version left
