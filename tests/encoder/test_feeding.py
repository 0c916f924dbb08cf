"""Test many pictures in one call: the same embeddings as batch by batch, few batches in memory, and the error when memory runs out."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raycluster.config import EncoderConfig
from raycluster.encoder.clip import ClipEncoder, EncoderSpec, resolve_encoder
from raycluster.encoder.feeding import AHEAD, BATCHES_A_CALL, CPU_ROWS, FEWEST_ROWS, Feeder, gpu_batch_rows
from raycluster.errors import RayclusterError


@pytest.fixture(scope="module")
def spec() -> EncoderSpec:
    return resolve_encoder(EncoderConfig(model="builtin"), use_gpu=False)


@pytest.fixture(scope="module")
def encoder(spec: EncoderSpec) -> ClipEncoder:
    return ClipEncoder.load(spec, "cpu")


def pictures(n: int, spec: EncoderSpec) -> np.ndarray:
    """Random pictures in a read-only array, as Ray gives them."""
    pixels = np.random.default_rng(n).integers(0, 256, (n, *spec.pixel_shape), np.uint8)
    pixels.flags.writeable = False
    return pixels


@pytest.mark.parametrize("n", [0, 1, CPU_ROWS - 1, CPU_ROWS, CPU_ROWS + 1, 5 * CPU_ROWS + 7])
def test_on_a_cpu_many_pictures_give_the_bits_of_a_plain_loop(n: int, encoder: ClipEncoder, spec: EncoderSpec) -> None:
    pixels = pictures(n, spec)
    found = encoder.encode_pixels(pixels)
    assert found.shape == (n, spec.dim)
    assert found.dtype == np.float16
    with torch.inference_mode():
        for start in range(0, n, CPU_ROWS):
            x = encoder.normalized(torch.from_numpy(pixels[start : start + CPU_ROWS].copy()))
            expected = encoder.model.encode_image(x, normalize=False).half().numpy()
            assert np.array_equal(found[start : start + CPU_ROWS], expected)


def test_every_second_picture_of_a_larger_array_is_welcome(encoder: ClipEncoder, spec: EncoderSpec) -> None:
    pixels = pictures(40, spec)
    assert np.array_equal(encoder.encode_pixels(pixels[::2]), encoder.encode_pixels(pixels[::2].copy()))


def test_few_batches_are_held_at_a_time(spec: EncoderSpec) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def forward(batch: Tensor) -> Tensor:
        nonlocal most
        alive.append(weakref.ref(batch))
        most = max(most, sum(reference() is not None for reference in alive))
        return batch.flatten(1)[:, :4].half()

    pixels = pictures(10 * CPU_ROWS, spec)
    found = Feeder(forward, spec.pixel_shape, 4, "cpu")(pixels)
    assert np.array_equal(found, pixels.reshape(len(pixels), -1)[:, :4])
    assert len(alive) == 10
    assert most <= AHEAD + 1


@pytest.mark.parametrize("fit", [1, 7, 100, 1024])
@pytest.mark.parametrize("n", [1, 3, 64, 100, 512, 4096])
def test_batches_of_a_gpu_fit_its_memory_and_overlap(n: int, fit: int) -> None:
    rows = gpu_batch_rows(n, fit)
    batches = -(-n // rows)
    assert 1 <= rows <= min(fit, n)
    if n >= BATCHES_A_CALL * FEWEST_ROWS:
        assert batches >= BATCHES_A_CALL
    # No batch is much smaller than the others.
    assert n - (batches - 1) * rows > rows - batches


def out_of_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB.")


TOLD = r"^encoder: out of GPU memory .CUDA out of memory.; lower `resources\.encoder_actors`"


def test_too_little_memory_for_pictures_or_texts_names_the_remedy(spec: EncoderSpec) -> None:
    encoder = ClipEncoder.load(spec, "cpu")
    encoder.model.visual.register_forward_pre_hook(out_of_memory)
    encoder.model.token_embedding.register_forward_pre_hook(out_of_memory)
    with pytest.raises(RayclusterError, match=TOLD):
        encoder.encode_pixels(pictures(2, spec))
    with pytest.raises(RayclusterError, match=TOLD):
        encoder.encode_texts(["a cat"])


def test_too_little_memory_for_the_model_is_no_fault_of_its_weights(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clip.create_model", out_of_memory)
    with pytest.raises(RayclusterError, match=TOLD):
        ClipEncoder.load(spec, "cpu")


@pytest.mark.long
def test_one_compiled_graph_serves_batches_of_all_sizes(
    encoder: ClipEncoder, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    # The model is traced as for a GPU but not compiled, because that takes a C++ compiler two minutes. `tests/gpu/check.py`
    # compiles it too.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    pixels = pictures(CPU_ROWS + 5, spec)
    found = ClipEncoder.load(spec, "cpu", compile=True).encode_pixels(pixels)
    np.testing.assert_allclose(found, encoder.encode_pixels(pixels), rtol=1e-2, atol=2e-3)
    assert len(graphs) == 1
