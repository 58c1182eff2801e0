import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest, chisquare, fisher_exact, ks_2samp, kstest
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import RandomErasing

from model_code.data.mixing import blend_images, cut_out, erase_rectangles, mix_images, mix_rectangles

SIGNIFICANCE = 1e-3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_images(count, side=32):
    """Images of one colour each: red tells the image's index, from 1."""
    images_BHWC = torch.zeros((count, side, side, 3), dtype=torch.uint8)
    images_BHWC[..., 0] = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None]
    return images_BHWC


def test_a_hidden_square_has_the_mean_colour_and_nothing_else_changes():
    images_BHWC = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8, generator=seeded())
    hidden = cut_out(images_BHWC, 8, seeded(1))
    is_changed_BHW = (hidden != images_BHWC).any(-1)
    for image, old, changed_HW in zip(hidden, images_BHWC, is_changed_BHW, strict=True):
        mean_C = old.float().mean((0, 1)).to(torch.uint8)
        assert (image[changed_HW] == mean_C).all()
        rows, columns = changed_HW.any(1).nonzero(), changed_HW.any(0).nonzero()
        assert len(rows) <= 8
        assert len(columns) <= 8
        assert rows.max() - rows.min() < 8
    assert is_changed_BHW.any((1, 2)).all()


def test_the_hidden_square_is_anywhere_and_of_the_right_size():
    images_BHWC = torch.full((4000, 32, 32, 3), 200, dtype=torch.uint8)
    images_BHWC[:, :, :16] = 0
    is_hidden_BHW = (cut_out(images_BHWC, 8, seeded(2)) == 100).all(-1)
    area_B = is_hidden_BHW.sum((1, 2))
    assert area_B.max() == 64
    assert (area_B == 64).float().mean() == pytest.approx((25 / 32) ** 2, abs=0.03)
    share_HW = is_hidden_BHW.float().mean(0)
    assert share_HW[4:-4, 4:-4].std() < 0.01
    assert share_HW[0, 0] < share_HW[16, 16] / 2


def test_nothing_is_hidden_or_mixed_unless_asked():
    images_BHWC, labels_B, generator = plain_images(4), torch.arange(4), seeded()
    assert cut_out(images_BHWC, 0, generator) is images_BHWC
    assert erase_rectangles(images_BHWC, 0, generator) is images_BHWC
    for mixture in (
        mix_rectangles(images_BHWC, labels_B, 0, generator),
        blend_images(images_BHWC, labels_B, 0, generator),
        mix_images(images_BHWC, labels_B, 0, 0, generator),
    ):
        mixed, partners_B, own_share_B = mixture
        assert mixed is images_BHWC
        assert torch.equal(partners_B, labels_B)
        assert (own_share_B == 1).all()
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_mixed_images_have_the_shares_that_are_told():
    images_BHWC, labels_B = plain_images(100), torch.arange(100)
    mixed, pasted_labels_B, own_share_B = mix_rectangles(images_BHWC, labels_B, 1.0, seeded(3))
    is_own_BHW = mixed[..., 0] == images_BHWC[..., 0]
    is_pasted_BHW = mixed[..., 0] == (pasted_labels_B + 1)[:, None, None]
    assert (is_own_BHW | is_pasted_BHW).all()
    differs_B = labels_B != pasted_labels_B
    share_B = is_own_BHW.float().mean((1, 2))
    assert torch.allclose(share_B[differs_B], own_share_B[differs_B])
    assert differs_B.sum() > 90
    assert len(own_share_B.unique()) > 50
    assert sorted(pasted_labels_B.tolist()) == labels_B.tolist()


def noisy_images(count, side=32):
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=seeded(99))


