"""The ray camera against closed forms: what a ray meets, what color it takes, what is kept between frames."""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import mujoco
import numpy as np
import pytest

import worldflow.envs
from worldflow.envs import Look, RayCamera, View

SKY = (0.1, 0.2, 0.3)
FLAT_SKY = Look(zenith=(1.0, 1.0, 1.0), horizon=(1.0, 1.0, 1.0))
AHEAD = View(position=(0.0, -4.0, 0.0), target=(0.0, 0.0, 0.0), fovy=60.0)


def scene(body: str, *, assets: str = "") -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(f"<mujoco><asset>{assets}</asset><worldbody>{body}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def image_plane(size: int, fovy: float) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel's center lies on the plane at distance 1: right and up."""
    half = np.tan(np.radians(fovy) / 2)
    at = (np.arange(size) + 0.5) / size * 2 - 1
    return np.meshgrid(at * half, -at * half)


def disc(x: float) -> str:
    return (
        f"<body pos='{x} 0 0'><joint type='slide' axis='1 0 0'/><geom type='sphere' size='0.5' rgba='0 0 0 1'/></body>"
    )


def test_sphere_is_met_where_geometry_says() -> None:
    model, data = scene("<body><freejoint/><geom type='sphere' size='1'/></body>")
    hits = RayCamera(model, view=AHEAD, height=65, width=65).cast(data)
    right, up = image_plane(65, AHEAD.fovy)
    length = np.sqrt(1 + right**2 + up**2)
    toward = 4.0 / length  # along the ray, to the point nearest the center
    under_root = 1.0 - (16.0 - toward**2)
    met = under_root > 0
    np.testing.assert_array_equal(hits.geom == 0, met)
    # both sides solve the same quadratic in float64; near the rim its root loses half the digits
    np.testing.assert_allclose(hits.distance[met], (toward - np.sqrt(np.where(met, under_root, 0)))[met], atol=1e-7)
    assert hits.distance[32, 32] == pytest.approx(3.0, abs=1e-12)
    assert np.all(hits.distance[~met] == -1)
    np.testing.assert_allclose(hits.normal[:, 32, 32], (0, -1, 0), atol=1e-12)


def test_colors_follow_light_and_normal() -> None:
    model, data = scene("<geom type='sphere' size='1' rgba='0.8 0.4 0.2 1'/>")
    look = Look(ambient=0.3, headlight=0.2, sun=0.4, sun_direction=(3.0, -4.0, 0.0), zenith=SKY, horizon=SKY)
    camera = RayCamera(model, view=AHEAD, height=65, width=65, look=look, outline_rays=0)
    frame, normal = camera.render(data), camera.cast(data).normal
    right, up = image_plane(65, AHEAD.fovy)
    ray = np.stack((right, np.ones_like(right), up)) / np.sqrt(1 + right**2 + up**2)
    light = 0.3 + 0.2 * -(ray * normal).sum(axis=0) + 0.4 * np.maximum(0.6 * normal[0] - 0.8 * normal[1], 0)
    lit = np.clip(light[..., None] * (0.8, 0.4, 0.2), 0, 1)
    met = (normal != 0).any(axis=0)
    expected = np.where(met[..., None], lit, SKY) * 255
    np.testing.assert_allclose(frame, expected, atol=0.51)  # the nearest level; model colors are float32
    assert light[32, 32] == pytest.approx(0.3 + 0.2 + 0.4 * 0.8)  # seen head on, the sun at cosine 0.8


def test_outlines_move_by_fractions_of_a_pixel() -> None:
    model, data = scene(disc(0.0))
    errors = {}
    for rays in (0, 4):
        camera = RayCamera(model, view=AHEAD, height=64, width=64, look=FLAT_SKY, outline_rays=rays)
        pixel = 4.0 * 2 * np.tan(np.radians(30.0)) / 64
        shifts, centers = np.linspace(0, 1, 41), []
        for shift in shifts:
            data.qpos[0] = shift * pixel
            mujoco.mj_forward(model, data)
            ink = 255.0 - camera.render(data)[..., 0]
            centers.append((ink.sum(0) * np.arange(64)).sum() / ink.sum())
        errors[rays] = np.abs(centers - centers[0] - shifts).max()
    # The center of a disc 14 pixels wide, measured: 0.05 pixels off with 4 rays more an outline pixel, 0.12 with none.
    assert errors[4] < 0.07
    assert errors[0] > 0.1


CHECKER = (
    "<texture name='squares' type='2d' builtin='checker' rgb1='1 0 0' rgb2='0 0 1' width='64' height='64'/>"
    "<material name='squares' texture='squares' texrepeat='{repeat} {repeat}'/>"
)
FLOOR = "<geom type='plane' size='8 8 1' material='squares'/>"
WALKER = "<body name='walker' pos='0 0 -5'><freejoint/><geom type='sphere' size='0.1'/></body>"
LIT = Look(ambient=0.4, headlight=0.0, sun=0.0)


def test_checker_has_the_materials_squares_and_stays_on_the_floor() -> None:
    model, data = scene(FLOOR + WALKER, assets=CHECKER.format(repeat=8))  # 16 m in 8 pictures of 2 squares: 1 m each
    down = View(
        position=(0.0, 0.0, 8.0),
        target=(0.0, 0.0, 0.0),
        up=(0.0, 1.0, 0.0),
        fovy=float(2 * np.degrees(np.arctan(0.5))),
        body="walker",
        follow=(True, False, False),
    )
    camera = RayCamera(model, view=down, look=LIT)  # 8 m across 64 pixels: a square is 8 pixels wide

    def squares() -> np.ndarray:
        cells = camera.render(data).reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4)
        assert np.ptp(cells, axis=(2, 3)).max() <= 1, "squares do not end at meters"
        return cells[:, :, 4, 4]

    first = squares()
    is_red = first[..., 0] > 0
    np.testing.assert_array_equal(is_red, (np.indices((8, 8)).sum(0) % 2 == 0) == is_red[0, 0])
    assert set(map(tuple, first.reshape(-1, 3).tolist())) == {(102, 0, 0), (0, 0, 102)}
    pictures = []
    for x in (1.0, 2.0, 0.5):
        data.qpos[0] = x
        mujoco.mj_forward(model, data)
        pictures.append(camera.render(data))
    np.testing.assert_array_equal(pictures[0][4::8, 4::8], first[:, ::-1])  # one square on: colors change places
    np.testing.assert_array_equal(pictures[1][4::8, 4::8], first)  # two on: as before
    data.qpos[0] = 0.0
    mujoco.mj_forward(model, data)
    still = camera.render(data)
    np.testing.assert_array_equal(pictures[2][:, :-4], still[:, 4:])  # half a square on: the floor went 4 pixels back


