"""BatchNorm over the images of all processes, so that a divided batch is normalised as a whole one is.

On CUDA torch's SyncBatchNorm does it, which refuses a CPU; there this file's own does.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model_code.training.processes import exchanging


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with every BatchNorm synchronised; parameters, buffers and their names stay."""
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return synchronised
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = CpuSyncBatchNorm
    return network


class CpuSyncBatchNorm(_BatchNorm):
    """BatchNorm1d and BatchNorm2d whose statistics in training are those of all processes together."""

    def forward(self, features_BC: Tensor) -> Tensor:
        """Return the normalised features, [B, C] or [B, C, H, W], in their precision; statistics are in float32."""
        if not self.training:
            normalised: Tensor = super().forward(features_BC)
            return normalised
        half_BC, features_BC = features_BC, features_BC.float()
        dims = [dim for dim in range(features_BC.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(features_BC.dim())]
        count = features_BC.new_full((1,), features_BC.numel() / self.num_features)
        sum_C, total = _Sum.apply(torch.cat([features_BC.sum(dims), count])).split([self.num_features, 1])
        # The deviations in a pass of their own: the mean of squares less the squared mean is mostly rounding.
        centred_BC = features_BC - (sum_C / total).view(shape)
        variance_C = _Sum.apply(centred_BC.square().sum(dims)) / total
        self._remember((sum_C / total).detach(), variance_C.detach(), total.detach())
        scale_C = torch.rsqrt(variance_C + self.eps)
        if self.weight is None:
            normalised = centred_BC * scale_C.view(shape)
        else:
            normalised = centred_BC * (scale_C * self.weight).view(shape) + self.bias.view(shape)
        return normalised.to(half_BC.dtype)

    def _remember(self, mean_C: Tensor, variance_C: Tensor, total: Tensor) -> None:
        """Move the running statistics as torch's BatchNorm does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(variance_C * total / (total - 1), momentum)

    def _check_input_dim(self, features_BC: Tensor) -> None:
        if features_BC.dim() not in (2, 4):
            raise ValueError(f"features of {features_BC.dim()} dimensions; 2 and 4 are allowed")


class _Sum(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        return _add_up(values)

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        return _add_up(gradient)


def _add_up(values: Tensor) -> Tensor:
    total = values.clone()
    with exchanging():
        dist.all_reduce(total)
    return total
