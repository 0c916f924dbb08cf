"""The only collective operations of training. With them, losses and batch norm statistics are those of the global batch.

Worker r of W workers holds the rows r, r + W, r + 2W, … of a batch of B rows. So the workers' shares differ by at most one row, and a
share may be empty. After :func:`gather_rows`, every worker computes the same global loss. On each worker, the gradient reaches only the
worker's own rows; :func:`sum_gradients` adds up these parts. So W workers compute the same loss and gradients as one worker. Without a
process group, nothing is communicated and every function leaves its input as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, total: int) -> Tensor:
        world, rank = world_size(), dist.get_rank()
        sizes = [len(range(r, total, world)) for r in range(world)]
        if len(x) != sizes[rank]:
            raise ValueError(f"worker {rank} of {world} holds {len(x)} rows of a batch of {total}, not {sizes[rank]}")
        ctx.start, ctx.rows = sum(sizes[:rank]), len(x)
        # `all_gather` needs equal sizes: shares are padded to the size of the largest one, and the padding is cut off afterwards.
        padded = x.new_zeros(sizes[0], *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every worker computes the same loss from the same gathered rows, so its own slice is the whole gradient of its rows.
        return gradients[0].narrow(0, ctx.start, ctx.rows), None


def gather_rows(x: Tensor, total: int) -> Tensor:
    """Return the rows of all workers in rank order, with gradient: [b, …] on each worker → [total, …].

    Raises :class:`ValueError` if a worker's share has the wrong number of rows.
    """
    return x if world_size() == 1 else _GatherRows.apply(x, total)


def replicated(parameter: Tensor) -> Tensor:
    """Return the parameter for use in a loss that every worker computes as a whole.

    Every worker then holds the whole gradient of the parameter, and :func:`sum_gradients` would count it once for each worker. So this
    function divides the gradient by the number of workers.
    """
    if world_size() == 1 or not parameter.requires_grad:
        return parameter
    use = parameter.view_as(parameter)
    use.register_hook(lambda gradient: gradient / world_size())
    return use


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Through the sum, the outputs of every worker depend on this worker's input, so their gradients are added up.
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of `x` over all workers, with gradient."""
    return x if world_size() == 1 else _SumOverWorkers.apply(x)


def sum_gradients(module: nn.Module) -> None:
    """Add up each parameter's gradient over the workers, in place. A parameter without a gradient on this worker counts as zero."""
    if world_size() == 1:
        return
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # One message for all gradients, because there are many small matrices.
    total = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    dist.all_reduce(total)
    for parameter, gradient in zip(trained, total.split([p.numel() for p in trained]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def agreed(value: bool) -> bool:
    """Return the first worker's value on every worker."""
    if world_size() == 1:
        return value
    said = torch.tensor(float(value), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(said, src=0)
    return bool(said)


def share_state(module: nn.Module) -> None:
    """Copy the first worker's parameters and buffers to every worker, in place."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the global batch. `nn.SyncBatchNorm` does the same, but refuses CPU tensors.

    On one worker it computes what `nn.BatchNorm1d` computes. Its state dict has the same entries.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized rows: [b, d] → [b, d]."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        # Shares may differ in size, so the number of rows is summed along with the rows.
        sums = all_reduce_sum(torch.cat([x.sum(dim=0), x.new_tensor([len(x)])]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
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