def test_checker_is_averaged_over_the_pixel() -> None:
    model, data = scene(FLOOR, assets=CHECKER.format(repeat=64))
    view = View(position=(0.3, -6.0, 1.0), target=(0.0, 0.0, 0.0), fovy=45.0)
    frame = RayCamera(model, view=view, look=LIT).render(data).astype(float)
    # reference: 16 x 16 points of every pixel, looked up in the ideal pattern
    right, up = image_plane(64 * 16, 45.0)
    forward = np.array(view.target) - view.position
    forward /= np.linalg.norm(forward)
    side = np.cross(forward, (0, 0, 1))
    side /= np.linalg.norm(side)
    rays = forward + right[..., None] * side + up[..., None] * np.cross(side, forward)
    reach = -1.0 / np.where(rays[..., 2] < 0, rays[..., 2], np.nan)
    x, y = 0.3 + reach * rays[..., 0], -6.0 + reach * rays[..., 1]
    inside = (np.abs(x) < 8) & (np.abs(y) < 8)
    red = np.where(inside, (np.floor(8 * x) + np.floor(8 * y)) % 2, np.nan)
    blocks = red.reshape(64, 16, 64, 16).transpose(0, 2, 1, 3).reshape(64, 64, -1)
    whole = ~np.isnan(blocks).any(axis=-1)
    error = np.abs(frame[..., 0][whole] - (102 * (1 - blocks[whole].mean(axis=-1))))
    # of 102 levels; measured 4.5, for the footprint is taken as a rectangle along the floor's axes; one point gives 8.7
    assert whole.sum() > 1000
    assert error.mean() < 6


