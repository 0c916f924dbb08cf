"""One-to-one matchings of many labels, clusters or nouns, of which few pairs come into question."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching


def full_matching(graph: csr_array, maximize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and the columns, both int [n], of the matching of all n rows with the smallest sum of weights, or the largest.

    `graph` [n, m]: the weights of the pairs that may be matched, none of them zero. There must be a matching of all rows.
    """
    # SciPy 1.13 takes indices of 32 bits only.
    indices, starts = (each.astype(np.int32) for each in (graph.indices, graph.indptr))
    narrow = csr_array((graph.data, indices, starts), shape=graph.shape)
    return min_weight_full_bipartite_matching(narrow, maximize=maximize)
