"""Cross-entropy against its definition, class weights against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from pipeline.training.losses import balanced_weights, cross_entropy

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [-1.0, 3.0, 60.0]])
LABELS = torch.tensor([1, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
def test_cross_entropy_is_minus_the_log_of_the_softmax(smoothing, weights):
    expected = []
    for row, of in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        logs = [value - math.log(sum(math.exp(v) for v in row)) for value in row]
        target = [smoothing / 3 + (1 - smoothing) * (c == of) for c in range(3)]
        paid = -sum(t * log for t, log in zip(target, logs, strict=True))
        expected.append(paid * (weights[of] if weights else 1.0))
    found = cross_entropy(
        LOGITS,
        LABELS,
        label_smoothing=smoothing,
        class_weights=torch.tensor(weights) if weights else None,
    )
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_balanced_weights_are_scikit_learns():
    labels = torch.tensor([0] * 5 + [1] * 20 + [2] * 200)
    own = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    weights = balanced_weights(labels, 3)
    assert weights.tolist() == pytest.approx(own.tolist())
    assert weights[labels].mean().item() == pytest.approx(1)


def test_a_class_without_images_weighs_nothing():
    weights = balanced_weights(torch.tensor([0, 2, 2]), 4)
    assert weights.tolist() == pytest.approx([1.5, 0, 0.75, 0])
