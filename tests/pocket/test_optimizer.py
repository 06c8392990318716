"""The update of all weights at once, against that of each alone, and the gradients that it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from wancore.pocket.training.optimizer import Weights, orthogonal

SHAPES = ((8, 27), (27, 8), (16, 5, 3, 3), (96, 128), (128, 96), (96, 96))


class Several(nn.Module):
    """Matrices of these shapes and a vector."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(4)
        self.values = nn.ParameterList(torch.randn(shape, generator=random) for shape in (*shapes, (7,)))


def weights_of(model: nn.Module) -> Weights:
    """Muon for what has two axes or more."""
    return Weights(model, 1e-2, 2e-2, lambda _, p: p.ndim > 1, torch.float32)


def updated(model: Several, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """The parameters after three updates along these gradients, which are too short to be cut."""
    weights = weights_of(model)
    for turn in range(3):
        for p, gradient in zip(model.values, gradients, strict=True):
            p.grad = (gradient * (1 + turn)).clone()
        weights.collect()
        weights.update()
    return [p.detach().clone() for p in model.values]


def test_an_update_of_all_matrices_is_that_of_each_alone():
    together = Several(SHAPES)
    random = torch.Generator().manual_seed(5)
    gradients = [1e-3 * torch.randn(p.shape, generator=random) for p in together.values]
    before = [p.detach().clone() for p in together.values]
    found = updated(together, gradients)
    for number, shape in enumerate(SHAPES):
        alone = Several((shape,))
        with torch.no_grad():
            alone.values[0].copy_(before[number])
        (expected, _) = updated(alone, [gradients[number], gradients[-1]])
        change = (expected - before[number]).norm()
        assert change > 0.01
        assert (found[number] - expected).norm() <= 1e-4 * change, shape


def test_matrices_are_made_orthogonal():
    x = torch.randn((3, 24, 70), generator=torch.Generator().manual_seed(6))
    values = torch.linalg.svdvals(orthogonal(x))
    assert values.min() > 0.6 and values.max() < 1.3
    framed = orthogonal(torch.nn.functional.pad(x, (0, 9, 0, 5)))
    assert (framed[:, :24, :70] - orthogonal(x)).norm() <= 1e-4 * x.shape[0] and not framed[:, 24:].any()


@pytest.mark.parametrize("used", [(0, 1), (1,)])
def test_what_a_loss_does_not_meet_has_no_gradient(used: tuple[int, ...]):
    model = Several(((3, 4), (4, 3)))
    weights = weights_of(model)
    weights.gradient.fill_(9)  # of the step before
    sum(((k + 1) * model.values[k]).sum() for k in used).backward()  # type: ignore[union-attr]
    weights.collect()
    expected = [(k + 1.0 if k in used else 0.0) for k in (0, 1)]
    found = [weights.gradient[start : start + 12].unique().tolist() for start in (0, 64)]
    assert found == [[value] for value in expected]
    assert all(p.grad is None for p in model.values)


def test_convolutions_keep_their_meaning_and_take_gradients_as_they_come():
    conv = nn.Conv3d(4, 6, (3, 3, 2))
    before, x = conv.weight.detach().clone(), torch.randn((2, 4, 5, 6, 7), generator=torch.Generator().manual_seed(8))
    expected = conv(x).detach()
    weights = weights_of(conv)
    assert torch.equal(conv.weight, before) and conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert (conv(x) - expected).norm() <= 1e-5 * expected.norm()
    conv(x).square().sum().backward()
    gradient = conv.weight.grad.clone()  # type: ignore[union-attr]
    weights.collect()
    start = next(start for p, start in weights._places if p is conv.weight)
    kept = weights.gradient[start : start + before.numel()].view(6, 3, 3, 2, 4).movedim(-1, 1)
    assert torch.equal(kept, gradient) and gradient.norm() > 1
    weights.finish()
    assert conv.weight.is_contiguous() and torch.equal(conv.weight, before)
