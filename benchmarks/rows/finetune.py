"""Fine-tuning end to end, against the compiled step alone; for a GPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, Taken
from benchmarks.rows.encoder import images_of
from benchmarks.rows.made import (
    AUGMENTED,
    LR,
    MOMENTUM,
    Setting,
    as_a_loop,
    in_place,
    timed,
    without_validation,
)
from pipeline import recipes
from pipeline.training import runtime
from pipeline.training.phase import Phase
from pipeline.training.run import Run

# Dense bf16 operations a second with tensor cores, by NVIDIA's data sheets, those with sparsity
# halved. A device's name has one of these in it.
PEAKS = {
    "H200": 989.5e12,
    "H100 PCIe": 756.5e12,
    "H100 NVL": 835.5e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}


@contextmanager
def against_compiled_step(
    setting: Setting, epochs: int, wanted: float | None = None, compiled: bool = True
) -> Iterator[Row]:
    """Images a second of fine-tuning, augmentation included, and of its step alone, compiled.

    The other way sends one random batch that is on the device through forward, cross-entropy,
    backward and step, all by ``torch.compile``. Neither validates.

    Args:
        setting: network, images and device.
        epochs: that are trained in one repetition.
        wanted: the ratio that is asked for.
        compiled: whether the other way is.
    """
    made = setting.run(AUGMENTED)
    phase = without_validation(_phase(made, epochs))
    step = _step(setting, math.ceil(setting.images / phase.steps), compiled)
    inputs = setting.random_inputs(math.ceil(setting.images / phase.steps))

    def other() -> Taken:
        with as_a_loop(setting):
            return timed(work, setting.device)

    def work() -> float:
        for _ in range(epochs * phase.steps):
            step(inputs)
        return epochs * phase.steps * len(inputs)

    yield Row(
        name=f"finetune, {setting.name}, {setting.arithmetic}",
        against="the compiled step alone" if compiled else "the step alone",
        ours=lambda: images_of(setting, phase),
        other=other,
        unit="images",
        wanted=wanted,
        note=f"batches of {setting.batch_size}",
        operations=operations_an_image(setting),
        peak=peak(setting),
    )


def operations_an_image(setting: Setting) -> float:
    """Floating-point operations of forward and backward for one image, of matrices alone."""
    network, inputs = setting.network().train(), setting.random_inputs(2)
    with FlopCounterMode(display=False) as counter:
        network(inputs).sum().backward()
    return counter.get_total_flops() / len(inputs)


def peak(setting: Setting) -> float | None:
    """Operations a second that the device can do at most; None where that is not known."""
    if setting.device.type != "cuda" or setting.precision != "bf16":
        return None
    name = torch.cuda.get_device_name(setting.device)
    return next((of for known, of in PEAKS.items() if known in name), None)


def _phase(made: Run, epochs: int) -> Phase:
    recipe = recipes.of(
        {
            "recipe": "finetune",
            "epochs": epochs,
            "lr": LR,
            "momentum": MOMENTUM,
            "schedule": "constant",
        }
    )
    assert isinstance(recipe, recipes.Baseline)
    (phase,) = recipe.phases(made)
    assert isinstance(phase, Phase)
    return phase


def _step(setting: Setting, images: int, compiled: bool) -> Callable[[Tensor], None]:
    network = in_place(copy.deepcopy(setting.network())).train()
    optimizer = torch.optim.SGD(network.parameters(), LR, momentum=MOMENTUM)
    labels = torch.arange(images, device=setting.device) % setting.classes

    def loss_of(inputs: Tensor) -> Tensor:
        return functional.cross_entropy(network(inputs), labels)

    update: Callable[[], object] = optimizer.step
    if compiled:
        loss_of, update = torch.compile(loss_of), torch.compile(update)

    def step(inputs: Tensor) -> None:
        with runtime.autocast(setting.device, setting.precision):
            loss = loss_of(inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        update()

    return step
