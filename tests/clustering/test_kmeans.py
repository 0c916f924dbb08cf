"""Test k-means: where it ends, how it treats odd rows, and how it clusters many rows by a sample and in chunks."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from raycluster.clustering import kmeans as module
from raycluster.clustering import seeding
from raycluster.clustering.kmeans import KMeans, kmeans, nearest_center
from raycluster.errors import ConfigError


def blobs(k: int = 5, each: int = 40, d: int = 16, noise: float = 0.15) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(k, d, generator=generator), dim=1)
    x = centers.repeat_interleave(each, dim=0) + noise * torch.randn(k * each, d, generator=generator)
    return normalize(x, dim=1), torch.arange(k).repeat_interleave(each)


def test_separated_groups_are_found() -> None:
    x, truth = blobs()
    result = kmeans(x, 5, seed=0, restarts=3)
    assert result.converged
    for group in range(5):
        assert len(result.labels[truth == group].unique()) == 1
    assert len(result.labels.unique()) == 5


def test_the_result_is_a_fixed_point_of_plain_k_means() -> None:
    x, _ = blobs(noise=0.6)
    result = kmeans(x, 4, seed=1, max_iterations=500, tolerance=0)
    plain = torch.stack([normalize(x[result.labels == j].mean(dim=0), dim=0) for j in range(4)])
    torch.testing.assert_close(result.centers, plain, rtol=1e-5, atol=1e-6)
    assert torch.equal(result.labels, (x @ plain.T).argmax(dim=1))
    assert result.objective == pytest.approx(float((x * plain[result.labels]).sum(dim=1).mean()), abs=1e-6)


def test_same_seed_same_result() -> None:
    x, _ = blobs(noise=0.6)
    one, two, other = (kmeans(x, 7, seed=s) for s in (3, 3, 4))
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.labels, other.labels)


def test_more_restarts_are_never_worse() -> None:
    x, _ = blobs(noise=0.8)
    assert kmeans(x, 9, seed=2, restarts=5).objective >= kmeans(x, 9, seed=2).objective


def test_more_clusters_than_rows_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs at least 4 images, but there are 3"):
        kmeans(torch.eye(3), 4, seed=0)


def test_identical_rows_have_a_defined_result() -> None:
    result = kmeans(normalize(torch.ones(10, 4), dim=1), 3, seed=0)
    assert torch.isfinite(result.centers).all()
    assert result.objective == pytest.approx(1.0)


def test_no_cluster_stays_empty_while_rows_differ() -> None:
    x, _ = blobs(k=3, each=4, noise=0.01)
    assert len(kmeans(x, 12, seed=0).labels.unique()) == 12


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs()
    whole = nearest_center(x, x[:7])
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 7 * 13)
    monkeypatch.setattr(module, "PREPARED_ROWS", 29)
    parts = nearest_center(x, x[:7])
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])


@pytest.mark.parametrize("seed", range(5))
def test_it_ends_where_plain_k_means_ends_from_the_same_seeds(seed: int) -> None:
    x, _ = blobs(noise=0.8)
    starts = kmeans(x, 6, seed=seed, max_iterations=1, tolerance=0)
    centers = starts.centers.double()
    for _ in range(200):
        labels = [max(range(6), key=lambda j, row=row: float(row @ centers[j])) for row in x.double()]
        members = [[row for row, label in zip(x.double(), labels, strict=True) if label == j] for j in range(6)]
        moved = torch.stack([normalize(torch.stack(rows).sum(dim=0), dim=0) for rows in members])
        if torch.equal(moved, centers):
            break
        centers = moved
    result = kmeans(x, 6, seed=seed, max_iterations=500, tolerance=0)
    assert result.labels.tolist() == labels
    torch.testing.assert_close(result.centers.double(), centers, rtol=1e-4, atol=1e-6)


def test_centers_without_rows_move_to_distinct_rows_that_fit_worst() -> None:
    x = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.9], [1.0, 0.9], [0.0, 1.0]]), dim=1)
    labels, cosine = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0.9, 0.8, 0.2, 0.2, 0.7])
    moved, repaired = module._update(module._Rows(x, True), labels, cosine, torch.zeros(4, 2))
    assert repaired
    # The third and the fourth row are equal, so one center moves to them and the other to the next worst row.
    torch.testing.assert_close(moved[[1, 3]], x[[2, 4]])
    torch.testing.assert_close(moved[0], normalize(x[:4].sum(dim=0), dim=0))


def test_centers_stay_when_no_row_fits_badly_or_rows_cancel() -> None:
    x, before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), torch.eye(3)[:, :2]
    labels, cosine = torch.tensor([0, 0, 1, 1]), torch.ones(4)
    moved, repaired = module._update(module._Rows(x, True), labels, cosine, before)
    assert not repaired
    assert torch.equal(moved, before)


def test_a_run_that_stops_early_says_so_and_fits_its_centers() -> None:
    x, _ = blobs(noise=0.8)
    result = kmeans(x, 6, seed=0, max_iterations=2, tolerance=0)
    assert (result.converged, result.iterations) == (False, 2)
    cosine, labels = nearest_center(x, result.centers)
    assert torch.equal(result.labels, labels)
    assert result.objective == pytest.approx(float(cosine.mean()), abs=1e-6)


def test_as_many_clusters_as_rows_puts_each_row_alone() -> None:
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    result = kmeans(x, 9, seed=0)
    assert sorted(result.labels.tolist()) == list(range(9))
    assert result.objective == pytest.approx(1.0)


def test_every_distinct_row_gets_its_own_center_among_many_repeats() -> None:
    distinct = normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    result = kmeans(distinct.repeat_interleave(20, dim=0), 12, seed=0)
    assert torch.bincount(result.labels, minlength=12).tolist() == [20] * 12
    assert len(result.labels.view(12, 20).unique(dim=1)[0]) == 1


def test_seeding_on_a_sample_finds_the_groups_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEEDING_ROWS_A_CENTER", 16)
    monkeypatch.setattr(seeding, "SEEDING_POOL", 12)
    x, truth = blobs(k=5, each=100)
    labels = kmeans(x, 5, seed=0, restarts=3).labels
    assert all(len(labels[truth == group].unique()) == 1 for group in range(5))


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    kmeans(blobs()[0], 5, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def raw(n: int = 400, d: int = 6, k: int = 5) -> Tensor:
    """Rows of unequal length in overlapping groups, around a point far from the origin."""
    generator = torch.Generator().manual_seed(3)
    centers = 3 * torch.randn(k, d, generator=generator) + 20
    return centers[torch.arange(n) % k] + 1.5 * torch.randn(n, d, generator=generator)


def squared(x: Tensor, centers: Tensor) -> Tensor:
    return (x.double().unsqueeze(1) - centers.double()).square().sum(dim=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_euclidean_k_means_ends_in_a_fixed_point_in_the_scale_of_the_rows(dtype: torch.dtype, scale: float) -> None:
    x = (raw() * scale).to(dtype)
    result = kmeans(x, 5, seed=1, spherical=False, max_iterations=500, tolerance=0)
    assert result.converged
    distance = squared(x, result.centers)
    assert torch.equal(result.labels, distance.argmin(dim=1))
    assert result.objective == pytest.approx(-float(distance.amin(dim=1).mean()), rel=1e-4)
    plain = torch.stack([x.double()[result.labels == j].mean(dim=0) for j in range(5)])
    torch.testing.assert_close(result.centers.double(), plain, rtol=1e-5, atol=0)


def test_euclidean_k_means_is_as_good_as_scikit_learn() -> None:
    from sklearn.cluster import KMeans as Reference

    x = raw(k=8)
    best = -Reference(8, n_init=10, random_state=0).fit(x.numpy()).inertia_ / len(x)
    assert kmeans(x, 8, seed=0, spherical=False, restarts=10).objective > 1.005 * best


def test_nearest_center_is_the_plain_one_in_any_precision() -> None:
    x, centers = raw(), raw()[:7] + 0.5
    for rows in (x, x.half()):
        best, labels = nearest_center(rows, centers, spherical=False)
        distance = squared(rows, centers)
        assert torch.equal(labels, distance.argmin(dim=1))
        torch.testing.assert_close(best.double(), -distance.amin(dim=1), rtol=1e-4, atol=1e-4)
        cosine, labels = nearest_center(rows, normalize(centers, dim=1))
        plain = normalize(rows.double(), dim=1) @ normalize(centers, dim=1).double().T
        assert torch.equal(labels, plain.argmax(dim=1))
        torch.testing.assert_close(cosine.double(), plain.amax(dim=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_length_of_rows_means_nothing_to_spherical_k_means(scale: float) -> None:
    x, _ = blobs(noise=0.6)
    lengths = 0.5 + torch.rand(len(x), 1, generator=torch.Generator().manual_seed(0))
    one, other = kmeans(x, 5, seed=0), kmeans(x * lengths * scale, 5, seed=0)
    assert torch.equal(one.labels, other.labels)
    torch.testing.assert_close(one.centers, other.centers)


def test_comparing_with_changed_centers_only_is_comparing_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both comparisons agree at every step, whatever share of the centers changed. Labels may differ only where two centers tie."""
    compare_again, shares = module._compare_again, []

    def checked(
        data: module._Rows, centers: Tensor, changed: Tensor, score: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        found, where = compare_again(data, centers, changed, score, labels)
        plain = data.rows.double() @ centers.double().T
        if not data.spherical:
            plain -= centers.double().square().sum(dim=1) / 2
        torch.testing.assert_close(found.double(), plain.amax(dim=1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            plain.gather(1, where.unsqueeze(1)).squeeze(1), plain.amax(dim=1), rtol=1e-5, atol=1e-5
        )
        shares.append(float(changed.double().mean()))
        return found, where

    monkeypatch.setattr(module, "MANY_CHANGED", 1.0)
    monkeypatch.setattr(module, "_compare_again", checked)
    x, _ = blobs(k=30, each=30, noise=0.25)
    kmeans(x, 40, seed=0, tolerance=0)
    kmeans(3 * x, 40, seed=0, tolerance=0, spherical=False)
    assert len(shares) > 10
    assert min(shares) < 0.3


def test_many_rows_are_clustered_by_a_sample_and_all_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    x, truth = blobs(each=200, noise=0.1)
    sizes: list[int] = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda data, *rest: sizes.append(len(data.rows)) or run(data, *rest))
    monkeypatch.setattr(module, "SAMPLE_ROWS_A_CENTER", 20)
    for spherical in (True, False):
        result = kmeans(x.half(), 5, seed=0, restarts=3, spherical=spherical)
        assert result.labels.shape == (1000,)
        for group in range(5):
            assert len(result.labels[truth == group].unique()) == 1
        best, labels = nearest_center(x.half(), result.centers, spherical=spherical)
        assert torch.equal(labels, result.labels)
        assert result.objective == pytest.approx(float(best.mean()), abs=1e-5)
    assert sizes == [100] * 6


def test_no_more_rows_than_a_chunk_are_turned_into_float32_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs(each=200, noise=0.1)
    whole = kmeans(x.half(), 5, seed=0, restarts=2)
    prepared: list[int] = []
    call = module.RowScale.__call__
    monkeypatch.setattr(module.RowScale, "__call__", lambda s, rows: prepared.append(len(rows)) or call(s, rows))
    monkeypatch.setattr(module, "PREPARED_ROWS", 64)
    monkeypatch.setattr(module, "SAMPLE_ROWS_A_CENTER", 20)
    kmeans(x.half(), 5, seed=0)
    assert max(prepared) == 64
    assert sum(prepared) == 100 + 1000
    monkeypatch.setattr(module, "SAMPLE_ROWS_A_CENTER", 256)
    assert torch.equal(kmeans(x.half(), 5, seed=0, restarts=2).labels, whole.labels)


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.ones(10, 4), id="all equal"),
        pytest.param(torch.zeros(10, 4), id="all zero"),
        pytest.param(torch.eye(4).repeat(5, 1), id="four distinct rows"),
        pytest.param(torch.cat([torch.zeros(6, 4), torch.eye(4), -torch.eye(4)]), id="zeros and opposites"),
        pytest.param(torch.full((10, 4), 6e4).half(), id="float16 near its largest"),
        pytest.param(torch.full((10, 4), 3e38), id="float32 near its largest"),
    ],
)
def test_odd_rows_have_a_defined_result(x: Tensor, spherical: bool) -> None:
    result = kmeans(x, 6, seed=0, spherical=spherical, restarts=2)
    assert isinstance(result, KMeans)
    assert torch.isfinite(result.centers).all()
    assert torch.isfinite(torch.tensor(result.objective))
    assert ((result.labels >= 0) & (result.labels < 6)).all()
    assert result.converged
    # If there are no more distinct directions (or points) than centers, each row lies at its own center.
    if len(x.unique(dim=0)) <= 6:
        expected = float((x.abs().amax(dim=1) > 0).double().mean()) if spherical else 0.0
        assert result.objective == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_are_no_numbers_are_an_error(value: float, dtype: torch.dtype) -> None:
    x = blobs()[0].to(dtype)
    x[3, 2] = x[3, 4] = x[70, 0] = value
    with pytest.raises(ConfigError, match="2 of 200 rows contain NaN or infinity"):
        kmeans(x, 3, seed=0)


def test_a_run_that_does_not_converge_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    x, _ = blobs(noise=0.8)
    with caplog.at_level(logging.WARNING):
        kmeans(x, 6, seed=0, tolerance=1e-3, max_iterations=100)
        kmeans(x, 6, seed=0, tolerance=0, max_iterations=1, warn=False)
        assert not caplog.records
        kmeans(x, 6, seed=0, tolerance=0, max_iterations=1)
    assert "not converged after 1 iterations" in caplog.text


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    kmeans(blobs()[0], 5, seed=0)
    assert torch.get_num_threads() == before
