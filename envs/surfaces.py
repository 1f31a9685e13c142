"""What color a point of a MuJoCo model has: light, geom colors, the sky, and the checker of a floor.

A surface with unit normal `n`, seen along the unit direction `d`, has the color

    rgb * (ambient + headlight * max(0, -n.d) + sun * max(0, n.s))

with `s` the direction to the sun. A plane's checker is not sampled but integrated over the pixel's footprint on the
plane: a square wave averaged over a width `w` around `x` is `(F(x + w/2) - F(x - w/2)) / w`, with `F` the triangle
wave whose slope it is. So the floor turns to its mean color toward the horizon instead of into noise.
"""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from worldflow.hints import did_you_mean

if TYPE_CHECKING:
    from mujoco import MjData, MjModel
    from numpy.typing import NDArray

__all__ = ["Look", "RayHits", "Rays", "Surfaces", "Vector", "dot"]

Vector = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Light and colors; every color is red, green, blue in [0, 1].

    Args:
        ambient: Light that reaches every surface alike.
        headlight: Light that comes from the camera.
        sun: Light from far away, in `sun_direction`.
        sun_direction: Points from the scene to the sun; any length.
        haze: Distance in meters at which surfaces have faded halfway into the horizon's color, None for clear air.
        zenith, horizon: The sky, blended by how far a ray points up; equal colors make it flat.
        colors: Own colors for geoms, by the name of the geom or of the body that carries them. A texture is
            tinted by them.
    """

    ambient: float = 0.45
    headlight: float = 0.25
    sun: float = 0.4
    haze: float | None = None
    sun_direction: Vector = (-0.4, -0.6, 1.0)
    zenith: Vector = (0.45, 0.6, 0.85)
    horizon: Vector = (0.9, 0.93, 0.97)
    colors: Mapping[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rays:
    """A bundle of rays from one point.

    Args:
        origin: `float64 (3,)`, meters.
        direction: `float64 (3, ray)`, unit vectors.
        angle: `float64 (ray,)`, the angle that a ray's share of the picture subtends, in radians.
        right, up: `float64 (3,)`, the picture's axes in the world.
        planes: What `on_plane` has answered.
    """

    origin: NDArray[np.float64]
    direction: NDArray[np.float64]
    angle: NDArray[np.float64]
    right: NDArray[np.float64]
    up: NDArray[np.float64]
    planes: dict[bytes, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.angle)

    def take(self, index: NDArray[np.intp]) -> Rays:
        """Some of the rays."""
        planes = {key: rows.take(index, axis=1) for key, rows in self.planes.items()}
        direction, angle = self.direction.take(index, axis=1), self.angle.take(index)
        return Rays(origin=self.origin, direction=direction, angle=angle, right=self.right, up=self.up, planes=planes)

    def moved(self, origin: NDArray[np.float64]) -> Rays:
        """The same directions from another point."""
        return Rays(
            origin=origin,
            direction=self.direction,
            angle=self.angle,
            right=self.right,
            up=self.up,
            planes=self.planes,
        )

    def on_plane(self, axes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows `(5, ray)`: the direction in a plane's frame, and the pixel's width along the plane's x and y.

        Widths are per meter of distance. A step along an image axis e moves the point where a ray r meets the plane
        of normal n by e - r (n.e) / (n.r). Kept, since a camera that does not turn keeps its rays' slopes to a floor.

        Args:
            axes: MuJoCo's flat rotation matrix, its columns the plane's axes.
        """
        key = axes.tobytes()
        if key not in self.planes:
            x_axis, y_axis, normal = axes.reshape(3, 3).T
            x, y, z = self.direction
            # Not a matrix product: BLAS may round differently on another machine.
            along_x, along_y, slope = (x * a[0] + y * a[1] + z * a[2] for a in (x_axis, y_axis, normal))
            level = np.where(slope == 0.0, 1e-300, slope)
            widths = []
            for along, axis in ((along_x, x_axis), (along_y, y_axis)):
                tilt = along / level
                width = sum(np.abs(dot(e, axis) - tilt * dot(e, normal)) for e in (self.right, self.up))
                widths.append(width * self.angle)
            self.planes[key] = np.stack((along_x, along_y, slope, *widths))
        return self.planes[key]


