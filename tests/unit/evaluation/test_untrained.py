import numpy as np
import pytest
import torch
from torch import nn

from model_code.evaluation.untrained import evaluate_untrained

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


class FirstPixel(nn.Module):
    """Answers the red value of the first pixel, out of 10 classes; in training mode always class 9."""

    def forward(self, images_BHWC):
        classes_B = images_BHWC[:, 0, 0, 0].long()
        return nn.functional.one_hot(classes_B if not self.training else torch.full_like(classes_B, 9), 10).float()


def make_images(values):
    images = np.zeros((len(values), 4, 4, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = values
    return images


def ask(images, labels, view=lambda batch: batch, batch_size=4, **options):
    return evaluate_untrained(FirstPixel(), images, np.array(labels), view, batch_size, CPU, **options)


def test_answers_are_counted_by_images_also_in_a_partial_last_batch():
    report = ask(make_images([3, 3, 5, 3, 7, 5, 3]), [3, 0, 5, 3, 0, 0, 3])
    assert (report.count, report.correct, report.accuracy_fraction) == (7, 4, 4 / 7)
    assert (report.distinct_classes, report.top_class_share) == (3, 4 / 7)


def test_a_network_that_answers_the_same_to_everything():
    report = ask(make_images([6] * 10), range(10))
    assert (report.distinct_classes, report.top_class_share) == (1, 1.0)
    assert (report.correct, report.accuracy_fraction) == (1, 0.1)


def test_memory_is_that_of_the_walk_and_not_of_what_was_before():
    before = torch.zeros(2**28)  # 1 GiB, written to
    held = before.numel() * 4
    del before
    report = ask(make_images([1] * 4), range(4))
    assert 2**24 < report.peak_memory_bytes < ask(make_images([1] * 4), range(4)).peak_memory_bytes + held / 2


def test_each_batch_goes_through_the_view_as_uint8_and_is_told():
    seen, done = [], []

    def view(batch):
        seen.append((tuple(batch.shape), batch.dtype, batch.is_inference()))
        return batch + 1

    report = ask(make_images([1] * 9), [2] * 9, view, on_batch=done.append)
    assert seen == [((size, 4, 4, 3), torch.uint8, True) for size in (4, 4, 1)]
    assert done == [4, 4, 1]
    assert report.accuracy_fraction == 1.0


def test_a_memory_map_is_read_batch_by_batch_and_not_written(tmp_path):
    np.save(tmp_path / "images.npy", make_images([1, 2, 3, 4, 5]))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    visited = []
    view = lambda batch: visited.append(batch[:, 0, 0, 0].tolist()) or batch.add_(0)  # noqa: E731
    report = ask(images, [1, 2, 3, 4, 5], view, batch_size=2)
    assert report.correct == 5
    assert visited == [[1, 2], [3, 4], [5]]


def test_time_and_memory():
    report = ask(make_images([1] * 6), [1] * 6)
    assert report.seconds > 0
    assert report.pictures_per_s == pytest.approx(6 / report.seconds)
    assert 2**20 < report.peak_memory_bytes < 2**40


@pytest.mark.parametrize(("images", "labels", "batch_size"), [(0, 0, 4), (3, 2, 4), (3, 3, 0)])
def test_nothing_to_ask_about(images, labels, batch_size):
    with pytest.raises(ValueError, match=f"{images} images for {labels} labels in batches of {batch_size}"):
        ask(make_images([1] * images), [1] * labels, batch_size=batch_size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_on_cuda_is_that_of_tensors():
    images = np.zeros((8, 64, 64, 3), dtype=np.uint8)
    report = evaluate_untrained(FirstPixel(), images, np.zeros(8, int), lambda batch: batch, 4, torch.device("cuda"))
    assert 4 * 64 * 64 * 3 <= report.peak_memory_bytes < 2**26
    assert report.correct == 8


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_network_computes_in_the_precision_that_is_asked_for(precision):
    seen = []

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(48, 10)

        def forward(self, images_BHWC):
            logits_BK = self.layer(images_BHWC.flatten(1).float())
            seen.append(logits_BK.dtype)
            return logits_BK

    images = make_images(range(6))
    evaluate_untrained(Linear(), images, np.zeros(6, int), lambda batch: batch, 3, CPU, precision=precision)
    assert seen == [precision] * 2
