import pytest
import torch

from model_code.data.mixing import cut_out, mix_rectangles


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_pictures(count, side=32):
    """Pictures of one colour each: red tells the picture's index, from 1."""
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
    images_BHWC, labels_B = plain_pictures(4), torch.arange(4)
    assert cut_out(images_BHWC, 0, seeded()) is images_BHWC
    mixed, partners_B, own_share_B = mix_rectangles(images_BHWC, labels_B, 0, seeded())
    assert mixed is images_BHWC
    assert torch.equal(partners_B, labels_B)
    assert (own_share_B == 1).all()


def test_mixed_pictures_have_the_shares_that_are_told():
    images_BHWC, labels_B = plain_pictures(100), torch.arange(100)
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


def test_one_seed_gives_one_result():
    images_BHWC, labels_B = plain_pictures(16), torch.arange(16)
    results = [mix_rectangles(images_BHWC, labels_B, 0.5, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
