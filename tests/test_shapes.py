"""Words, outlines and the environment: captions go both ways, motion is even, and what is said is what is drawn."""

from __future__ import annotations

import colorsys
import pickle
from dataclasses import asdict
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from worldflow.envs.shapes import EPISODE_STEPS, MovingShapesEnv
from worldflow.envs.tasks import resize_frame
from worldflow.shapes import (
    COLORS,
    DIRECTIONS,
    RADIUS,
    SHAPES,
    SPEEDS,
    ShapesCaption,
    caption_of,
    captions,
    coverage,
    extent,
    parse_caption,
)

ID = "worldflow/MovingShapes-v0"


def play(env: gym.Env[Any, Any], **options: Any) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """All frames and infos of an episode."""
    frame, info = env.reset(**options)
    frames, infos = [frame], [info]
    is_over = False
    while not is_over:
        frame, reward, terminated, is_over, info = env.step(0)
        assert reward == 0.0 and not terminated
        frames.append(frame)
        infos.append(info)
    return np.stack(frames), infos


class TestWords:
    def test_every_caption_goes_both_ways(self) -> None:
        found = captions()
        assert len(found) == len(set(found)) == 144
        assert found[0] == "a red circle moves left slowly"
        for caption in found:
            said = parse_caption(caption)
            assert str(said) == caption_of(**asdict(said)) == caption
        assert parse_caption("  A Red  circle moves LEFT slowly. ") == parse_caption(found[0])

    @pytest.mark.parametrize(
        ("caption", "match"),
        [
            ("a rad circle moves left slowly", "unknown color 'rad'; did you mean 'red'"),
            ("a red circel moves left slowly", "unknown shape 'circel'; did you mean 'circle'"),
            ("a red circle moves lift slowly", "unknown direction 'lift'; did you mean 'left'"),
            ("a red circle moves left slow", "unknown speed 'slow'; did you mean 'slowly'"),
            ("a red circle", "expected a caption like .*got 'a red circle'"),
            ("a red circle went left very slowly", "expected a caption like"),
            ("a red circle moves left slowly and stops", "expected a caption like"),
            ("", "expected a caption like"),
        ],
    )
    def test_other_sentences_are_refused(self, caption: str, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            parse_caption(caption)

    def test_colors_are_clearly_different(self) -> None:
        hues = [360 * colorsys.rgb_to_hsv(*color)[0] for color in COLORS.values()]
        assert min(min(abs(a - b), 360 - abs(a - b)) for a, b in combinations(hues, 2)) >= 50
        levels = [np.array(color, float) for color in COLORS.values()]
        assert min(np.linalg.norm(a - b) for a, b in combinations(levels, 2)) > 100


def is_inside(shape: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Points in a shape of the area of a circle of radius 1, from school geometry rather than from distances."""
    if shape == "circle":
        return dx**2 + dy**2 < 1
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) < np.sqrt(np.pi) / 2
    side = np.sqrt(4 * np.pi / np.sqrt(3))
    height = side * np.sqrt(3) / 2
    down = dy + 2 / 3 * height  # from the apex
    return (down > 0) & (down < height) & (np.abs(dx) < down / np.sqrt(3))


@pytest.mark.parametrize("shape", SHAPES)
class TestOutline:
    def test_coverage_is_the_share_of_points_inside(self, shape: str) -> None:
        size, fine = 32, 16
        points = (np.arange(size * fine) + 0.5) / (size * fine)
        places = np.random.default_rng(0).uniform(0.3, 0.7, (5, 2))
        found = coverage(shape, places[:, 0], places[:, 1], size=size)
        for (x, y), share in zip(places, found, strict=True):
            inside = is_inside(shape, (points[None, :] - x) / RADIUS, (points[:, None] - y) / RADIUS)
            expected = inside.reshape(size, fine, size, fine).mean((1, 3))
            # Counting points is off by one of 16 along an edge; slanted and round outlines are taken for ramps.
            assert np.abs(share - expected).max() < {"circle": 0.06, "square": 1 / 16, "triangle": 0.11}[shape]
            assert np.abs(share - expected)[expected % 1 > 0].mean() < 0.03

    def test_area_and_center_do_not_depend_on_the_place(self, shape: str) -> None:
        size = 32
        places = np.random.default_rng(1).uniform(0.3, 0.7, (200, 2))
        share = coverage(shape, places[:, 0], places[:, 1], size=size)
        area = share.sum((1, 2)) / size**2
        np.testing.assert_allclose(area, np.pi * RADIUS**2, rtol=0.012)
        at = (np.arange(size) + 0.5) / size
        centers = np.stack([(share.sum(1) * at).sum(1), (share.sum(2) * at).sum(1)], axis=1) / (area * size**2)[:, None]
        assert np.abs(centers - places).max() * size < 0.04  # pixels

    def test_extent_is_where_it_ends(self, shape: str) -> None:
        size = 512  # where a pixel is small
        rows, columns = np.nonzero(coverage(shape, 0.5, 0.5, size=size) > 0.02)
        found = [
            0.5 - columns.min() / size,
            columns.max() / size - 0.5,
            0.5 - rows.min() / size,
            rows.max() / size - 0.5,
        ]
        np.testing.assert_allclose(found, extent(shape), atol=2.5 / size)

    def test_softness_blurs_and_keeps_the_area(self, shape: str) -> None:
        sharp, soft = (coverage(shape, 0.5, 0.5, size=64, softness=softness) for softness in (1.0, 3.0))
        assert soft.sum() == pytest.approx(sharp.sum(), rel=0.05)  # round and sharp corners gain or lose a little
        assert np.abs(np.diff(soft, axis=0)).max() < 0.5 * np.abs(np.diff(sharp, axis=0)).max()


class TestEnvironment:
    @pytest.mark.parametrize("options", [{}, {"size": 64}, {"render_mode": "rgb_array"}])
    def test_gymnasiums_checker_has_nothing_to_say(self, options: dict[str, Any]) -> None:
        check_env(gym.make(ID, **options).unwrapped)

    def test_an_episode(self) -> None:
        frames, infos = play(gym.make(ID), seed=0)
        assert frames.shape == (EPISODE_STEPS + 1, 32, 32, 3) and frames.dtype == np.uint8
        assert {info["caption"] for info in infos} == {infos[0]["caption"]}
        states = np.stack([info["state"] for info in infos])
        assert states.shape == (EPISODE_STEPS + 1, 6) and states.dtype == np.float64
        tables = (COLORS, SHAPES, DIRECTIONS, SPEEDS)
        words = [list(table)[int(index)] for table, index in zip(tables, states[0], strict=False)]
        said = parse_caption(infos[0]["caption"])
        assert words == [said.color, said.shape, said.direction, said.speed]
        assert (states[:, :4] == states[0, :4]).all()
        moved = np.diff(states[:, 4:], axis=0)
        np.testing.assert_allclose(moved, [SPEEDS[said.speed] * np.array(DIRECTIONS[said.direction])] * 16, atol=1e-12)

    def test_every_caption_can_be_asked_for_and_stays_in_view(self) -> None:
        env = gym.make(ID)
        for number, caption in enumerate(captions()):
            said = parse_caption(caption)
            frames, infos = play(env, seed=number, options=asdict(said))
            assert infos[0]["caption"] == caption
            x, y = np.stack([info["state"][4:] for info in infos]).T
            share = coverage(said.shape, x, y, size=32)
            ring = np.ones((32, 32), bool)
            ring[1:-1, 1:-1] = False
            # A whole pixel in view at 16 rows, and never more than a touch of the outermost one at 32.
            assert share[:, ring].max() < 0.15
            left, right, up, down = extent(said.shape)
            assert (x - left).min() > 0 and (y - up).min() > 0 and (x + right).max() < 1 and (y + down).max() < 1
            # It does not stop on its way.
            way = EPISODE_STEPS * SPEEDS[said.speed] * np.array(DIRECTIONS[said.direction])
            np.testing.assert_allclose([x[-1] - x[0], y[-1] - y[0]], way, atol=1e-12)
            # The color is the one named, where the shape covers the whole pixel.
            assert (frames[share > 0.999] == COLORS[said.color]).all()
            # What it does not touch stands still, and is dark.
            still = frames[:, (share == 0).all(axis=0)]
            assert (still == still[0]).all()
            assert still.max() < 100 and np.median(still) < 60

    def test_motion_is_smooth_and_even(self) -> None:
        env = gym.make(ID)
        at = (np.arange(32) + 0.5) / 32
        for caption in captions()[::5]:
            frames, infos = play(env, seed=1, options=asdict(parse_caption(caption)))
            x, y = np.stack([info["state"][4:] for info in infos]).T
            said = parse_caption(caption)
            distinct = (frames.astype(float) - np.median(frames, axis=(0, 1, 2))) @ np.array(COLORS[said.color], float)
            weight = np.where(coverage(said.shape, x, y, size=32, radius=1.3 * RADIUS) > 0, distinct, 0.0)
            center = np.stack([(weight.sum(1) * at).sum(1), (weight.sum(2) * at).sum(1)]) / weight.sum((1, 2))
            # What is left is the shade around the shape, which is not subtracted, and the sampling of slanted outlines.
            off = center - np.stack([x, y])
            assert np.abs(off - off.mean(axis=1, keepdims=True)).max() * 32 < 0.12, (
                caption,
                np.abs(off - off.mean(axis=1, keepdims=True)).max() * 32,
            )

    def test_same_seed_same_episode(self) -> None:
        first, second = gym.make(ID), gym.make(ID)
        a, infos = play(first, seed=5)
        b, again = play(second, seed=5)
        np.testing.assert_array_equal(a, b)
        assert [info["state"].tolist() for info in infos] == [info["state"].tolist() for info in again]
        other = play(first)[0]  # goes on drawing
        np.testing.assert_array_equal(other, play(second)[0])
        assert (a != other).any()
        copy = pickle.loads(pickle.dumps(gym.make(ID, size=64).unwrapped))
        assert copy.reset(seed=5)[1]["caption"] == infos[0]["caption"]
        assert copy.size == 64

    def test_what_is_asked_for_leaves_the_rest_alone(self) -> None:
        env = gym.make(ID)
        for seed in range(20):
            free = env.reset(seed=seed)[1]["state"]
            asked = env.reset(seed=seed, options={"color": "cyan"})[1]["state"]
            assert asked[0] == list(COLORS).index("cyan")
            assert asked[1:].tolist() == free[1:].tolist()

    def test_every_word_is_drawn_alike(self) -> None:
        env = MovingShapesEnv()
        num = 1200
        env.reset(seed=0)
        states = np.stack([env.reset()[1]["state"] for _ in range(num)])
        for column, table in enumerate((COLORS, SHAPES, DIRECTIONS, SPEEDS)):
            counts = np.bincount(states[:, column].astype(int), minlength=len(table))
            expected = num / len(table)
            # Five standard deviations: a false alarm in 100,000 runs over all 15 words, were the seed not fixed.
            assert np.abs(counts - expected).max() < 5 * np.sqrt(expected * (1 - 1 / len(table)))

    def test_sizes_show_the_same_scene(self) -> None:
        small, large = (play(gym.make(ID, size=size), seed=3)[0] for size in (32, 64))
        halved = np.stack([resize_frame(frame, 32) for frame in large]).astype(int)
        assert np.abs(halved - small).mean() < 1.0  # outlines are ramps of one pixel in either
        env = gym.make(ID, render_mode="rgb_array", render_size=128)
        frame, _ = env.reset(seed=3)
        picture = env.render()
        assert isinstance(picture, np.ndarray) and picture.shape == (128, 128, 3)
        assert np.abs(resize_frame(picture, 32).astype(int) - frame).mean() < 1.0

    def test_the_start_follows_the_length_of_the_episode(self) -> None:
        short, long = (gym.make(ID, num_steps=steps, max_episode_steps=steps) for steps in (2, 40))
        options = {"speed": "slowly", "direction": "right", "shape": "circle"}
        starts = [short.reset(seed=seed, options=options)[1]["state"][4] for seed in range(50)]
        assert max(starts) > 0.7
        _, infos = play(long, seed=0, options=options)
        x = [info["state"][4] for info in infos]
        assert len(x) == 41 and x[-1] < 1 - RADIUS and x[-1] - x[0] == pytest.approx(40 * SPEEDS["slowly"])
        with pytest.raises(ValueError, match=r"stays in view for 1\d steps, got num_steps=40; .*slowly"):
            long.reset(seed=0)
        with pytest.raises(ValueError, match="a triangle that moves left quickly stays in view"):
            long.reset(seed=0, options={"shape": "triangle", "direction": "left", "speed": "quickly"})

    def test_stepped_on_it_stops_before_it_leaves(self) -> None:
        env = MovingShapesEnv()
        env.reset(seed=0, options={"direction": "up", "speed": "quickly", "shape": "square"})
        ys = [env.step(np.int64(0))[-1]["state"][5] for _ in range(60)]
        assert ys[-1] == ys[-2] >= extent("square")[2]

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"colour": "red"}, "unknown option 'colour' at reset; did you mean 'color'"),
            ({"color": "rad"}, "unknown color 'rad'; did you mean 'red'"),
            ({"shape": "circl"}, "did you mean 'circle'"),
            ({"direction": "rihgt"}, "did you mean 'right'"),
            ({"speed": "quick"}, "did you mean 'quickly'"),
            ({"speed": 3}, "unknown speed 3; there are: slowly, quickly"),
        ],
    )
    def test_unknown_requests_are_named(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            MovingShapesEnv().reset(options=options)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"size": 8}, "size must be a whole number of at least 16, got 8"),
            ({"size": 32.0}, "size must be a whole number"),
            ({"num_steps": 0}, "num_steps must be a whole number"),
            ({"render_size": 0}, "render_size must be a whole number"),
            ({"render_mode": "human"}, "render_mode must be 'rgb_array' or None"),
        ],
    )
    def test_wrong_arguments_are_named(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            MovingShapesEnv(**options)

    def test_order_of_calls(self) -> None:
        env = MovingShapesEnv(render_mode="rgb_array")
        for call in (lambda: env.step(np.int64(0)), env.render):
            with pytest.raises(gym.error.ResetNeeded):
                call()
        silent = MovingShapesEnv()
        silent.reset(seed=0)
        with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
            assert silent.render() is None


def test_words_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="unknown shape 'hexagon'; "):
        ShapesCaption(color="red", shape="hexagon", direction="left", speed="slowly")
    with pytest.raises(ValueError, match="unknown shape"):
        coverage("star", 0.5, 0.5, size=32)
    with pytest.raises(ValueError, match="unknown shape"):
        extent("star")
