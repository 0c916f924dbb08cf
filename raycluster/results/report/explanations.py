"""One plain sentence for each status and each score: what it means and how to read it."""

from __future__ import annotations

STATUSES = {
    "missing": "The file is not there any more, or its link leads nowhere.",
    "forbidden": "The storage refused to hand the file out.",
    "empty": "The file holds no bytes.",
    "undecodable": "The bytes are cut short or are no picture.",
    "too_large": "Larger than encoder.max_bytes or encoder.max_pixels allows.",
    "unsupported": "A picture of a kind that is not read.",
    "changed": "The file is no longer the one that was listed.",
    "failed": "Reading failed for another reason.",
}
"""Every status of the tables except `ok`."""

LABELLED = {
    "acc": (
        "Accuracy (ACC)",
        "Share of the labelled images in the right cluster, clusters and labels being matched in the best way; 100% is perfect.",
    ),
    "nmi": (
        "Normalized mutual information (NMI)",
        "How much cluster and label tell about each other, from 0% to 100%; it grows a little with the number of clusters.",
    ),
    "ari": (
        "Adjusted Rand index (ARI)",
        "Agreement over pairs of images, corrected for chance: 0% is what chance gives, 100% is perfect.",
    ),
}
"""Scores against labels: metric key → (title, sentence)."""

LABEL_FREE = {
    "neighborhood_consistency": (
        "Neighborhood consistency",
        "Share of an image's 20 nearest neighbors that are in its own cluster; when low, cluster borders cut through dense groups.",
    ),
    "confidence": (
        "Confidence",
        "Mean probability of the cluster an image was given; near 1 the method is sure, which does not yet make it right.",
    ),
    "margin": (
        "Margin",
        "Mean distance from the best to the second-best probability; near 0 many images lie between two clusters.",
    ),
    "imbalance": (
        "Size imbalance",
        "0 when all clusters are equally large, 1 when one holds everything; high where the data are balanced means merged groups.",
    ),
    "neighborhood_imbalance": (
        "Neighborhood imbalance",
        "Spread of how often an image is another's neighbor, relative to its mean; when high, a few images are near to everything.",
    ),
    "silhouette": (
        "Silhouette",
        "From −1 to 1: how much nearer images are to their own cluster's center than to the next; below 0 clusters overlap.",
    ),
    "image_text_agreement": (
        "Image-text agreement",
        "Share of images whose text counterpart is nearest to those of their own cluster; near 1 the nouns support the clusters.",
    ),
}
"""Scores that need no labels: metric key → (title, sentence)."""

OF_IMAGES = ("neighborhood_imbalance",)
"""Scores that depend on the images alone, not on their clusters."""
