import resource

import pytest
import torch

from model_code.errors import TrainingError
from model_code.training.device import choose_device, describe_device, keep_freed_memory, seed_everything


def test_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")
    assert describe_device(torch.device("cpu")).endswith((f"{torch.get_num_threads()} threads)", ", 1 thread)"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(TrainingError, match=r"sees no CUDA device; use --set device=cpu"):
        choose_device("cuda")


def test_equal_seeds_give_equal_numbers():
    draws = []
    for seed in (1, 1, 2):
        generator = seed_everything(seed, torch.device("cpu"))
        draws.append((torch.rand(4).tolist(), torch.rand(4, generator=generator).tolist()))
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert torch.are_deterministic_algorithms_enabled()


def test_freed_memory_is_used_again():
    keep_freed_memory()
    size = 2**26  # bytes; more than malloc keeps by itself
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # The first ones may still find only pieces that are a little too small.
    assert sum(faults[10:]) < size / resource.getpagesize()
