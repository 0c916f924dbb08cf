"""The training loop of the heads: the same steps on any number of workers. This module does not use Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from raycluster.clustering.neighbors import nearest_neighbors
from raycluster.errors import RayclusterError
from raycluster.methods.base import TrainedMethod, TrainingData
from raycluster.methods.collectives import gather_rows, share_state, sum_gradients
from raycluster.randomness import epoch_order

History = list[dict[str, float]]
"""One entry for each finished epoch: the means of the loss and of its terms over the epoch's steps."""


def find_neighbors(method: TrainedMethod, data: TrainingData, rows: range | None = None) -> dict[str, Tensor]:
    """Return int32 [n, k] for each of the method's graphs: the neighbors of the rows at these positions (default: all), best first."""
    return {
        name: nearest_neighbors(
            getattr(data, graph.space), graph.k, metric=graph.metric, include_self=graph.include_self, rows=rows
        )
        for name, graph in method.graphs().items()
    }


def train(
    method: TrainedMethod,
    data: TrainingData,
    neighbors: Mapping[str, Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    history: History | None = None,
    rank: int = 0,
    world: int = 1,
    after_epoch: Callable[[torch.optim.Optimizer, History], None] | None = None,
) -> History:
    """Train to the end of the method's schedule, and return the history of all epochs.

    `neighbors`: int32 [N, k] positions for each of the method's graphs. To resume, pass the restored `optimizer` and `history`.
    `after_epoch` is called on every worker. If a loss is not finite, every worker raises :class:`RayclusterError`.
    """
    schedule, history = method.schedule(), list(history or [])
    optimizer = optimizer or method.optimizer()
    if not history:
        _on_first(method, rank, lambda: method.setup(data))
    for epoch in range(len(history), schedule.epochs):
        method.train()
        _on_first(method, rank, lambda: method.start_epoch(data))
        order = epoch_order(len(data.row_ids), method.seed, epoch).to(data.row_ids.device)
        sums: dict[str, Tensor] = {}
        for step in range(schedule.steps_per_epoch):
            batch = order[step * schedule.batch_size : (step + 1) * schedule.batch_size]
            for name, value in _step(method, optimizer, data, neighbors, batch, epoch, rank, world).items():
                sums[name] = sums.get(name, 0) + value
        means = {name: float(total) / schedule.steps_per_epoch for name, total in sums.items()}
        if not torch.isfinite(torch.tensor(means["loss"])):
            raise RayclusterError(
                f"training: the loss became {means['loss']} in epoch {epoch + 1}; lower `method.learning_rate`"
            )
        history.append(means)
        if after_epoch is not None:
            after_epoch(optimizer, history)
    return history


def _on_first(method: TrainedMethod, rank: int, change: Callable[[], None]) -> None:
    """Change the method on the first worker and copy the result to the others: recomputed there, it might differ in the last bit."""
    if rank == 0:
        change()
    share_state(method)


def _step(
    method: TrainedMethod,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    neighbors: Mapping[str, Tensor],
    batch: Tensor,
    epoch: int,
    rank: int,
    world: int,
) -> dict[str, Tensor]:
    optimizer.zero_grad(set_to_none=True)
    rows = batch[rank::world]
    share = method.forward_batch(data, neighbors, rows, epoch)
    if data.consensus is not None:
        share["consensus"] = data.consensus[rows]
    # The losses are statistics of the global batch: after the outputs are gathered, every worker computes the same loss.
    outputs = {name: gather_rows(value, len(batch)) for name, value in share.items()}
    loss, terms = method.guided_loss(outputs)
    loss.backward()
    sum_gradients(method)
    optimizer.step()
    method.after_step(outputs)
    return terms
