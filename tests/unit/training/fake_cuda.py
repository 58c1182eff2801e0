"""A CUDA device without one: torch's fake tensors say that they are on it, and every operation on them is seen."""

from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.masked_select")
# Deterministic algorithms sort the indices of an assignment.
ASSIGNMENTS = ("aten.index_put", "aten._index_put", "aten.index_copy")
# One for all tests: what a module keeps of one mode does not go with another.
_MODE = FakeTensorMode()


class CudaGenerator(torch.Generator):
    """A generator that says it is on the device."""

    device = CUDA


class Watch(TorchDispatchMode):
    """Counts the operations, and lists those that make the host wait or copy, and assignments by index."""

    def __init__(self):
        super().__init__()
        self.operations, self.waits, self.assignments = 0, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.operations += 1
        self.waits += [name] * name.startswith(WAITS)
        self.assignments += [name] * name.startswith(ASSIGNMENTS)
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.waits.append(name)
        return result


@contextmanager
def fake_cuda():
    """Let whatever is made in the block be on a device that is not there; yield a generator of it."""
    with _MODE, CUDA:
        yield CudaGenerator()
