"""How many images go through a network at once where nothing is learnt."""

import pytest
import torch

from pipeline.training.phase import EVALUATION_BATCH, image_batches


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 8, 8), 256), ((3, 32, 32), 256), ((3, 128, 128), 21), ((3, 224, 224), 16)],
)
def test_large_images_go_through_a_cpu_a_few_at_a_time(shape, size):
    images = torch.zeros(300, *shape, dtype=torch.uint8)
    sizes = [len(batch) for batch in image_batches(images)]
    assert sizes == [*[size] * (300 // size), *([300 % size] if 300 % size else [])]


def test_another_device_takes_many_at_a_time():
    images = torch.zeros(300, 3, 224, 224, dtype=torch.uint8, device="meta")
    assert [len(batch) for batch in image_batches(images)] == [EVALUATION_BATCH, 44]
