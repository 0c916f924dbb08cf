"""The run configuration: its fields, how they are validated, and how parts of them become fingerprints.

This module is fast to import (no torch, no Ray, no pyarrow), because the command line builds its help from these classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from raycluster.section import SECRET, Section

TAC_PROMPTS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


class EncoderConfig(Section):
    """The CLIP model that turns pictures and nouns into embeddings."""

    model: str = "ViT-B-32-quickgelu"
    """An open_clip architecture, a folder in open_clip's format (`local-dir:<folder>`, `s3://…`), or `builtin` (the tiny demo model)."""
    pretrained: str | None = None
    """An open_clip weight tag (`openai`, …) or a checkpoint file; not for folders and `builtin`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass: `auto` is bf16 on a GPU and fp32 on a CPU."""
    max_bytes: int = Field(default=64 * 2**20, gt=0)
    """Largest file size in bytes. Larger files get the status `too_large` and are never read."""
    max_pixels: int = Field(default=100_000_000, gt=0)
    """Most pixels of a picture. If its header announces more, it gets the status `too_large` and is never decoded."""

    @model_validator(mode="before")
    @classmethod
    def _default_weights(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "model" not in data and "pretrained" not in data:
            return {**data, "pretrained": "openai"}
        return data

    @model_validator(mode="after")
    def _weights_match_model(self) -> EncoderConfig:
        carries_weights = self.model == "builtin" or self.model.startswith(("local-dir:", "s3://"))
        if carries_weights and self.pretrained is not None:
            raise ValueError(f"model {self.model!r} brings its own weights: remove `pretrained`")
        if not carries_weights and self.pretrained is None:
            raise ValueError(f"model {self.model!r} needs `pretrained`: a weight tag (`openai`) or a checkpoint file")
        return self


class VocabularyConfig(Section):
    """The nouns that give the clusters their text side and their names."""

    source: str = "builtin"
    """`builtin`, `wordnet`, or a text, CSV or Parquet file of nouns (text: one per line; CSV and Parquet: column `noun`)."""
    path: str | None = None
    """With `wordnet`: the folder that holds `index.noun` and `data.noun`, or the name of a lexicon of the `wn` package."""
    embeddings: str | None = None
    """A Parquet file of ready-made noun embeddings, with the columns `noun` and `embedding`. No text encoder is loaded then."""
    prompts: tuple[str, ...] = TAC_PROMPTS
    """Prompt templates; `{}` stands for the noun. The embeddings of all prompts of a noun are averaged."""
    cache: str | None = None
    """Folder for noun embeddings that runs share. The default is `$RAYCLUSTER_CACHE`, else the user's cache folder."""

    @field_validator("prompts")
    @classmethod
    def _prompts_hold_a_noun(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts or any(prompt.count("{}") != 1 for prompt in prompts):
            raise ValueError("give at least one template, each with exactly one `{}` for the noun")
        return prompts


class MethodConfig(Section):
    """The clustering method. The constants of each method are declared in its file in `raycluster/methods`."""

    # The method's own class checks the other keys (methods.registry.configure); this module knows no methods.
    model_config = ConfigDict(extra="allow")

    name: str = "consensus"
    """`consensus` (our own), `kmeans`, `tac`, `sic`, `dxmc` or `seic`."""
    profile: Literal["default", "paper"] = "default"
    """`paper` takes the authors' constants as published; `default` scales steps, batch and neighbors to the data."""
    train_sample: int = Field(default=1_000_000, ge=2)
    """With more images than this, heads are trained on a seeded sample of this size; all images are assigned.

    Default for `consensus`: 200 for each cluster, but at least 20,000.
    """


class FinetuneConfig(Section):
    """Self-enhancement of the encoder on its own pseudo-labels."""

    enabled: bool = False
    """Fine-tune the encoder after training the heads, and assign with the result."""
    rank: int = Field(default=128, ge=1)
    """Rank of the low-rank update (LoRA) of each query and value projection."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Learning rate of AdamW. It stays constant, and there is no weight decay."""
    batch_size: int = Field(default=128, ge=2)
    """Images in a global batch. The last batch of an epoch is dropped if it is incomplete."""
    epochs: int = Field(default=40, ge=1)
    """Passes over the training images."""
    momentum: float = Field(default=0.999, ge=0, lt=1)
    """Share of the running mean and variance of the confidence that a step keeps; both weight the pseudo-labels (SoftMatch)."""
    alignment: bool = True
    """Align pseudo-labels to the cluster sizes before tuning, so large clusters do not swallow small ones. `false`: SEIC as published."""
    train_sample: int = Field(default=1_000_000, ge=2)
    """With more images than this, the encoder is tuned on a seeded sample of this size; all images are assigned."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, more time, the same result."""
    checkpoint_seconds: float = Field(default=120.0, ge=0)
    """Seconds between two checkpoints. A kill loses at most the work since the last one. Writing one takes seconds."""
    max_lost_clusters: float = Field(default=0.1, ge=0, le=1)
    """Refuse the tuned encoder if a larger share of the clusters in use has vanished."""
    max_lost_consistency: float = Field(default=0.05, ge=0, le=1)
    """Refuse the tuned encoder if the share of an image's neighbors (before tuning) in its own cluster has fallen by more than this."""
    max_added_imbalance: float = Field(default=0.1, ge=0, le=1)
    """Refuse the tuned encoder if the imbalance of cluster sizes (0: all equal, 1: one has everything) has grown by more than this."""

    @property
    def training(self) -> dict[str, Any]:
        """The fields that the tuned weights depend on."""
        return self.model_dump(
            include={"rank", "learning_rate", "batch_size", "epochs", "momentum", "alignment", "train_sample"}
        )


class ShardsConfig(Section):
    """Shards: few large Parquet files of checked, resized pictures, written from many small objects."""

    enabled: bool = False
    """Write shards before embedding, and read them instead of the originals from then on."""
    size: int | None = Field(default=None, ge=16, le=8192)
    """Shortest side of a stored picture in pixels.

    Default: 1.75 times the encoder's side; embeddings then have a mean cosine above 0.999 to those of the originals.
    """


class StorageConfig(Section):
    """How object storage is reached. Credentials come from the usual AWS chain, never from this file."""

    endpoint_url: str | None = None
    """URL of an S3-compatible server; default `$AWS_ENDPOINT_URL_S3`, `$AWS_ENDPOINT_URL`, else AWS itself."""
    region: str | None = None
    """Region of all buckets. The default on AWS is each bucket's own; with `endpoint_url` it is `$AWS_REGION` or the AWS profile's."""
    anonymous: bool = False
    """Read public buckets without credentials."""
    requester_pays: bool = False
    """Pay for requests to requester-pays buckets. Arrow's S3 client cannot do that, so s3fs reads instead, which is slower."""
    path_style: bool | None = None
    """Name the bucket in the path (true) or in the host name (false). The default is true with `endpoint_url` and false on AWS."""

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint_is_a_plain_url(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^@?#\s]+", url):
            raise PydanticCustomError(SECRET, "must begin with http:// or https:// and hold neither user nor password")
        return url

    @model_validator(mode="after")
    def _somebody_pays(self) -> StorageConfig:
        if self.anonymous and self.requester_pays:
            raise ValueError(
                "requester_pays needs credentials to know who pays: remove `anonymous` or `requester_pays`"
            )
        return self


class ResourcesConfig(Section):
    """The part of the cluster that a run uses, by default all of it. It is never part of a fingerprint."""

    encoder_actors: int | None = Field(default=None, ge=1)
    """Number of encoder actors. The default is one per GPU, or one per CPU without GPUs. More actors than GPUs share the GPUs."""
    train_workers: int | None = Field(default=None, ge=1)
    """Number of Ray Train workers. The default is one per GPU, or one without GPUs."""
    use_gpu: bool | None = None
    """Use GPUs. The default is to use them if the cluster has any."""
    compile_encoder: bool = False
    """Compile the vision tower (`torch.compile`) when an encoder actor starts, in about a minute. Its benefit was not measured."""
    wait_seconds: float = Field(default=0.0, ge=0)
    """Seconds to wait for nodes of a cluster that grows on demand.

    The autoscaler is asked for the nodes that `encoder_actors`, `train_workers` and `use_gpu` need. With 0 it is not asked.
    """


class ReportConfig(Section):
    """What the HTML report shows. Of more than 500 clusters it shows at most 6 most typical and 3 least typical images each."""

    most_typical: int = Field(default=12, ge=0, le=100)
    """Number of exemplar thumbnails per cluster, most confident first."""
    least_typical: int = Field(default=6, ge=0, le=100)
    """Number of least typical thumbnails per cluster, least confident first."""
    thumbnail: int = Field(default=96, ge=16, le=512)
    """Longest side of a thumbnail in pixels."""
    map_sample: int = Field(default=2000, ge=0, le=50_000)
    """Number of images drawn on the 2-D map; 0 leaves the map out."""


class RunConfig(Section):
    """The configuration of one run, which sorts pictures or embeddings into clusters."""

    images: str | tuple[str, ...] | None = None
    """A folder or prefix, `.tar` shards, a `.csv` or `.parquet` file with a column `uri` (in Parquet also `image`), or a list of these.

    Globs and `{000..099}` name several files.
    """
    embeddings: str | tuple[str, ...] | None = None
    """Ready-made embeddings instead of images: Parquet files with the columns `image_id`, `embedding` and, optionally, `label`."""
    labels: Literal["folder"] | None = None
    """`folder` takes the name of the parent folder as the label of an image. Labels are used for scores only."""
    output: str
    """The run folder, local or `s3://`; everything the run writes lies below it."""
    clusters: int = Field(ge=2)
    """Number of clusters."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of every random choice."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    encoder: EncoderConfig = EncoderConfig(pretrained="openai")
    method: MethodConfig = MethodConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    shards: ShardsConfig = ShardsConfig()
    max_failed_fraction: float = Field(default=0.05, ge=0, le=1)
    """The run stops with exit code 3 if a larger share of the images cannot be read."""
    storage: StorageConfig = StorageConfig()
    resources: ResourcesConfig = ResourcesConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _one_input(self) -> RunConfig:
        if (self.images is None) == (self.embeddings is None):
            raise ValueError("give exactly one of `images` and `embeddings`")
        return self

    @property
    def image_sources(self) -> tuple[str, ...]:
        """`images` as a tuple, empty if none are given."""
        return _as_tuple(self.images)

    @property
    def embedding_sources(self) -> tuple[str, ...]:
        """`embeddings` as a tuple, empty if none are given."""
        return _as_tuple(self.embeddings)


class AssignConfig(Section):
    """The options of `raycluster assign --model`, which assigns new pictures to the clusters of a finished model."""

    model: str
    """A run folder or its `model` folder (both mean the current model), or the folder of one model; local or `s3://`."""
    images: str | tuple[str, ...] | None = None
    """The new pictures, given as in a run."""
    embeddings: str | tuple[str, ...] | None = None
    """Ready-made embeddings instead of images, made with the model's encoder."""
    output: str
    """The folder for the tables, local or `s3://`. It must not be the folder of a run."""
    max_failed_fraction: float = Field(default=0.05, ge=0, le=1)
    """The command stops with exit code 3 if a larger share of the images cannot be read."""
    storage: StorageConfig = StorageConfig()
    resources: ResourcesConfig = ResourcesConfig()


def _as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
