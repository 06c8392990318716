"""The weights of a model in one piece, and their update: Muon for the matrices of the blocks, Adam for the others.

In one piece, because a model of a hundred small tensors spends more time on starting kernels than on arithmetic.
Muon: https://kellerjordan.github.io/posts/muon (Newton-Schulz coefficients); the factor that gives its updates the size
of Adam's: arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.95  # of Muon
BETAS = (0.9, 0.99)  # of Adam
EPS = 1e-10
AVERAGING = 0.999  # memory of the averaged weights, per step
MATRIX_DECAY = 0.02  # weight decay of the matrices, times the learning rate
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ALIGNMENT = 64  # elements
SMALL = 64  # rows of a matrix whose product costs less than its start


def orthogonal(matrices: Tensor) -> Tensor:
    """[n, rows, columns], no more rows than columns -> about the nearest matrices whose singular values are all 1.

    Rows and columns of zeros stay zeros, and change nothing of the rest.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16 if matrices.device.type == "cuda" else torch.float32)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float()


@dataclass(frozen=True)
class Group:
    """Matrices of one shape that lie one behind the other."""

    start: int
    count: int
    rows: int
    columns: int

    @property
    def sides(self) -> tuple[int, int]:
        """The shorter and the longer one."""
        return min(self.rows, self.columns), max(self.rows, self.columns)

    def of(self, flat: Tensor) -> Tensor:
        """[count, shorter side, longer side] of a flat tensor, a view."""
        found = flat[self.start : self.start + self.count * self.rows * self.columns]
        found = found.view(self.count, self.rows, self.columns)
        return found.mT if self.rows > self.columns else found


def stacked(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups that are made orthogonal at once: of equal sides, and all small ones, in a frame of zeros."""
    found: dict[tuple[int, int], list[Group]] = {}
    for group in groups:
        found.setdefault((0, 0) if group.sides[0] <= SMALL else group.sides, []).append(group)
    return list(found.values())


def laid_out(flat: Tensor, p: Tensor) -> Tensor:
    """A flat slice as the parameter p [out, in, ...]: of convolutions the input channels lie together.

    Convolutions of clips with channels last want their weights so, and give their gradients so: else each is copied.
    """
    if p.ndim < 4:
        return flat.view(p.shape)
    return flat.view(p.shape[0], *p.shape[2:], p.shape[1]).movedim(-1, 1)


class Weights:
    """Trained parameters as slices of flat tensors: exact values, copy to compute with, gradients, moments, average."""

    def __init__(
        self,
        model: nn.Module,
        rate: float,
        matrix_rate: float,
        matrices: Callable[[str, Tensor], bool],
        dtype: torch.dtype,
    ) -> None:
        self._rate, self._matrix_rate = rate, matrix_rate
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
        others: list[nn.Parameter] = []
        for name, p in named:
            if matrices(name, p):
                shapes.setdefault((p.shape[0], p.numel() // p.shape[0]), []).append(p)
            else:
                others.append(p)
        self._places: list[tuple[nn.Parameter, int]] = []
        groups: list[Group] = []
        end = 0
        for (rows, columns), members in shapes.items():
            groups.append(Group(end, len(members), rows, columns))
            for p in members:
                self._places.append((p, end))
                end += p.numel()
            end += -end % ALIGNMENT
        self._stacks, self._adam = stacked(groups), end
        for p in others:
            self._places.append((p, end))
            end += p.numel()
            end += -end % ALIGNMENT
        device = named[0][1].device
        self.master = torch.zeros(end, device=device)
        for p, start in self._places:
            laid_out(self.master[start : start + p.numel()], p).copy_(p.detach())
        self.working = self.master if dtype == torch.float32 else self.master.to(dtype)
        self.gradient = torch.zeros_like(self.working)
        for p, start in self._places:
            p.data = laid_out(self.working[start : start + p.numel()], p)
        self.averaged, self.first = self.master.clone(), torch.zeros_like(self.master)
        self.second = torch.zeros_like(self.master[self._adam :])
        self.count = torch.zeros(1, device=device)  # of updates
        self.share = torch.ones(1, device=device)  # of the highest learning rate

    def state(self) -> dict[str, Tensor]:
        """What an interrupted training goes on from."""
        names = ("master", "averaged", "first", "second", "count")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        for name, value in self.state().items():
            value.copy_(state[name])
        if self.working is not self.master:
            self.working.copy_(self.master)

    def collect(self) -> None:
        """Takes the gradients that a backward pass left at the parameters; where it left none they are zero.

        They are copied at once: added to what is there, each would be a kernel of its own.
        """
        found = [(p.grad, p, start) for p, start in self._places if p.grad is not None]
        if len(found) < len(self._places):
            self.gradient.zero_()
        views = [laid_out(self.gradient[start : start + p.numel()], p) for _, p, start in found]
        torch._foreach_copy_(views, [gradient for gradient, *_ in found])
        for p, _ in self._places:
            p.grad = None

    @torch.no_grad()
    def update(self) -> None:
        """One step along the gradients."""
        gradient = self.gradient.float()
        gradient = gradient * (1 / (gradient.norm() + 1e-6)).clamp(max=1)
        self.count += 1
        if self._stacks:
            self._update_matrices(gradient[: self._adam])
        now, first, values = gradient[self._adam :], self.first[self._adam :], self.master[self._adam :]
        first.lerp_(now, 1 - BETAS[0])
        self.second.lerp_(now.square(), 1 - BETAS[1])
        size = (self.second / (1 - BETAS[1] ** self.count)).sqrt_().add_(EPS)
        values.addcdiv_(first * (self._rate * self.share / (1 - BETAS[0] ** self.count)), size, value=-1)
        if self.working is not self.master:
            self.working.copy_(self.master)
        keep = (self.count / (self.count + 9)).clamp(max=AVERAGING)
        self.averaged.lerp_(self.master, 1 - keep)

    def _update_matrices(self, gradient: Tensor) -> None:
        momentum, values = self.first[: self._adam], self.master[: self._adam]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        ahead, step = gradient.lerp(momentum, MOMENTUM), torch.zeros_like(gradient)
        for stack in self._stacks:
            rows, columns = (max(group.sides[side] for group in stack) for side in (0, 1))
            parts = [group.of(ahead) for group in stack]
            framed = [F.pad(part, (0, columns - part.shape[2], 0, rows - part.shape[1])) for part in parts]
            made = orthogonal(torch.cat(framed)).split([group.count for group in stack])
            for group, found in zip(stack, made, strict=True):
                short, long = group.sides
                group.of(step).copy_(found[:, :short, :long]).mul_(0.2 * long**0.5)
        values.addcmul_(step.add_(values, alpha=MATRIX_DECAY), self._matrix_rate * self.share, value=-1)

    @torch.no_grad()
    def finish(self) -> None:
        """Leaves the model with its averaged weights, float32 and apart from each other."""
        for p, start in self._places:
            averaged = laid_out(self.averaged[start : start + p.numel()], p)
            p.data = averaged.clone(memory_format=torch.contiguous_format)
