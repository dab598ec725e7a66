"""Where a run's images and latents lie alters no byte, and an epoch waits for no device."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import recipes
from pipeline.data.batches import ImageSet
from pipeline.data.rows import Streamed
from pipeline.params import Augmentation
from pipeline.training.feed import Feed
from pipeline.training.loop import fit
from pipeline.training.phase import Phase
from tests.digits import make_run
from tests.recipes.test_contract import METHODS as CLASSIFIERS
from tests.recipes.test_contract import equal, phases_of, shortened, state
from tests.recipes.test_verification_contract import METHODS as VERIFIERS

SHIFTED = Augmentation(rotation=10, shift=0.1, flip=True, brightness=0.2, erasing=0.5)
METHODS = {
    **{f"classification {name}": shortened(block) for name, block in CLASSIFIERS.items()},
    **{f"verification {name}": block for name, block in VERIFIERS.items()},
}

# What would make the host wait for a GPU: a value is asked for, or a size that depends on values.
WAITING = {
    *("_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "unique_dim"),
    *("_unique", "_unique2", "unique_consecutive", "repeat_interleave", "bincount", "equal"),
}
FETCHING = {"cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__"}


def stream_all(run):
    """The same run with its images and latents streamed."""
    for name in ("train", "val"):
        images = getattr(run, name)
        pixels = images.pixels.numpy()
        content = pixels.reshape(len(pixels), -1)
        places = np.arange(len(pixels))
        rows = Streamed(content, places, pixels.shape[1:], torch.uint8, run.device)
        setattr(run, name, ImageSet(rows, images.labels))
    run.placement = "streamed"
    return run


@pytest.mark.parametrize("augmentation", [None, SHIFTED], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", METHODS)
def test_a_streamed_run_has_the_same_bytes(name, augmentation):
    recipe = recipes.of(METHODS[name])
    ends = []
    for streamed in (False, True):
        run = make_run(pairs=True, augmentation=augmentation)
        run = stream_all(run) if streamed else run
        results = [fit(phase, run.device, "fp32") for phase in phases_of(recipe, run)]
        ends.append((state(run), [(result.history, result.gradients) for result in results]))
    (one, history), (other, history_streamed) = ends
    assert equal(one, other) and history == history_streamed


@pytest.mark.parametrize("streamed", [False, True])
def test_validation_images_are_kept_as_bytes(streamed):
    run = make_run(pairs=True)
    expected = torch.cat(list(run.encode(None, run.val)))
    run = stream_all(run) if streamed else run
    feed = Feed(run, None)
    held = [of for of in vars(feed).values() if isinstance(of, torch.Tensor | list)]
    assert held == []
    for _ in range(2):
        assert torch.equal(torch.cat(list(feed.val())), expected)


def test_kept_latents_are_computed_once_and_streamed():
    run = stream_all(make_run(pairs=True))
    encoder, passed = run.before("embedding"), []
    encoder.register_forward_hook(lambda _, given, __: passed.append(len(given[0])))
    feed = Feed(run, encoder)
    assert sum(passed) == len(run.train) + len(run.val)
    index = torch.tensor([5, 2, 2])
    with torch.no_grad():
        expected = torch.cat(list(run.encode(encoder, run.train)))[index]
    passed.clear()
    (found,) = feed.stream([(index, index)])
    assert torch.equal(feed.inputs(found), expected) and passed == []


class Waits(Exception):
    """The host would wait for the device."""


class NoDispatch(TorchDispatchMode):
    """Fails on operations that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = (
            args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        )
        masks = [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
        if name in WAITING or masks:
            raise Waits(str(func))
        return func(*args, **(kwargs or {}))


class NoFetch(TorchFunctionMode):
    """Fails where a tensor is brought to the host, but for draws, which are made there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in FETCHING and not getattr(args[0], "drawn_on_host", False):
            raise Waits(name)
        found = func(*args, **(kwargs or {}))
        if name in ("rand", "randperm"):
            found.drawn_on_host = True
        return found


@contextmanager
def no_waiting():
    with NoDispatch(), NoFetch():
        yield


@pytest.mark.parametrize("augmentation", [None, SHIFTED], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", METHODS)
def test_no_step_of_an_epoch_waits_for_the_device(name, augmentation):
    """From the first batch on: what is drawn before is drawn on the host and sent at once."""
    recipe = recipes.of(METHODS[name])
    run = make_run(pairs=True, augmentation=augmentation, per_class=8)
    steps = 0
    for phase in phases_of(recipe, run):
        if not isinstance(phase, Phase):
            continue
        phase.training_mode()
        batches = iter(phase.batches())
        batch = next(batches)
        with no_waiting():
            while batch is not None:
                steps += 1
                phase.loss(batch).mean().backward()
                batch = next(batches, None)
    assert steps > 3 or phase.name == "solve"


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
    ],
)
def test_the_test_sees_what_waits(waiting):
    values = torch.arange(4.0)
    with pytest.raises(Waits), no_waiting():
        waiting(values)
