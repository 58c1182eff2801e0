"""Two runs of one shape: one after the other, both at once by vmap, and with compiled steps.

A step is forward, backward and SGD of a ResNet-18 on a batch of its own. BatchNorm keeps no running statistics
anywhere here, so that all contenders do the same.

Shape suffixes: R = runs, B = images of a batch, H = height, W = width, C = the three colour channels.
"""

import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from benchmarks.comparison import NOT_MEASURED, OURS, SECONDS, Comparison
from benchmarks.workload import BATCH, NETWORK, build_sgd, time_once, time_work
from model_code.models.networks import build_network

RUNS = 2
STEPS = 4
COMPILED = "compiled, one after the other"
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Step = Callable[[], Tensor]


def compare_runs(device: torch.device, _: Path) -> Comparison:
    """Steps of two runs."""
    images_RBCHW, labels_RB = _draw_batches(device)

    def measure(step: Step) -> float:
        return RUNS * BATCH / time_work(step, STEPS, device)

    in_turn = step_in_turn(build_networks(device), images_RBCHW, labels_RB)
    at_once = step_at_once(build_networks(device), images_RBCHW, labels_RB)
    found = {OURS: lambda: measure(in_turn), "vmap, both at once": lambda: measure(at_once)}
    notes = {OURS: "one after the other"}
    if shutil.which("g++"):
        compiled = step_in_turn(build_networks(device), images_RBCHW, labels_RB, torch.compile(loss_of))
        found[COMPILED] = lambda: measure(compiled)
    else:
        notes[COMPILED] = f"{NOT_MEASURED}needs g++"
    return Comparison("images/s", found, notes)


def compare_compiling(device: torch.device, _: Path) -> Comparison:
    """The first step of a run, with what compiling costs; nothing compiled is kept from before."""
    images_RBCHW, labels_RB = _draw_batches(device)
    torch.compiler.config.force_disable_caches = True
    compiled = torch.compile(loss_of)

    def first_step(loss: Loss) -> float:
        step = step_in_turn(build_networks(device)[:1], images_RBCHW[:1], labels_RB[:1], loss)
        return time_once(step, device)

    def compile_anew() -> float:
        torch.compiler.reset()
        return first_step(compiled)

    found = {"not compiled": lambda: first_step(loss_of)}
    if not shutil.which("g++"):
        return Comparison(SECONDS, found, {"compiled": f"{NOT_MEASURED}needs g++"})
    found["compiled, first network"] = compile_anew
    found["compiled, second network of this shape"] = lambda: first_step(compiled)
    return Comparison(SECONDS, found)


def build_networks(device: torch.device) -> list[nn.Module]:
    """As many untrained networks as there are runs."""
    networks = [build_network(NETWORK, 10).to(device).train() for _ in range(RUNS)]
    return [replace_all_batch_norm_modules_(network) for network in networks]


def loss_of(network: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
    """The loss of one run's batch."""
    return cross_entropy(network(images_BCHW), labels_B)


def step_in_turn(networks: Sequence[nn.Module], images_RBCHW: Tensor, labels_RB: Tensor, loss: Loss = loss_of) -> Step:
    """A step of every run, one after the other, that returns the sum of their losses; changes the networks."""
    optimizers = [build_sgd(network.parameters()) for network in networks]

    def step() -> Tensor:
        total = torch.zeros((), device=images_RBCHW.device)
        for network, optimizer, images_BCHW, labels_B in zip(
            networks, optimizers, images_RBCHW, labels_RB, strict=True
        ):
            optimizer.zero_grad(set_to_none=True)
            error = loss(network, images_BCHW, labels_B)
            error.backward()
            optimizer.step()
            total += error.detach()
        return total

    return step


def step_at_once(networks: list[nn.Module], images_RBCHW: Tensor, labels_RB: Tensor) -> Step:
    """A step of every run at once, that returns the sum of their losses, on copies of the weights stacked by run."""
    parameters, _ = stack_module_state(networks)
    shape = deepcopy(networks[0]).to("meta")
    optimizer = build_sgd(parameters.values())

    def loss_of_one(parameters: dict[str, Tensor], images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        return cross_entropy(functional_call(shape, parameters, (images_BCHW,)), labels_B)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        total = vmap(loss_of_one)(parameters, images_RBCHW, labels_RB).sum()
        total.backward()
        optimizer.step()
        return total.detach()

    return step


def _draw_batches(device: torch.device) -> tuple[Tensor, Tensor]:
    images_RBCHW = torch.randn((RUNS, BATCH, 3, 32, 32), device=device)
    return images_RBCHW, torch.randint(0, 10, (RUNS, BATCH), device=device)
