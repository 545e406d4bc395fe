"""Probes and CKA on representations whose answer is known."""

import numpy as np
import pytest
from scipy import sparse

from pipeline.evaluation import probes
from pipeline.evaluation.probes import fit_and_predict, probe
from pipeline.evaluation.similarity import cka_matrix, linear_cka


def blobs(count, dimensions, seed, spread=0.2):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.random.default_rng(99).normal(size=(3, dimensions))
    return centres[labels] + spread * generator.normal(size=(count, dimensions)), labels


@pytest.mark.parametrize("dimensions", [5, 300])
def test_a_probe_on_separable_features_is_always_right(dimensions):
    train, test = blobs(240, dimensions, 0), blobs(120, dimensions, 1)
    assert probe(*train, *test).all()
    assert probe(sparse.csr_matrix(train[0]), train[1], sparse.csr_matrix(test[0]), test[1]).all()


def test_a_probe_on_noise_is_at_chance():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    right = probe(
        generator.normal(size=(300, 40)), labels, generator.normal(size=(300, 40)), labels
    )
    assert 0.23 < right.mean() < 0.43


def test_a_probe_with_one_class_to_learn_from_answers_that_class():
    assert (fit_and_predict(np.eye(4), np.full(4, 2), np.eye(4)) == 2).all()


@pytest.mark.parametrize("shape", [(50, 400), (400, 200), (60, 10)])
def test_projection_keeps_the_principal_components(shape, monkeypatch):
    monkeypatch.setattr(probes, "DIMENSIONS", 20)
    data = np.random.default_rng(0).normal(size=shape) * np.linspace(3, 0.1, shape[1])
    first, second = probes.project(data, data, 0)
    assert first.shape[1] == min(20, shape[1])
    assert np.allclose(first, second)
    assert first.var(axis=0).mean() == pytest.approx(1)
    if shape[1] > 20:
        spectrum = np.linalg.svd(data - data.mean(axis=0), compute_uv=False)[:20] ** 2
        assert np.allclose(first.var(axis=0), spectrum / spectrum.mean())


def test_cka_of_a_representation_with_itself_is_one():
    features = np.random.default_rng(0).normal(size=(60, 12))
    assert linear_cka(features, features) == pytest.approx(1)


def test_cka_does_not_see_rotation_scale_or_shift():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 12))
    rotation = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    assert linear_cka(features, 3 * features @ rotation + 7) == pytest.approx(1)


def test_cka_of_orthogonal_directions_is_zero():
    first, second = np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1])
    assert linear_cka(first[:, None], second[:, None]) == pytest.approx(0)


def test_cka_is_the_feature_space_formula():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(50, 6)), generator.normal(size=(50, 9))
    y[:, :3] += x[:, :3]
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert linear_cka(x, y) == pytest.approx(expected)
    table = cka_matrix({"x": x}, {"x": x, "y": y, "still": np.ones((50, 2))})
    assert table[0] == pytest.approx([1, expected, 0])