def test_a_texture_that_is_no_checker_gives_its_mean_color() -> None:
    texture = (
        "<texture name='t' type='2d' builtin='gradient' rgb1='1 0 0' rgb2='0 0 1' width='8' height='8'/>"
        "<material name='t' texture='t'/>"
    )
    model, data = scene("<geom type='plane' size='8 8 1' material='t'/>", assets=texture)
    view = View(position=(0.0, 0.0, 2.0), target=(0.0, 0.0, 0.0), up=(0.0, 1.0, 0.0))
    look = Look(ambient=1.0, headlight=0.0, sun=0.0, colors={})
    frame = RayCamera(model, view=view, look=look, height=8, width=8).render(data)
    mean = model.tex(0).data.reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(frame.reshape(-1, 3), np.tile(mean, (64, 1)), atol=1)  # white geoms show it untinted


@pytest.mark.parametrize("task", worldflow.envs.TASKS)
def test_what_is_kept_or_skipped_leaves_no_trace(task: str) -> None:
    env = gym.make(f"worldflow/{task}-v0")
    env.action_space.seed(0)
    env.reset(seed=0)
    inner = env.unwrapped
    assert isinstance(inner, worldflow.envs.PixelTaskEnv)
    model, data, spec = inner.model, inner.data, worldflow.envs.TASKS[task]
    careless = RayCamera(model, view=spec.view, look=spec.look)
    careful = RayCamera(model, view=spec.view, look=spec.look)
    careful._candidates = lambda *_: np.arange(64 * 64)
    drawn = 0
    for _ in range(8):
        for _ in range(3):
            env.step(env.action_space.sample())
        frame = careless.render(data)
        np.testing.assert_array_equal(frame, RayCamera(model, view=spec.view, look=spec.look).render(data))
        np.testing.assert_array_equal(frame, careful.render(data))
        drawn += len(careless._candidates(data, careless._rays_from(data).origin))
    assert drawn < 8 * 64 * 64 / 2  # otherwise nothing was skipped and nothing tested


def test_floor_in_closed_form_is_the_floor_that_rays_meet() -> None:
    env = gym.make("worldflow/HalfCheetah-v0")
    env.reset(seed=0)
    inner = env.unwrapped
    assert isinstance(inner, worldflow.envs.PixelTaskEnv)
    camera = inner.camera
    rays = camera._rays_from(inner.data)
    closed = camera._static_hits(inner.data, rays)
    cast = camera._hits(camera._static_model, inner.data, rays)
    np.testing.assert_array_equal(closed.geom, cast.geom)
    assert 0 < (cast.geom >= 0).sum() < cast.geom.size
    np.testing.assert_allclose(closed.distance, cast.distance, rtol=1e-12)  # a quotient of rounded dot products
    np.testing.assert_allclose(closed.normal, cast.normal, atol=1e-12)


def test_moved_static_geoms_are_drawn_anew() -> None:
    model, data = scene("<body pos='0 2 0'><geom type='box' size='0.5 0.5 0.5'/></body>" + disc(0.0))
    camera = RayCamera(model, view=AHEAD, look=FLAT_SKY)
    before = camera.render(data)
    model.body_pos[1, 2] = 1.0
    mujoco.mj_forward(model, data)
    after = camera.render(data)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, RayCamera(model, view=AHEAD, look=FLAT_SKY).render(data))


def test_tracking_keeps_the_body_in_the_middle() -> None:
    model, data = scene("<body name='ball'><freejoint/><geom type='sphere' size='0.5'/></body>")
    view = View(position=(0.0, -4.0, 0.0), target=(0.0, 0.0, 0.0), body="ball", follow=(True, False, False))
    camera = RayCamera(model, view=view, height=33, width=33)
    home = camera.render(data)
    for x in (-0.37, 3.0, 1000.25):
        data.qpos[:3] = x, 0.0, 0.0
        mujoco.mj_forward(model, data)
        assert camera.cast(data).geom[16, 16] == 0
        # the difference of two coordinates near 1000 is exact to 1e-13: far below one level
        assert np.abs(camera.render(data).astype(int) - home).max() <= 1
    data.qpos[:3] = 0.0, 0.0, 1.0  # not followed upward: the ball leaves the middle
    mujoco.mj_forward(model, data)
    assert camera.cast(data).geom[16, 16] == -1