def find_rectangles(is_erased_BHW):
    """Rows of top, left, height, width, of the images that lost pixels; each is checked to be a full rectangle."""
    found = []
    for is_erased_HW in is_erased_BHW[is_erased_BHW.any((1, 2))].numpy():
        rows, columns = is_erased_HW.any(1).nonzero()[0], is_erased_HW.any(0).nonzero()[0]
        assert is_erased_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        found.append((rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
    return np.array(found)


def erase_plain(count, size, probability=1.0, seed=0, **bounds):
    images_BHWC = torch.full((count, *size, 3), 7, dtype=torch.uint8)
    return (erase_rectangles(images_BHWC, probability, seeded(seed), **bounds) != images_BHWC).any(-1)


def torchvisions_erase(count, size, probability, area, aspect):
    torch.manual_seed(0)
    transform = RandomErasing(probability, area, aspect, value=1)
    return torch.stack([transform(torch.zeros(1, *size))[0] for _ in range(count)]) == 1


@pytest.mark.parametrize(
    ("size", "area", "aspect"),
    [
        ((32, 32), (0.02, 1 / 3), (0.3, 3.3)),
        ((24, 40), (0.05, 0.5), (0.3, 1.0)),
        ((32, 32), (0.3, 0.9), (0.5, 3.3)),
        ((6, 6), (0.02, 0.2), (0.1, 10.0)),
    ],
)
def test_erased_rectangles_are_distributed_as_torchvisions(size, area, aspect):
    ours = find_rectangles(erase_plain(6000, size, 0.5, area=area, aspect=aspect))
    theirs = find_rectangles(torchvisions_erase(6000, size, 0.5, area, aspect))
    measures = (
        lambda found: found[:, 2] * found[:, 3],
        lambda found: found[:, 2] / found[:, 3],
        lambda found: found[:, 0],
        lambda found: found[:, 1],
        lambda found: (found[:, 0] + 0.5) / (size[0] - found[:, 2] + 1),
        lambda found: (found[:, 1] + 0.5) / (size[1] - found[:, 3] + 1),
    )
    for measure in measures:
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > SIGNIFICANCE
    assert ours[:, :2].min() == 0
    assert (ours[:, :2] + ours[:, 2:]).max(0).tolist() == list(size)
    assert len(np.unique(ours, axis=0)) > 300


def test_images_in_which_no_try_fits_stay_whole_as_often_as_torchvisions():
    bounds = {"area": (0.8, 1.0), "aspect": (0.3, 3.3)}
    ours = int(erase_plain(3000, (16, 16), **bounds).any((1, 2)).sum())
    theirs = int(torchvisions_erase(3000, (16, 16), 1.0, *bounds.values()).any((1, 2)).sum())
    assert 500 < ours < 2500
    assert fisher_exact([[ours, 3000 - ours], [theirs, 3000 - theirs]]).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_images_lose_a_rectangle_as_often_as_asked(probability):
    erased = int(erase_plain(4000, (32, 32), probability, seed=4).any((1, 2)).sum())
    assert binomtest(erased, 4000, probability).pvalue > SIGNIFICANCE


def test_the_images_of_one_batch_lose_rectangles_of_their_own():
    found = find_rectangles(erase_plain(64, (32, 32)))
    assert len(np.unique(found, axis=0)) > 60


def test_erased_pixels_are_uniform_noise_and_the_others_stay():
    images_BHWC = torch.full((2000, 16, 16, 3), 7, dtype=torch.uint8)
    erased = erase_rectangles(images_BHWC, 1.0, seeded(5))
    assert erased.dtype == torch.uint8
    is_erased_BHW = (erased != images_BHWC).any(-1)
    find_rectangles(is_erased_BHW)  # checks that what changed are whole rectangles
    values_NC = erased[is_erased_BHW]
    for channel in range(3):
        assert chisquare(torch.bincount(values_NC[:, channel].long(), minlength=256)).pvalue > SIGNIFICANCE
    correlations = np.corrcoef(values_NC.T.float().numpy())[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 5 / len(values_NC) ** 0.5


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_blended_shares_are_distributed_as_beta(alpha):
    images_BHWC, labels_B = torch.zeros((5000, 1, 1, 3), dtype=torch.uint8), torch.arange(5000)
    shares = blend_images(images_BHWC, labels_B, alpha, seeded(6))[2].numpy()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > SIGNIFICANCE


def blend_exactly(images_BHWC, partners_B, own_share_B):
    """The mixture in double precision, before rounding."""
    share_B111 = own_share_B.double()[:, None, None, None]
    return share_B111 * images_BHWC.double() + (1 - share_B111) * images_BHWC[partners_B].double()


def test_blended_pixels_are_the_rounded_mean_by_the_shares_that_are_told():
    images_BHWC, labels_B = noisy_images(128), torch.arange(128)
    mixed, partners_B, own_share_B = blend_images(images_BHWC, labels_B, 0.8, seeded(7))
    assert mixed.dtype == torch.uint8
    assert sorted(partners_B.tolist()) == labels_B.tolist()
    assert (partners_B != labels_B).sum() > 120
    exact_BHWC = blend_exactly(images_BHWC, partners_B, own_share_B)
    is_tie_BHWC = (exact_BHWC - exact_BHWC.floor() - 0.5).abs() < 1e-4
    assert is_tie_BHWC.float().mean() < 1e-3
    assert torch.equal(mixed[~is_tie_BHWC], exact_BHWC.round().to(torch.uint8)[~is_tie_BHWC])
    assert ((mixed - exact_BHWC).abs() < 0.5 + 1e-4).all()


def test_an_image_blended_with_its_like_stays():
    images_BHWC = noisy_images(1).expand(64, -1, -1, -1)
    mixed, _, own_share_B = blend_images(images_BHWC, torch.zeros(64, dtype=torch.int64), 1.0, seeded(8))
    assert torch.equal(mixed, images_BHWC)
    assert len(own_share_B.unique()) > 60


def test_one_alpha_alone_is_that_mixture_alone():
    images_BHWC, labels_B = noisy_images(16), torch.arange(16)
    for mixed, alone in (
        (mix_images(images_BHWC, labels_B, 0.7, 0, seeded()), mix_rectangles(images_BHWC, labels_B, 0.7, seeded())),
        (mix_images(images_BHWC, labels_B, 0, 0.7, seeded()), blend_images(images_BHWC, labels_B, 0.7, seeded())),
    ):
        assert all(torch.equal(*pair) for pair in zip(mixed, alone, strict=True))


def test_with_both_each_image_is_cut_or_blended_and_its_label_and_share_say_so():
    count = 2000
    images_BHWC, labels_B = noisy_images(count, side=8), torch.arange(count)
    mixed, partners_B, own_share_B = mix_images(images_BHWC, labels_B, 1.0, 1.0, seeded(9))
    partners_BHWC = images_BHWC[partners_B]
    is_own_BHW, is_pasted_BHW = (mixed == images_BHWC).all(-1), (mixed == partners_BHWC).all(-1)
    is_cut_B = (is_own_BHW | is_pasted_BHW).all((1, 2))
    is_blended_B = (mixed - blend_exactly(images_BHWC, partners_B, own_share_B)).abs().amax((1, 2, 3)) < 0.5 + 1e-4
    assert (is_cut_B | is_blended_B).all()
    # The others look cut and blended at once.
    is_clear_B = (own_share_B > 0.02) & (own_share_B < 0.98) & (partners_B != labels_B)
    is_cut_B, is_blended_B = is_cut_B[is_clear_B], is_blended_B[is_clear_B]
    own_pixels_B = is_own_BHW[is_clear_B].float().mean((1, 2))
    assert torch.allclose(own_pixels_B[is_cut_B], own_share_B[is_clear_B][is_cut_B])
    assert not (is_cut_B & is_blended_B).any()
    # One draw for the whole batch would never change, turns taken would always.
    changes = int((is_cut_B[1:] != is_cut_B[:-1]).sum())
    assert binomtest(changes, len(is_cut_B) - 1, 0.5).pvalue > SIGNIFICANCE


def test_with_both_half_of_the_images_are_cut():
    """Blended shares are at 1/2 with so large an alpha; those of CutMix are multiples of a pixel's share."""
    images_BHWC, labels_B = noisy_images(4000, side=3), torch.arange(4000)
    own_share_B = mix_images(images_BHWC, labels_B, 1.0, 1e6, seeded(10))[2]
    is_blended_B = (own_share_B - 0.5).abs() < 0.01
    assert binomtest(int(is_blended_B.sum()), 4000, 0.5).pvalue > SIGNIFICANCE


RANDOM_CHANGES = {
    "cut_out": lambda images, labels, generator: (cut_out(images, 8, generator),),
    "erase_rectangles": lambda images, labels, generator: (erase_rectangles(images, 0.5, generator),),
    "mix_rectangles": lambda images, labels, generator: mix_rectangles(images, labels, 0.5, generator),
    "blend_images": lambda images, labels, generator: blend_images(images, labels, 0.5, generator),
    "mix_images": lambda images, labels, generator: mix_images(images, labels, 0.5, 0.5, generator),
}


@pytest.mark.parametrize("change", RANDOM_CHANGES.values(), ids=RANDOM_CHANGES)
def test_one_seed_gives_one_result(change):
    images_BHWC, labels_B = noisy_images(16), torch.arange(16)
    first, again, other = (change(images_BHWC, labels_B, seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("change", RANDOM_CHANGES.values(), ids=RANDOM_CHANGES)
def test_the_images_that_are_given_stay_as_they_are(change):
    images_BHWC, labels_B = noisy_images(16), torch.arange(16)
    changed = change(images_BHWC, labels_B, seeded())
    assert not torch.equal(changed[0], images_BHWC)
    assert torch.equal(images_BHWC, noisy_images(16))
    assert torch.equal(labels_B, torch.arange(16))


@pytest.mark.parametrize("change", RANDOM_CHANGES.values(), ids=RANDOM_CHANGES)
def test_nothing_depends_on_reading_a_value_back(change):
    """Tensors without values refuse what would make the host wait for a device: item(), nonzero(), masks as indices."""
    with FakeTensorMode():
        images_BHWC = torch.empty((16, 32, 32, 3), dtype=torch.uint8)
        assert change(images_BHWC, torch.arange(16), seeded())[0].shape == images_BHWC.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["erase_rectangles", "blend_images", "mix_images"])
def test_cuda_is_not_waited_for(name):
    images_BHWC, labels_B = noisy_images(16).cuda(), torch.arange(16, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        changed = RANDOM_CHANGES[name](images_BHWC, labels_B, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert changed[0].is_cuda
    assert not torch.equal(changed[0], images_BHWC)
