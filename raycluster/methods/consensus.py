"""The method `consensus`, our own: neighbor-whitened consensus.

It has no epochs and no losses. Its constants follow from the numbers of images and clusters. The algorithm is in
:mod:`raycluster.methods.consensus_algorithm`; this module fits it in a run and predicts with what it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from raycluster.config import MethodConfig
from raycluster.methods.base import JOINED_ROWS, FittedMethod, TrainingData
from raycluster.methods.consensus_algorithm import consensus
from raycluster.methods.consensus_config import SHORTCUTS, ConsensusConfig, Shortcuts, default_sample
from raycluster.randomness import sampled

DEFAULT = ConsensusConfig(name="consensus")


class ConsensusMethod(FittedMethod):
    """Whitening and cluster centers in the form of SEIC's image head: Linear(d, d), normalized, Linear(d, C)."""

    name = "consensus"
    text = "optional"
    Config = ConsensusConfig
    image_head = ("image_projection", "image_clustering")
    config: ConsensusConfig

    def __init__(self, config: ConsensusConfig, dim: int, n_clusters: int, n_rows: int, seed: int) -> None:
        filled = {"train_sample": config.train_sample or default_sample(n_clusters)}
        super().__init__(config.model_copy(update=filled), dim, n_clusters, n_rows, seed)
        # `fit` sets these weights. `skip_init` draws no random start, which would advance torch's global generator.
        self.image_projection = nn.utils.skip_init(nn.Linear, dim, dim)
        self.image_clustering = nn.utils.skip_init(nn.Linear, dim, n_clusters, bias=False)

    @classmethod
    def default_sample(cls, n_clusters: int) -> int:
        """Return the default of `train_sample`: 200 images a cluster, but at least 20,000."""
        return default_sample(n_clusters)

    @classmethod
    def wants_vocabulary(cls, config: MethodConfig) -> bool:
        """Return True: the method selects among all nouns itself, after it has averaged images over their neighbors."""
        return True

    @torch.no_grad()
    def fit(self, data: TrainingData, shortcuts: Shortcuts = SHORTCUTS) -> dict[str, float]:
        """Fit whitening and centers, and return the facts of :class:`Consensus`."""
        rows = torch.arange(len(data.images), device=data.images.device)
        found = consensus(data.unit_images(rows), data.vocabulary, self.n_clusters, self.seed, self.config, shortcuts)
        self.image_projection.weight.copy_(found.whitening.T)
        self.image_projection.bias.copy_(-found.mean @ found.whitening)
        self.image_clustering.weight.copy_(found.centers / self.config.temperature)
        return found.facts

    def explain(self, facts: Mapping[str, float]) -> str:
        """Say which views voted, and how far they agree."""
        words = f"{facts['votes']:.0f} labelings voted, {facts['votes'] / facts['views']:.0f} of each view: the images"
        if facts["views"] == 1:
            words += (
                " alone, because there are no nouns" if self.config.text_weight else " alone, because text_weight is 0"
            )
        else:
            words += ", the images with the nouns chosen for groups of images, and the images with all nouns"
        pairs = {
            "agreement_within_views": "labelings of one view",
            "agreement_image_text": "labelings of images alone and of images with text",
            "agreement_text_text": "labelings of the two views with text",
        }
        agree = [f"{facts[key]:.2f} between {words}" for key, words in pairs.items() if key in facts]
        if agree:
            words += f". Their agreement (1: the same clusters; 0: unrelated) is {', '.join(agree)}"
        if "images" in facts:  # Models of earlier versions do not say it.
            words = f"The clusters were fitted to {facts['images']:,.0f} images. {words}"
        return (
            f"{words}. {facts['nearest_own_center']:.1%} of the images are nearest to the center of their own cluster."
        )

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the cosines to the centers in the last whitened space, divided by the temperature."""
        whitened = normalize(self.image_projection(normalize(embeddings, dim=1)), dim=1)
        logits: Tensor = self.image_clustering(whitened)
        return logits


def consensus_clusters(data: TrainingData, n_clusters: int, seed: int, config: ConsensusConfig = DEFAULT) -> Tensor:
    """Return the clusters [N] int64 of all rows, towards which other methods draw their heads.

    The method is fitted on at most `train_sample` rows. Its views with text need `data.vocabulary`.
    """
    ids = data.row_ids.cpu().numpy()
    size = config.train_sample or default_sample(n_clusters)
    rows = torch.from_numpy(np.flatnonzero(np.isin(ids, sampled(ids, size, seed))))
    part = replace(data, row_ids=data.row_ids[rows], images=data.images[rows], counterparts=None, nouns=None)
    method = ConsensusMethod(config, data.images.shape[1], n_clusters, len(rows), seed).to(data.images.device)
    method.fit(part)
    return torch.cat([method.predict(images).argmax(dim=1) for images in data.images.split(JOINED_ROWS)])


METHOD = ConsensusMethod
