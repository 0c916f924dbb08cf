"""The semantics stage on Ray: embed the vocabulary, keep the nouns that fit the images, and pair each image with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from raycluster.compute import work
from raycluster.compute.node_checks import check_here
from raycluster.compute.resources import Resources, own_device
from raycluster.compute.tasks import file_groups, map_tasks, one_task
from raycluster.config import RunConfig
from raycluster.encoder.clip import ClipEncoder, EncoderSpec
from raycluster.semantics import vocabulary
from raycluster.semantics.pairing import SemanticSpace
from raycluster.storage.location import Location, read_table
from raycluster.tables.files import write_pieces
from raycluster.tables.rows import among, vector_column, vectors, wanted_by_file
from raycluster.tables.schemas import counterparts_schema

log = logging.getLogger(__name__)

NOUNS_A_TASK = 512


def embed_vocabulary(config: RunConfig, nouns: list[str], spec: EncoderSpec, resources: Resources) -> np.ndarray:
    """Return unit noun embeddings, float32 [M, d]: from the cache, or from the text encoder, and then write them to the cache."""
    key = vocabulary.vocabulary_key(nouns, config.vocabulary.prompts, spec.fingerprint)
    file = vocabulary.cache_folder(config.vocabulary, config.storage) / "nouns" / f"{key}.parquet"
    if file.exists():
        log.info("vocabulary: %d noun embeddings from the cache %s", len(nouns), file.uri)
        return vocabulary.read_nouns(file)[1]
    log.info("vocabulary: encoding %d nouns with %d prompts each", len(nouns), len(config.vocabulary.prompts))
    embeddings = np.concatenate(list(_encode(nouns, config.vocabulary.prompts, spec, resources)))
    vocabulary.write_nouns(file, nouns, embeddings)
    return embeddings


def _encode(
    nouns: list[str], prompts: tuple[str, ...], spec: EncoderSpec, resources: Resources
) -> Iterator[np.ndarray]:
    threads = resources.threads(resources.encoder_actors)

    class TextEncoder:
        def __init__(self) -> None:
            check_here(resources.common)
            device = own_device()
            if device == "cpu":
                torch.set_num_threads(threads)
            self.encoder = ClipEncoder.load(spec, device)

        def encode(self, chunk: list[str]) -> np.ndarray:
            return vocabulary.embed_nouns(chunk, prompts, self.encoder.encode_texts)

    chunks = [nouns[start : start + NOUNS_A_TASK] for start in range(0, len(nouns), NOUNS_A_TASK)]
    # Nodes can die, most often spot instances. Ray then restarts the actor on another node, which encodes its last chunk again.
    actor = ray.remote(max_restarts=-1, max_task_retries=-1, **resources.encoder_actor)(TextEncoder)
    actors = [actor.remote() for _ in range(min(resources.encoder_actors, len(chunks)))]
    with work.ending(lambda: work.kill(actors)):
        for embeddings in ray.util.ActorPool(actors).map(lambda actor, chunk: actor.encode.remote(chunk), chunks):
            work.check()
            yield embeddings


def keep_nouns(
    space: SemanticSpace, images: np.ndarray, nouns: np.ndarray, n_clusters: int, seed: int, resources: Resources
) -> np.ndarray:
    """Return the indices (ascending) of the nouns that the method's semantic space keeps for these images.

    `images` [N, d] float16 as embedded, `nouns` [M, d] float32 unit rows. The work runs in one Ray task, on a GPU if the cluster has one.
    """

    def select(images: np.ndarray, nouns: np.ndarray) -> np.ndarray:
        x, t = (torch.from_numpy(np.array(each)).to(own_device()) for each in (images, nouns))
        return space.select(x, t, n_clusters, seed).cpu().numpy()

    return one_task(select, resources, ray.put(images), ray.put(nouns))


def pair(
    space: SemanticSpace,
    embeddings: list[Location],
    wanted: np.ndarray,
    kept: np.ndarray,
    folder: Location,
    resources: Resources,
) -> Iterator[int]:
    """Write the text counterparts of the rows `wanted` (int64, ascending); yield the number of rows that each task wrote.

    A task reserves one core, or one GPU if the cluster has GPUs.
    """

    def pair_parts(files: Sequence[tuple[Location, np.ndarray]], kept: np.ndarray) -> int:
        rows, device = 0, own_device()
        for file, wanted in files:
            table = read_table([file], ["row_id", "status", "embedding"])
            table = table.filter(pc.equal(table.column("status"), "ok"))
            table = table.filter(pa.array(among(table.column("row_id").to_numpy(), wanted)[0]))
            if not len(table):
                continue
            x, t = (torch.from_numpy(np.array(each)).to(device) for each in (vectors(table), kept))
            paired = space.pair(x, t).cpu().numpy().astype(np.float16)
            columns = [table.column("row_id"), vector_column(paired)]
            part = pa.table(columns, schema=counterparts_schema(paired.shape[1]))
            write_pieces(folder, part)
            rows += len(part)
        return rows

    demand = resources.heavy_task if resources.use_gpu else None
    groups = file_groups(wanted_by_file(embeddings, wanted), resources.cpus)
    yield from map_tasks(pair_parts, groups, ray.put(kept), common=resources.common, demand=demand)
