import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from model_code.models.image_input import ImageInput
from model_code.training.run_config import CIFAR10_MEAN, CIFAR10_STD
from serving.bundle.preprocess import decode_picture


def test_arithmetic_is_that_of_to_tensor_and_normalize():
    values = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    images_BHWC = np.stack(
        [np.stack([values, values[::-1], values.T], axis=-1), np.stack([values.T, values, 255 - values], axis=-1)]
    )
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    expected_BCHW = torch.stack([theirs(image) for image in images_BHWC])
    found_BCHW = ImageInput(CIFAR10_MEAN, CIFAR10_STD)(torch.from_numpy(images_BHWC))
    assert found_BCHW.dtype == torch.float32
    assert torch.equal(found_BCHW, expected_BCHW)


def test_channels_keep_their_own_mean_and_std():
    layer = ImageInput((0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
    black, white = torch.zeros(1, 1, 1, 3, dtype=torch.uint8), torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)
    assert layer(black).flatten().tolist() == [0.0, -1.0, -4.0]
    assert layer(white).flatten().tolist() == [1.0, 1.0, 0.0]


def test_weights_files_hold_nothing_of_it():
    assert ImageInput(CIFAR10_MEAN, CIFAR10_STD).state_dict() == {}
    assert list(ImageInput(CIFAR10_MEAN, CIFAR10_STD).parameters()) == []


def test_the_middle_is_cut_out_of_larger_images_only():
    images_BHWC = torch.randint(0, 256, (2, 7, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, middle = ImageInput(CIFAR10_MEAN, CIFAR10_STD), ImageInput(CIFAR10_MEAN, CIFAR10_STD, image_size=4)
    assert torch.equal(middle(images_BHWC), whole(images_BHWC)[:, :, 1:5, 1:5])
    assert torch.equal(middle(images_BHWC[:, :4, :4]), whole(images_BHWC)[:, :, :4, :4])


@pytest.mark.parametrize("image_size", [16, 13, 12, 1])
def test_the_middle_is_the_one_of_serving(image_size):
    image = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "PNG")
    served = torch.tensor(decode_picture(buffer.getvalue(), image_size, resize_size=16))
    middle = ImageInput(CIFAR10_MEAN, CIFAR10_STD, image_size)(image[None])
    assert torch.equal(middle, ImageInput(CIFAR10_MEAN, CIFAR10_STD)(served[None]))
