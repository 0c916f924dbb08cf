"""The only collectives: they make the losses and batch norm statistics of the global batch.

Every worker holds an equal share of the batch and, after :func:`gather_rows`, computes the same global loss. Its gradient reaches
each worker's own rows only; :func:`sum_gradients` adds the shares up. So W workers with B/W rows give the loss and the gradients of
one worker with B rows. Without a process group each function is the identity.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each worker computes the same loss of the same gathered rows: its own slice is the whole gradient of its rows.
        return gradients[0].narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


def gather_rows(x: Tensor) -> Tensor:
    """[b, …] of each worker → [W·b, …] of all, in rank order, with gradient. Shares must be equal."""
    return x if world_size() == 1 else _GatherRows.apply(x)


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every worker's outputs depend on this worker's input through the sum.
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over workers, with gradient."""
    return x if world_size() == 1 else _SumOverWorkers.apply(x)


def sum_gradients(module: nn.Module) -> None:
    """Add up each parameter's gradient over the workers, in place; a parameter without one on this worker counts as zero."""
    if world_size() == 1:
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the global batch. `nn.SyncBatchNorm` does the same, but refuses CPU tensors.

    On one worker it is `nn.BatchNorm1d`, whose state it shares.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[b, d] → [b, d]."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        n = len(x) * world_size()
        mean = all_reduce_sum(x.sum(dim=0)) / n
        variance = all_reduce_sum((x - mean).square().sum(dim=0)) / n
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = self.momentum if self.momentum is not None else 1 / (int(self.num_batches_tracked) + 1)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * n / (n - 1), momentum)
            self.num_batches_tracked += 1
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
