"""One plain sentence for each status and each score: what it means and how to read it."""

from __future__ import annotations

STATUSES = {
    "missing": "The file is not there any more, or it is a link to a file that does not exist.",
    "forbidden": "The storage denied access to the file.",
    "empty": "The file holds no bytes.",
    "undecodable": "The file is incomplete, damaged or no picture.",
    "too_large": "The file has more bytes than encoder.max_bytes or more pixels than encoder.max_pixels allows.",
    "unsupported": "The picture is of a kind that raycluster does not read.",
    "changed": "The file is no longer the one that was listed.",
    "failed": "Reading failed for another reason.",
}
"""Every status of the tables except `ok`."""

LABELLED = {
    "acc": (
        "Accuracy (ACC)",
        "Share of the labeled images that are in the cluster of their label, if each label is matched to one cluster in the best way; 100% is perfect.",
    ),
    "nmi": (
        "Normalized mutual information (NMI)",
        "How much the cluster of an image tells about its label, and its label about its cluster, from 0% to 100%; it grows a little with the number of clusters.",
    ),
    "ari": (
        "Adjusted Rand index (ARI)",
        "Agreement over pairs of images, corrected for chance: 0% is expected by chance, 100% is perfect.",
    ),
}
"""Scores against labels: metric key → (title, sentence)."""

LABEL_FREE = {
    "neighborhood_consistency": (
        "Neighborhood consistency",
        "Share of an image's 20 nearest neighbors that are in its own cluster; if it is low, clusters divide dense groups of images.",
    ),
    "confidence": (
        "Confidence",
        "Mean probability of the cluster that an image is assigned to; near 1 the method is sure, but it may still be wrong.",
    ),
    "margin": (
        "Margin",
        "Mean difference between the largest and the second largest probability; near 0 many images lie between two clusters.",
    ),
    "imbalance": (
        "Size imbalance",
        "0 if all clusters are equally large, 1 if one cluster holds everything. If the true groups are equally large, a high value means that groups were merged.",
    ),
    "neighborhood_imbalance": (
        "Neighborhood imbalance",
        "How much images differ in how often they are a neighbor of others (standard deviation divided by mean); if it is high, a few images are near to everything.",
    ),
    "silhouette": (
        "Silhouette",
        "From −1 to 1: how much nearer images are to the center of their own cluster than to the nearest other center; below 0 clusters overlap.",
    ),
    "image_text_agreement": (
        "Image-text agreement",
        "Share of images whose text counterpart is nearest to the mean counterpart of their own cluster; near 1 the nouns support the clusters.",
    ),
}
"""Scores that need no labels: metric key → (title, sentence)."""

OF_IMAGES = ("neighborhood_imbalance",)
"""Scores that depend on the images alone, not on their clusters."""
