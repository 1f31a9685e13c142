"""The comparison of worlds of vectors with an ensemble: its measures against the naive ones, and its command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_world, write_dataset, write_vectors

from worldflow.bench_states import compare_states, fitted_ensemble
from worldflow.cli import main
from worldflow.data import Dataset
from worldflow.ensemble import EnsembleConfig
from worldflow.vector_codec import VectorCodec, vector_statistics
from worldflow.world import WorldModel

SMALL = EnsembleConfig(members=2, elites=2, layers=1, width=8, batch=64)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Pushed masses; two of twenty episodes are held out."""
    return Dataset(write_vectors(tmp_path_factory.mktemp("data") / "mass", lengths=[9] * 20))


@pytest.fixture(scope="module")
def world(dataset: Dataset) -> WorldModel:
    """Random weights and the data set's statistics."""
    world = tiny_world(numbers=3, latent_dim=3, shallow=False, shown=True, noise_std=0.1)
    assert isinstance(world.codec, VectorCodec)
    world.codec.set_statistics(*vector_statistics(dataset))
    return world


def test_measures_are_the_naive_ones(world: WorldModel, dataset: Dataset) -> None:
    ensemble = fitted_ensemble(world, dataset, config=SMALL, minutes=0.001)
    found = compare_states(world, ensemble, dataset, horizons=(1, 3), starts=2, num_samples=4)
    assert list(found) == ["flow", "ensemble", "last state, copied"]
    mean, std = (value.numpy() for value in vector_statistics(dataset))
    std = np.where(std == 0, 1, std)
    past, errors, states, actions, following = world.config.flow.window - 1, [], [], [], []
    for number in dataset.episodes("held_out"):
        episode = dataset.episode(int(number))
        frames = (episode.frames - mean) / std
        for start in (0, 9 - past - 3):
            errors.append(frames[start + past + 3] - frames[start + past])
            states += list(frames[start + past : start + past + 3])
            following += list(frames[start + past + 1 : start + past + 4])
            actions += list(episode.actions[start + past : start + past + 3])
    copied = found["last state, copied"]["single future, 3 steps"]
    assert copied.mean == pytest.approx(np.sqrt(np.square(errors).mean(0)).mean(), rel=1e-5)
    assert copied.low <= copied.mean <= copied.high
    single, several = (found["flow"][name].mean for name in ("single future, 1 steps", "mean of 4, 1 steps"))
    assert several < single

    told = [torch.tensor(np.array(values), dtype=torch.float32) for values in (states, actions, following)]
    rows, made, after = (values.repeat(50, 1) for values in told)
    noisy = after + 0.1 * torch.randn(after.shape, generator=torch.Generator().manual_seed(1))
    nats = ensemble.log_prob(rows, world.encode_actions(made), noisy, noise_std=0.1)
    tolerance = 4 * float(nats.std()) / len(states) ** 0.5  # four standard errors of the one draw that was measured
    assert found["ensemble"]["log-likelihood of a step"].mean == pytest.approx(float(nats.mean()), abs=tolerance)
    assert "log-likelihood of a step" not in found["last state, copied"]


def test_everything_follows_from_the_seed(world: WorldModel, dataset: Dataset) -> None:
    ensemble = fitted_ensemble(world, dataset, config=replace(SMALL, elites=1), minutes=0.001)
    one, two, other = (
        compare_states(world, ensemble, dataset, horizons=(2,), starts=1, num_samples=2, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one == two != other


def test_command_prints_a_table_and_writes_it(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "states.json"
    options = ["--minutes", "0.005", "--starts", "2", "--samples", "2", "--horizons", "1", "2", "--out", str(out)]
    assert main(["bench", "states", str(dataset.path), *options, "--length", "3", "--batch", "4"]) == 0
    assert "log-likelihood of a step" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert set(written["table"]) == {"flow", "ensemble", "last state, copied"}
    assert written["episodes"] == {"train": 18, "held_out": 2} and written["noise_std"] == 0.01


def test_refuses_pictures_and_short_episodes(
    world: WorldModel, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_dataset(tmp_path / "pictures", lengths=[3, 3])
    assert main(["bench", "states", str(pictures)]) == 1
    assert "holds pictures" in capsys.readouterr().err
    ensemble = fitted_ensemble(world, dataset, config=SMALL, minutes=0.001)
    with pytest.raises(ValueError, match="no held-out episode lasts 52 steps"):
        compare_states(world, ensemble, dataset)