@dataclass(frozen=True, kw_only=True)
class RayHits:
    """What each ray met first.

    Args:
        geom: `int32 (...)`, geom id, -1 for the sky.
        distance: `float64 (...)`, meters along the ray, -1 for the sky.
        normal: `float64 (3, ...)`, unit surface normal, 0 for the sky.
    """

    geom: NDArray[np.int32]
    distance: NDArray[np.float64]
    normal: NDArray[np.float64]

    def take(self, index: NDArray[np.intp]) -> RayHits:
        """Some of the hits of a bundle."""
        return RayHits(
            geom=self.geom.take(index), distance=self.distance.take(index), normal=self.normal.take(index, axis=1)
        )


class Surfaces:
    """The colors of a model, read once.

    Args:
        model: The compiled model.
        look: Light and colors.
    """

    def __init__(self, model: MjModel, *, look: Look) -> None:
        self.look = look
        self._rgb, self._checkers = _surfaces(model, look)
        sun = np.array(look.sun_direction, np.float64)
        self._sun = look.sun * sun / np.sqrt(dot(sun, sun))
        self._horizon = np.array(look.horizon, np.float64)[:, None]
        self._zenith = np.array(look.zenith, np.float64)[:, None]

    def sky(self, rays: Rays) -> NDArray[np.float64]:
        """Color `(3, ray)` of rays that meet nothing."""
        return self._horizon + np.maximum(rays.direction[2], 0.0) * (self._zenith - self._horizon)

    def shade(self, data: MjData, rays: Rays, hits: RayHits) -> NDArray[np.float64]:
        """Color `(3, ray)` in [0, 1] where rays meet geoms; meaningless where they meet none."""
        nx, ny, nz = hits.normal
        dx, dy, dz = rays.direction
        light = np.minimum(dx * nx + dy * ny + dz * nz, 0.0)
        light *= -self.look.headlight
        light += self.look.ambient
        light += np.maximum(nx * self._sun[0] + ny * self._sun[1] + nz * self._sun[2], 0.0)
        color = self._rgb.take(hits.geom, axis=1, mode="wrap")
        for plane, checker in self._checkers.items():
            on = np.flatnonzero(hits.geom == plane)
            if len(on) == 0:
                continue
            if len(on) == len(rays):  # a floor alone, drawn anew in every frame: spare the copies
                some, distance, where = rays, hits.distance, slice(None)
            else:
                some, distance, where = rays.take(on), hits.distance.take(on), on
            mix = _checker_mix(checker, data.geom_xpos[plane], data.geom_xmat[plane], some, distance)
            for channel, even, odd in zip(color, checker.even, checker.odd, strict=True):
                channel[where] = odd + mix * (even - odd)
        color *= light
        np.minimum(color, 1.0, out=color)
        if self.look.haze is not None:
            fade = (hits.distance / self.look.haze) ** 2
            fade *= fade
            fade /= 1.0 + fade
            color += fade * (self._horizon - color)
        return color


@dataclass(frozen=True, kw_only=True)
class _Checker:
    """Squares of a plane: `cells` per meter and `phase` along its two axes, colors of even and odd squares."""

    cells: tuple[float, float]
    phase: tuple[float, float]
    even: NDArray[np.float64]
    odd: NDArray[np.float64]


