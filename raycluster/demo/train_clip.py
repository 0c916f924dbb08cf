"""Train the tiny CLIP of the demo on drawn pictures and their captions, and write it as an open_clip folder.

    python -m raycluster.demo.train_clip --seed 0 --output raycluster/demo/clip

It is a plain open_clip model with the plain CLIP tokenizer:
`open_clip.create_model_and_transforms("local-dir:<folder>")` and `open_clip.get_tokenizer("local-dir:<folder>")` load
it and need nothing else. (A smaller vocabulary of our own would need `transformers`, or an absolute path in the
configuration.) Most of the weights file is the table of 49,408 tokens. Tokens that no caption uses are zero, so the file
compresses well.

Training took 19 minutes on two threads of a busy machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from safetensors.torch import save
from torch.nn.functional import cross_entropy

from raycluster.demo.captions import caption, name_caption
from raycluster.demo.drawing import Scene, draw_picture, imagine, picture_seed
from raycluster.demo.kinds import KINDS

log = logging.getLogger(__name__)

IMAGE_SIZE = 48
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "patch_size": 12,
        "width": 192,
        "layers": 3,
        "head_width": 32,
    },
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "mean": OPENAI_DATASET_MEAN,
    "std": OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Training:
    """Settings that determine the result. Its last bits also depend on the threads and the versions of torch and Pillow."""

    seed: int = 0
    steps: int = 4000
    batch_size: int = 96
    pictures_per_kind: int = 900
    calm_share: float = 0.55
    """Share of the pictures, and of the steps, in which `nuisance` grows from 0 to the 1 of the demo's pictures."""
    learning_rate: float = 8e-4
    weight_decay: float = 0.1
    warmup: int = 50


def train(output: Path, training: Training, workers: int = 2) -> None:
    """Train on pictures of all kinds and write configuration and fp16 weights into `output`."""
    start = time.monotonic()
    pictures, scenes = _draw_training_pictures(training, workers)
    log.info("drew %d pictures in %.0f s", len(scenes), time.monotonic() - start)
    torch.manual_seed(training.seed)
    model = open_clip.CLIP(**MODEL_CONFIG)
    with torch.no_grad():
        # With open_clip's initial values, the positions are small beside the patches' content, and the model learns shapes very slowly.
        model.visual.positional_embedding *= 8
    tokens_in_use = _fit(model, pictures, scenes, training)
    with torch.no_grad():
        model.token_embedding.weight[~tokens_in_use] = 0
    _save(model, output, training)
    log.info("wrote %s after %.0f s", output, time.monotonic() - start)


def zero_shot_accuracy(folder: Path, kinds: list[str], per_kind: int, seed: int) -> float:
    """Return the share of newly drawn pictures that lie nearest to the prompt of their own kind, among one prompt for each of `kinds`."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    seeds = [(k, picture_seed("zero-shot", seed, k, i)) for k in kinds for i in range(per_kind)]
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([f"a drawing of a {k}" for k in kinds]), normalize=True)
        images = torch.stack([preprocess(draw_picture(k, number)) for k, number in seeds])
        nearest = (model.encode_image(images, normalize=True) @ texts.T).argmax(dim=1)
    return float((nearest == torch.arange(len(kinds)).repeat_interleave(per_kind)).float().mean())


def _draw_training_pictures(training: Training, workers: int) -> tuple[torch.Tensor, list[Scene]]:
    """Return uint8 pictures [kinds x pictures_per_kind, 3, H, W], those of a kind in order of nuisance, and their scenes."""
    kinds = sorted(KINDS)
    with ProcessPoolExecutor(workers) as pool:
        drawn = list(pool.map(_draw_kind, kinds, [training] * len(kinds)))
    pictures = torch.from_numpy(np.concatenate([pixels for pixels, _ in drawn]))
    return pictures.permute(0, 3, 1, 2), [scene for _, of_kind in drawn for scene in of_kind]


def _draw_kind(kind: str, training: Training) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[Scene]]:
    count = training.pictures_per_kind
    seeds = [picture_seed("train", training.seed, kind, i) for i in range(count)]
    pixels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for i, number in enumerate(seeds):
        nuisance = min(1.0, i / (training.calm_share * count))
        picture = draw_picture(kind, number, size=64 + number % 33, nuisance=nuisance)
        pixels[i] = np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    return pixels, [imagine(kind, number) for number in seeds]


def _fit(model: open_clip.CLIP, pictures: torch.Tensor, scenes: list[Scene], training: Training) -> torch.Tensor:
    """Train with the CLIP loss and a loss of names; return a mask of the tokens that occurred, bool [vocabulary]."""
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    clip_loss = open_clip.ClipLoss()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    mean, std = (torch.tensor(PREPROCESS_CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    in_use = torch.zeros(MODEL_CONFIG["text_cfg"]["vocab_size"], dtype=torch.bool)
    model.train()
    kinds = sorted(KINDS)
    random, generator = Random(training.seed), torch.Generator().manual_seed(training.seed)
    for step in range(training.steps):
        rows = _batch(step, len(kinds), training, generator)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _schedule(step, training)
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), pictures[rows].flip(-1), pictures[rows])
        images = (images.float() / 255 - mean) / std
        image_embedding = model.encode_image(images, normalize=True)
        tokens = tokenizer([caption(scenes[row], random) for row in rows.tolist()])
        loss = clip_loss(image_embedding, model.encode_text(tokens, normalize=True), model.logit_scale.exp()) / 2
        # From captions alone, the model learns color and background long before shape. So a second loss asks for the name of
        # each picture's kind among the names of all kinds. The names get a new phrase in each step.
        names = tokenizer([name_caption(kind, random) for kind in kinds])
        logits = model.logit_scale.exp() * image_embedding @ model.encode_text(names, normalize=True).T
        loss = loss + cross_entropy(logits, rows // training.pictures_per_kind)
        in_use[torch.cat([tokens, names]).flatten()] = True
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 200 == 0 or step == training.steps - 1:
            log.info("step %d of %d: loss %.3f", step, training.steps, loss.item())
    return in_use


def _batch(step: int, kinds: int, training: Training, generator: torch.Generator) -> torch.Tensor:
    """Return random rows: from a window that moves along as nuisance grows, then from all pictures with full nuisance."""
    shape, calm = (training.batch_size,), training.calm_share
    progress = step / training.steps
    low, high = (max(0.0, progress - 0.1), progress + 0.1) if progress < calm else (calm, 1.0)
    share = low + (high - low) * torch.rand(shape, generator=generator)
    index = (share * training.pictures_per_kind).long().clamp(max=training.pictures_per_kind - 1)
    return torch.randint(kinds, shape, generator=generator) * training.pictures_per_kind + index


def _schedule(step: int, training: Training) -> float:
    """Return the factor of the learning rate: a linear warm-up, then half a cosine down to zero."""
    if step < training.warmup:
        return (step + 1) / training.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - training.warmup) / max(1, training.steps - training.warmup)))


def _save(model: open_clip.CLIP, output: Path, training: Training) -> None:
    output.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG, "training": asdict(training)}
    (output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    (output / "open_clip_model.safetensors").write_bytes(save(weights))


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    for name, default in asdict(Training()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    output, threads = options.pop("output"), options.pop("threads")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    training = Training(**options)
    train(output, training, workers=threads)
    accuracy = zero_shot_accuracy(output, sorted(KINDS), per_kind=10, seed=training.seed)
    log.info("zero-shot accuracy over %d kinds: %.3f", len(KINDS), accuracy)


if __name__ == "__main__":
    main()
