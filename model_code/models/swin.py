"""Swin Transformer, for 32-pixel images and in the paper's four sizes.

Shape suffixes: B = images, H = height, W = width, C = channels, N = windows of a feature map, T = tokens of a window,
P = relative positions in a window, A = attention heads, D = channels of one head, K = classes.

Source: Liu et al. 2021, arXiv:2103.14030. Feature maps are square and keep channels last between layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

OTHER_REGION_SCORE = -100.0  # added to an attention score that must not count; what the authors' code adds


def partition_windows(features_BHWC: Tensor, window: int) -> Tensor:
    """Return [B, N, T, C]: the map cut into windows of `window` x `window` tokens, row by row; `window` divides H."""
    batch, side, _, channels = features_BHWC.shape
    rows = side // window
    cut = features_BHWC.reshape(batch, rows, window, rows, window, channels)
    return cut.transpose(2, 3).reshape(batch, rows * rows, window * window, channels)


def join_windows(windows_BNTC: Tensor, side: int, window: int) -> Tensor:
    """Return [B, H, W, C] with H = W = `side`: what `partition_windows` cut into windows of `window` x `window`."""
    batch, _, _, channels = windows_BNTC.shape
    rows = side // window
    cut = windows_BNTC.reshape(batch, rows, rows, window, window, channels)
    return cut.transpose(2, 3).reshape(batch, side, side, channels)


def index_relative_positions(window: int) -> Tensor:
    """Return int64 [T, T]: for each pair of tokens of a window, which of its (2 window - 1)^2 relative positions."""
    coordinates = torch.arange(window)
    row_T, column_T = coordinates.repeat_interleave(window), coordinates.repeat(window)
    rows_TT = row_T[:, None] - row_T[None, :] + window - 1
    columns_TT = column_T[:, None] - column_T[None, :] + window - 1
    return rows_TT * (2 * window - 1) + columns_TT


def mask_shifted_windows(map_size: int, window: int, shift: int) -> Tensor:
    """Return float32 [N, T, T], what to add to attention scores after a cyclic shift.

    It is -100 between tokens that came into one window from different edges of the map, 0 elsewhere. Rows and columns
    that padded the map to whole windows are tokens like others (torchvision does the same).

    Args:
        map_size: Height and width of the map before padding, tokens.
        window: Height and width of a window, tokens; less than `map_size`.
        shift: Distance by which the map was rolled up and left, tokens; in [1, `window`).
    """
    padded = map_size + -map_size % window
    bands_H = torch.zeros(padded, dtype=torch.int64)
    bands_H[-window:] = 1
    bands_H[-shift:] = 2
    regions_HW = 3 * bands_H[:, None] + bands_H[None, :]
    regions_NT = partition_windows(regions_HW[None, :, :, None], window)[0, :, :, 0]
    differ_NTT = regions_NT[:, :, None] != regions_NT[:, None, :]
    return torch.zeros(differ_NTT.shape).masked_fill(differ_NTT, OTHER_REGION_SCORE)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a learned bias for each relative position (the paper's Eq. 4).

    Args:
        channels: Width C of the tokens.
        heads: Number A of heads; divides `channels`.
        window: Height and width of a window, tokens.
    """

    index_TT: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.bias_table_PA = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table_PA, std=0.02)
        self.register_buffer("index_TT", index_relative_positions(window), persistent=False)

    def forward(self, windows_BNTC: Tensor, mask_NTT: Tensor | None) -> Tensor:
        """Return [B, N, T, C]; `mask_NTT` is added to the scores of every head."""
        batch, windows, tokens, channels = windows_BNTC.shape
        qkv = self.qkv(windows_BNTC).reshape(batch, windows, tokens, 3, self.heads, channels // self.heads)
        queries_BNATD, keys_BNATD, values_BNATD = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        bias_ATT = self.bias_table_PA[self.index_TT].permute(2, 0, 1)
        scores_BNATT = (queries_BNATD * self.scale) @ keys_BNATD.transpose(-2, -1) + bias_ATT
        if mask_NTT is not None:
            scores_BNATT = scores_BNATT + mask_NTT[:, None]
        mixed_BNATD = scores_BNATT.softmax(dim=-1) @ values_BNATD
        projected_BNTC: Tensor = self.proj(mixed_BNATD.transpose(2, 3).flatten(3))
        return projected_BNTC


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normalised before and added to its input (the paper's Fig. 3b).

    Args:
        channels: Width C of the tokens.
        heads: Number of attention heads.
        map_size: Height and width of the feature map, tokens; is padded to whole windows with zeros.
        window: Height and width of a window, tokens.
        shift: Shift of the windows, tokens; 0 for none.
        mlp_ratio: Hidden width of the MLP / C.
        drop_path: Probability that an image skips a branch in training, in [0, 1).
    """

    def __init__(
        self, channels: int, heads: int, map_size: int, window: int, shift: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.map_size, self.window, self.shift = map_size, window, shift
        self.padding = -map_size % window
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        hidden = int(mlp_ratio * channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, features_BHWC: Tensor, mask_NTT: Tensor | None) -> Tensor:
        """Return the shape of the input; `mask_NTT` belongs to the shift and is None without one."""
        features_BHWC = features_BHWC + self.drop_path(self._attend(self.norm1(features_BHWC), mask_NTT))
        added_BHWC: Tensor = features_BHWC + self.drop_path(self.mlp(self.norm2(features_BHWC)))
        return added_BHWC

    def _attend(self, features_BHWC: Tensor, mask_NTT: Tensor | None) -> Tensor:
        if self.padding:
            features_BHWC = F.pad(features_BHWC, (0, 0, 0, self.padding, 0, self.padding))
        if self.shift:
            features_BHWC = features_BHWC.roll((-self.shift, -self.shift), dims=(1, 2))
        windows_BNTC = self.attention(partition_windows(features_BHWC, self.window), mask_NTT)
        features_BHWC = join_windows(windows_BNTC, self.map_size + self.padding, self.window)
        if self.shift:
            features_BHWC = features_BHWC.roll((self.shift, self.shift), dims=(1, 2))
        return features_BHWC[:, : self.map_size, : self.map_size]


class SwinStage(nn.Module):
    """Blocks on maps of one size; every second one shifts its windows by half, unless one window covers the map.

    Args:
        channels: Width C of the tokens.
        heads: Number of attention heads.
        map_size: Height and width of the feature map, tokens.
        window: Height and width of a window, tokens.
        mlp_ratio: Hidden width of the MLPs / C.
        drop_paths: For each block, its drop-path probability.
    """

    mask_NTT: Tensor | None

    def __init__(
        self, channels: int, heads: int, map_size: int, window: int, mlp_ratio: float, drop_paths: list[float]
    ) -> None:
        super().__init__()
        shift = window // 2 if window < map_size else 0
        mask_NTT = mask_shifted_windows(map_size, window, shift) if shift else None
        self.register_buffer("mask_NTT", mask_NTT, persistent=False)
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, map_size, window, shift if index % 2 else 0, mlp_ratio, drop_path)
            for index, drop_path in enumerate(drop_paths)
        )

    def forward(self, features_BHWC: Tensor) -> Tensor:
        """Return the shape of the input."""
        for index, block in enumerate(self.blocks):
            features_BHWC = block(features_BHWC, self.mask_NTT if index % 2 else None)
        return features_BHWC


class PatchMerging(nn.Module):
    """Join each 2x2 tokens into one of twice the width; an odd map is padded with zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, features_BHWC: Tensor) -> Tensor:
        """Return [B, ceil(H / 2), ceil(W / 2), 2 C]."""
        odd = features_BHWC.shape[1] % 2
        if odd:
            features_BHWC = F.pad(features_BHWC, (0, 0, 0, odd, 0, odd))
        corners = [features_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        reduced_BHWC: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return reduced_BHWC


class SwinTransformer(nn.Module):
    """Swin Transformer. Linear weights and bias tables start from a normal of std 0.02 cut at +-2, linear biases at 0.

    Args:
        num_classes: Width K of the output.
        image_size: Height and width of the images, pixels; the masks are made for it, the parameters fit any.
        patch_size: Height and width of a patch, pixels; what does not fill a patch is left out.
        channels: Width C of the first stage; doubles with every stage.
        depths: Blocks of each stage.
        heads: Attention heads of each stage.
        window: Height and width of a window, tokens.
        mlp_ratio: Hidden width of the MLPs / C.
        drop_path: Probability that an image skips a branch of the last block in training, in [0, 1); rises to it
            linearly from 0 in the first.
        has_patch_norm: True if a LayerNorm follows the patch embedding.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        has_patch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.patch_embedding = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.patch_norm = nn.LayerNorm(channels) if has_patch_norm else nn.Identity()
        rising = [drop_path * index / max(1, sum(depths) - 1) for index in range(sum(depths))]
        map_size = image_size // patch_size
        layers: list[nn.Module] = []
        for index, (depth, stage_heads) in enumerate(zip(depths, heads, strict=True)):
            if index:
                layers.append(PatchMerging(channels))
                channels, map_size = 2 * channels, (map_size + 1) // 2
            drop_paths, rising = rising[:depth], rising[depth:]
            layers.append(SwinStage(channels, stage_heads, map_size, window, mlp_ratio, drop_paths))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits [B, K] of normalised float images [B, 3, image_size, image_size].

        Raises:
            ValueError: The images have another size than the network was built for.
        """
        if images_BCHW.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {images_BCHW.shape[2]}x{images_BCHW.shape[3]} pixels, but this network was built for "
                f"{self.image_size}x{self.image_size}; build it with another image_size"
            )
        features_BHWC = self.patch_norm(self.patch_embedding(images_BCHW).permute(0, 2, 3, 1))
        features_BHWC = self.norm(self.layers(features_BHWC))
        logits_BK: Tensor = self.head(features_BHWC.mean(dim=(1, 2)))
        return logits_BK