def _checker_mix(
    checker: _Checker, center: NDArray[np.float64], axes: NDArray[np.float64], rays: Rays, distance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of even squares in each ray's footprint on a plane whose axes are the columns of `axes`."""
    along_x, along_y, _, width_x, width_y = rays.on_plane(axes)
    mix = np.full(len(rays), 0.5)
    for i, (along, width) in enumerate(((along_x, width_x), (along_y, width_y))):
        cells = checker.cells[i]
        x = along * distance
        x *= cells
        x += dot(rays.origin - center, axes[i::3]) * cells + checker.phase[i]
        half = width * distance
        half *= 0.5 * cells
        np.maximum(half, 1e-6, out=half)
        mix *= (_triangle(x + half) - _triangle(x - half)) / (half + half)
    return 0.5 + mix


def dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Scalar product of two 3-vectors, in a fixed order of additions."""
    return float(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The integral of a square wave that is 1 on [0, 1) and -1 on [1, 2)."""
    wave = np.floor(0.5 * x)
    wave *= -2.0
    wave += x
    wave -= 1.0
    np.abs(wave, out=wave)
    return np.subtract(1.0, wave, out=wave)


def _surfaces(model: MjModel, look: Look) -> tuple[NDArray[np.float64], dict[int, _Checker]]:
    """Color `(3, geom)` of every geom, and the checkers of the planes that have one."""
    import mujoco

    rgb = model.geom_rgba[:, :3].astype(np.float64)
    untouched = np.all(model.geom_rgba == (0.5, 0.5, 0.5, 1.0), axis=1) & (model.geom_matid >= 0)
    rgb[untouched] = model.mat_rgba[model.geom_matid[untouched], :3]  # MuJoCo: a geom's own color wins once given
    for name, color in look.colors.items():
        rgb[_geom_ids(model, name)] = color
    checkers: dict[int, _Checker] = {}
    for geom in np.flatnonzero(model.geom_matid >= 0).tolist():
        material = int(model.geom_matid[geom])
        texture = int(model.mat_texid[material, int(mujoco.mjtTextureRole.mjTEXROLE_RGB)])
        if texture < 0:
            continue
        image = model.tex(texture).data.astype(np.float64) / 255.0
        image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
        is_flat = model.tex_type[texture] == int(mujoco.mjtTexture.mjTEXTURE_2D)
        is_plane = model.geom_type[geom] == int(mujoco.mjtGeom.mjGEOM_PLANE)
        colors = _checker_colors(image) if is_flat and is_plane else None
        if colors is None:
            rgb[geom] *= image.reshape(-1, 3).mean(axis=0)
            continue
        size, repeat = model.geom_size[geom, :2], model.mat_texrepeat[material]
        # texrepeat counts pictures of 2 x 2 squares: per plane, or per meter if uniform or the plane is endless
        per_meter = [
            repeat[i] if model.mat_texuniform[material] or size[i] == 0 else repeat[i] / (2 * size[i]) for i in (0, 1)
        ]
        checkers[geom] = _Checker(
            cells=(2.0 * per_meter[0], 2.0 * per_meter[1]),
            phase=tuple(2.0 * per_meter[i] * size[i] for i in (0, 1)),  # squares start at the plane's corner
            even=colors[0] * rgb[geom],
            odd=colors[1] * rgb[geom],
        )
    return rgb.T.copy(), checkers


def _checker_colors(image: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The two colors of a picture of 2 x 2 squares, or None for any other picture."""
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    if min(rows, columns) == 0:
        return None
    even, odd = image[0, 0], image[0, -1]
    flat = np.empty_like(image)
    flat[:rows, :columns], flat[rows:, columns:] = even, even
    flat[:rows, columns:], flat[rows:, :columns] = odd, odd
    return (even.copy(), odd.copy()) if np.array_equal(image, flat) else None


def _geom_ids(model: MjModel, name: str) -> list[int]:
    """Geoms of that name, or all geoms of the body of that name."""
    geoms = [model.geom(i).name for i in range(model.ngeom)]
    bodies = [model.body(i).name for i in range(model.nbody)]
    if name in geoms:
        return [geoms.index(name)]
    if name in bodies:
        return [int(i) for i in np.flatnonzero(model.geom_bodyid == bodies.index(name))]
    known = [*geoms, *bodies]
    raise ValueError(f"colors names {name!r}, which is no geom or body of the model{did_you_mean(name, known)}")