def test_camera_inside_a_bounding_box_still_sees() -> None:
    along = "<body><freejoint/><geom type='capsule' fromto='0.5 -6 -0.5 0.5 3 -0.5' size='0.2' rgba='1 0 0 1'/></body>"
    model, data = scene(along)
    camera = RayCamera(model, view=View(position=(0.0, -3.5, 0.0), target=(0.0, 0.0, 0.0)), look=FLAT_SKY)
    is_rail = camera.cast(data).geom == 0
    assert is_rail.sum() > 100
    assert np.all(camera.render(data)[is_rail][:, 1] < 255)


def test_hidden_geoms_are_not_drawn() -> None:
    hidden = "<geom type='sphere' size='1' {}/>"
    empty = RayCamera(scene("")[0], view=AHEAD).render(scene("")[1])
    for attribute in ("rgba='1 0 0 0'", "group='3'", "material='clear'"):
        for moving in (False, True):
            geom = hidden.format(attribute)
            body = f"<body><freejoint/><inertial mass='1' pos='0 0 0' diaginertia='1 1 1'/>{geom}</body>"
            model, data = scene(body if moving else geom, assets="<material name='clear' rgba='1 0 0 0'/>")
            np.testing.assert_array_equal(RayCamera(model, view=AHEAD).render(data), empty)
    model, data = scene(hidden.format("rgba='1 0 0 1' group='2'"))
    assert not np.array_equal(RayCamera(model, view=AHEAD).render(data), empty)


def test_sizes_and_fresh_arrays() -> None:
    model, data = scene(disc(0.0))
    camera = RayCamera(model, view=AHEAD, height=12, width=20)
    first, second = camera.render(data), camera.render(data)
    assert first.shape == (12, 20, 3)
    assert first.dtype == np.uint8
    assert first.flags["C_CONTIGUOUS"]
    assert not np.shares_memory(first, second)


def test_own_colors_by_geom_and_by_body() -> None:
    model, data = scene("<body name='ball'><freejoint/><geom name='skin' type='sphere' size='1'/></body>")
    for name in ("ball", "skin"):
        look = Look(ambient=1.0, headlight=0.0, sun=0.0, colors={name: (0.2, 0.4, 0.6)})
        np.testing.assert_array_equal(RayCamera(model, view=AHEAD, look=look).render(data)[32, 32], (51, 102, 153))


def test_wrong_arguments_are_named() -> None:
    model, _ = scene("<body name='torso'><freejoint/><geom name='skin' type='sphere' size='1'/></body>")
    with pytest.raises(ValueError, match="did you mean 'skin'"):
        RayCamera(model, view=AHEAD, look=Look(colors={"skim": (1.0, 0.0, 0.0)}))
    with pytest.raises(ValueError, match="did you mean 'torso'"):
        RayCamera(model, view=View(position=(0.0, -1.0, 0.0), target=(0.0, 0.0, 0.0), body="torsi"))
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        RayCamera(model, view=AHEAD, width=0)
    with pytest.raises(ValueError, match="outline_rays must be even"):
        RayCamera(model, view=AHEAD, outline_rays=3)
    with pytest.raises(ValueError, match="parallel"):
        View(position=(0.0, 0.0, 1.0), target=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="fovy"):
        View(position=(0.0, -1.0, 0.0), target=(0.0, 0.0, 0.0), fovy=180.0)


def test_no_graphics_library_takes_part() -> None:
    program = (
        "import sys, gymnasium as gym\n"
        "env = gym.make('worldflow.envs:worldflow/InvertedPendulum-v0', render_mode='rgb_array')\n"
        "env.reset(seed=0); env.render(); env.close()\n"
        "assert not any(name.split('.')[0] == 'OpenGL' for name in sys.modules), 'OpenGL'\n"
        "assert not {'mujoco.egl', 'mujoco.osmesa'} & set(sys.modules), 'context'\n"
    )
    clean = {"PATH": "", "PYTHONWARNINGS": "error"}  # no DISPLAY, no MUJOCO_GL
    result = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""
