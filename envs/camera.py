"""A MuJoCo camera without OpenGL: every pixel is a ray cast by the physics engine itself.

`mujoco.mj_multiRay` answers, for a bundle of rays from one point, which geom each ray meets, how far away and with
which surface normal. That is all a plain shaded picture needs, so no display, driver or context takes part and the
same state gives the same bytes on every run.

A frame is made in two passes. One ray goes through each pixel's center; pixels whose neighbors show another geom or
a crease are then cast again with a `supersample x supersample` grid of rays and averaged. Only outlines pay for their
smoothness, and they move by fractions of a pixel, as a model that learns from small frames needs. A surface with unit
normal `n`, seen along the unit direction `d`, has the color

    rgb * (ambient + headlight * max(0, -n.d) + sun * max(0, n.s))

with `s` the direction to the sun. A plane's checker is not sampled but integrated over the pixel's footprint on the
plane: a square wave averaged over a width `w` around `x` is `(F(x + w/2) - F(x - w/2)) / w`, with `F` the triangle
wave whose slope it is. The floor turns to its mean color toward the horizon instead of into noise.

What is not drawn: shadows, reflections, translucency (a geom is opaque, or absent where alpha is 0), textures on
anything but a plane (those geoms show the mean color of their texture).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import mujoco
    from numpy.typing import NDArray

__all__ = ["Look", "RayCamera", "RayHits", "View"]

Vector = tuple[float, float, float]

_NUM_DRAWN_GROUPS = 3  # MuJoCo's viewer shows geom groups 0, 1 and 2 until told otherwise
_FAR = 1e10  # MuJoCo's own "no limit" (mjMAXVAL)
_CREASE_COSINE = 0.9  # neighbors of one geom whose normals differ by more than 26 degrees lie on two faces


@dataclass(frozen=True, kw_only=True)
class View:
    """Where a camera stands and what it looks at.

    Args:
        position: Of the camera, in meters.
        target: Point that appears in the middle of the picture.
        up: Direction that points upward in the picture; not parallel to the line of sight.
        fovy: Vertical field of view in degrees.
        body: Name of a body to follow, or None to stand still.
        follow: World axes along which the body is followed. Along these, `position` and `target` are offsets from
            the body's origin; along the others they are world coordinates.
    """

    position: Vector
    target: Vector
    up: Vector = (0.0, 0.0, 1.0)
    fovy: float = 45.0
    body: str | None = None
    follow: tuple[bool, bool, bool] = (True, True, True)

    def __post_init__(self) -> None:
        if not 0.0 < self.fovy < 180.0:
            raise ValueError(f"fovy must lie between 0 and 180 degrees, got {self.fovy}")
        sight = np.subtract(self.target, self.position)
        if np.linalg.norm(np.cross(sight, self.up)) < 1e-9 * max(1.0, float(np.linalg.norm(sight))):
            raise ValueError(
                f"up {self.up} must not be parallel to the line of sight from {self.position} to {self.target}; "
                "give another up"
            )


@dataclass(frozen=True, kw_only=True)
class Look:
    """Light and colors; every color is red, green, blue in [0, 1].

    Args:
        ambient: Light that reaches every surface alike.
        headlight: Light that comes from the camera.
        sun: Light from far away, in `sun_direction`.
        sun_direction: Points from the scene to the sun; any length.
        zenith, horizon: The sky, blended by how far a ray points up; equal colors make it flat.
        colors: Own colors for geoms, by the name of the geom or of the body that carries them.
    """

    ambient: float = 0.45
    headlight: float = 0.25
    sun: float = 0.4
    sun_direction: Vector = (-0.4, -0.6, 1.0)
    zenith: Vector = (0.45, 0.6, 0.85)
    horizon: Vector = (0.9, 0.93, 0.97)
    colors: Mapping[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RayHits:
    """What each pixel's central ray met.

    Args:
        geom: `int32 (row, column)`, geom id, -1 for the sky.
        distance: `float64 (row, column)`, meters along the ray, -1 for the sky.
        normal: `float64 (row, column, 3)`, unit surface normal, 0 for the sky.
    """

    geom: NDArray[np.int32]
    distance: NDArray[np.float64]
    normal: NDArray[np.float64]


class RayCamera:
    """Renders the state of a MuJoCo model by ray casting.

    Args:
        model: The compiled model. Its geometry and colors are read once, here.
        view: Where the camera stands.
        height, width: Of the picture, in pixels.
        look: Light and colors.
        supersample: Rays along one side of an outline pixel; 1 turns smoothing off.

    Raises:
        ValueError: A size below 1, or a name that the model does not have.

    Example:
        >>> import mujoco
        >>> model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
        >>> data = mujoco.MjData(model)
        >>> mujoco.mj_forward(model, data)
        >>> RayCamera(model, view=View(position=(0, -4, 0), target=(0, 0, 0)), height=8, width=8).render(data).shape
        (8, 8, 3)
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        view: View,
        height: int = 64,
        width: int = 64,
        look: Look | None = None,
        supersample: int = 3,
    ) -> None:
        import mujoco  # here, so that worldflow.envs can be imported where MuJoCo is not installed

        for name, value in (("height", height), ("width", width), ("supersample", supersample)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.model, self.view, self.look = model, view, look or Look()
        self.height, self.width, self.supersample = height, width, supersample
        self._cast = mujoco.mj_multiRay
        self._groups = np.array([1] * _NUM_DRAWN_GROUPS + [0] * (mujoco.mjNGROUP - _NUM_DRAWN_GROUPS), np.uint8)
        self._body = None if view.body is None else _body_id(model, view.body)
        self._follow = np.array(view.follow, np.float64)

        forward = np.subtract(view.target, view.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, view.up)
        right /= np.linalg.norm(right)
        self._axes = forward, right, np.cross(right, forward)
        self._pixel = 2.0 * np.tan(np.radians(view.fovy) / 2.0) / height  # side of a pixel at distance 1
        column = (np.arange(width) + 0.5 - width / 2) * self._pixel
        row = (height / 2 - np.arange(height) - 0.5) * self._pixel
        self._across, self._along = (axis.ravel() for axis in np.meshgrid(column, row))
        self._rays, self._shortening = self._directions(self._across, self._along)
        offset = (np.arange(supersample) + 0.5) / supersample - 0.5
        self._offsets = tuple(axis.ravel() * self._pixel for axis in np.meshgrid(offset, offset))

        sun = np.array(self.look.sun_direction, np.float64)
        self._sun = self.look.sun * sun / np.linalg.norm(sun)
        self._rgb, self._checkers = _surfaces(model, self.look)
        self._sky = self._sky_color(self._rays)
        creased = (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_MESH)
        self._is_creased = np.append(np.isin(model.geom_type, [int(kind) for kind in creased]), False)  # [-1]: sky

        moves = model.body_weldid[model.geom_bodyid] != 0
        self._static = np.flatnonzero(~moves)
        self._moving = np.flatnonzero(moves & (model.geom_group < _NUM_DRAWN_GROUPS))
        self._static_model = copy.copy(model)  # the same, with moving geoms invisible
        self._static_model.geom_matid[moves] = -1
        self._static_model.geom_rgba[moves, 3] = 0.0
        self._backdrop: _Backdrop | None = None

    def cast(self, data: mujoco.MjData) -> RayHits:
        """What the central ray of each pixel meets."""
        geom, distance, normal = self._hits(self.model, data, self._origin(data), self._rays, with_static=True)
        shape = self.height, self.width
        return RayHits(geom=geom.reshape(shape), distance=distance.reshape(shape), normal=normal.reshape(*shape, 3))

    def render(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """A picture of `data` as `uint8 (row, column, channel)`, a new array each time.

        Args:
            data: State of the camera's model, with positions up to date (`mj_forward`, or any step, does that).
        """
        origin = self._origin(data)
        backdrop = self._backdrop_from(data, origin)
        geom, normal, color = backdrop.geom.copy(), backdrop.normal.copy(), backdrop.color.copy()
        pixels = self._candidates(data, origin)
        found, distance, facing = self._hits(self.model, data, origin, self._rays[pixels], with_static=False)
        limit = backdrop.distance[pixels]
        front = np.flatnonzero((found >= 0) & ((limit < 0) | (distance < limit)))
        pixels = pixels[front]
        geom[pixels], normal[pixels] = found[front], facing[front]
        moving = np.zeros(len(geom), np.bool_)
        moving[pixels] = True

        outline = self._outline(geom, normal, moving) if self.supersample > 1 else np.zeros_like(moving)
        inside = np.flatnonzero(~outline[pixels])
        front, pixels = front[inside], pixels[inside]
        footprint = self._shortening[pixels] * self._pixel
        color[pixels] = self._shade(
            data, origin, found[front], distance[front], facing[front], self._rays[pixels], footprint
        )
        edge = np.flatnonzero(outline)
        color[edge] = self._supersampled(self.model, data, origin, edge)
        np.minimum(color, 1.0, out=color)
        color *= 255.0
        color += 0.5
        return color.astype(np.uint8).reshape(self.height, self.width, 3)

    def _backdrop_from(self, data: mujoco.MjData, origin: NDArray[np.float64]) -> _Backdrop:
        """The picture without moving geoms; the last one again while neither camera nor static geoms moved."""
        pose = origin.tobytes() + data.geom_xpos[self._static].tobytes() + data.geom_xmat[self._static].tobytes()
        if self._backdrop is None or self._backdrop.pose != pose:
            model = self._static_model
            geom, distance, normal = self._hits(model, data, origin, self._rays, with_static=True)
            color = self._sky.copy()
            drawn = geom >= 0
            outline = self._outline(geom, normal, np.ones_like(drawn)) if self.supersample > 1 else ~drawn & drawn
            inside, edge = np.flatnonzero(drawn & ~outline), np.flatnonzero(outline)
            footprint = self._shortening[inside] * self._pixel
            color[inside] = self._shade(
                data, origin, geom[inside], distance[inside], normal[inside], self._rays[inside], footprint
            )
            color[edge] = self._supersampled(model, data, origin, edge)
            self._backdrop = _Backdrop(pose=pose, geom=geom, distance=distance, normal=normal, color=color)
        return self._backdrop

    def _origin(self, data: mujoco.MjData) -> NDArray[np.float64]:
        origin = np.array(self.view.position, np.float64)
        if self._body is not None:
            origin += self._follow * data.xpos[self._body]
        return origin

    def _directions(
        self, across: NDArray[np.float64], along: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Unit ray directions `(ray, 3)` through points of the image plane at distance 1, and 1 / their distance."""
        forward, right, up = self._axes
        shortening = 1.0 / np.sqrt(1.0 + across * across + along * along)
        across, along = across * shortening, along * shortening
        rays = np.empty((len(across), 3))
        for i in range(3):  # not a matrix product: BLAS may round differently elsewhere
            rays[:, i] = shortening * forward[i] + across * right[i] + along * up[i]
        return rays, shortening

    def _hits(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        origin: NDArray[np.float64],
        rays: NDArray[np.float64],
        *,
        with_static: bool,
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        """Geom id `(ray,)`, distance `(ray,)` and normal `(ray, 3)` of what each ray meets first."""
        count = len(rays)
        geom, distance, normal = np.full(count, -1, np.int32), np.full(count, -1.0), np.zeros((count, 3))
        if count:
            self._cast(
                model, data, origin, rays.reshape(-1), self._groups, with_static, -1,
                geom, distance, normal.reshape(-1), count, _FAR,
            )  # fmt: skip
        return geom, distance, normal

    def _candidates(self, data: mujoco.MjData, origin: NDArray[np.float64]) -> NDArray[np.intp]:
        """Pixels that moving geoms may cover: the rectangles around the pictures of their bounding spheres."""
        offset, radius = data.geom_xpos[self._moving] - origin, self.model.geom_rbound[self._moving]
        depth, right, up = (offset[:, 0] * a[0] + offset[:, 1] * a[1] + offset[:, 2] * a[2] for a in self._axes)
        covered = np.zeros((self.height, self.width), np.bool_)
        # seen along one image axis, a sphere is a disc between two tangents from the camera
        bounds = []
        for side, size in ((right, self.width), (-up, self.height)):
            middle = np.arctan2(side, depth)
            spread = np.arcsin(np.minimum(radius / np.maximum(np.hypot(side, depth), 1e-12), 1.0))
            low, high = middle - spread, middle + spread
            quarter = 0.5 * np.pi - 1e-6
            first = np.floor(np.tan(np.clip(low, -quarter, quarter)) / self._pixel + size / 2 - 0.5)
            last = np.ceil(np.tan(np.clip(high, -quarter, quarter)) / self._pixel + size / 2 + 0.5)
            bounds += [np.clip(first, 0, size).astype(int), np.clip(last, 0, size).astype(int)]
        for left, stop, top, bottom, z, r in zip(*(b.tolist() for b in bounds), depth, radius, strict=True):
            if r == 0.0 or abs(z) <= r:  # endless, or around the camera
                covered[:] = True
            elif z > 0:
                covered[top:bottom, left:stop] = True
        return np.flatnonzero(covered)

    def _outline(
        self, geom: NDArray[np.int32], normal: NDArray[np.float64], among: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Pixels that differ from a neighbor in geom, or lie across a crease from it, one of the two in `among`."""
        image = geom.reshape(self.height, self.width)
        index = np.arange(len(geom)).reshape(image.shape)
        among = among.reshape(image.shape)
        outline = np.zeros(len(geom), np.bool_)
        for here, there in (
            ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
            ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ):
            differs = image[here] != image[there]
            differs &= among[here] | among[there]
            creased = among[here] & self._is_creased[image[here]] & ~differs
            first, second = index[here][creased], index[there][creased]
            differs[creased] = (normal[first] * normal[second]).sum(axis=1) < _CREASE_COSINE
            outline[index[here][differs]] = True
            outline[index[there][differs]] = True
        return outline

    def _supersampled(
        self, model: mujoco.MjModel, data: mujoco.MjData, origin: NDArray[np.float64], pixels: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Mean color `(pixel, 3)` of a grid of rays through each of `pixels`."""
        across = (self._across[pixels, None] + self._offsets[0]).ravel()
        along = (self._along[pixels, None] + self._offsets[1]).ravel()
        rays, shortening = self._directions(across, along)
        geom, distance, normal = self._hits(model, data, origin, rays, with_static=True)
        footprint = shortening * (self._pixel / self.supersample)
        color = self._shade(data, origin, geom, distance, normal, rays, footprint)
        missed = np.flatnonzero(geom < 0)
        color[missed] = self._sky_color(rays[missed])
        return np.minimum(color, 1.0).reshape(len(pixels), -1, 3).mean(axis=1)

    def _shade(
        self,
        data: mujoco.MjData,
        origin: NDArray[np.float64],
        geom: NDArray[np.int32],
        distance: NDArray[np.float64],
        normal: NDArray[np.float64],
        rays: NDArray[np.float64],
        footprint: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Color `(ray, 3)` where rays meet geoms; meaningless where they meet none.

        `footprint` is the angle a ray stands for, in the direction across it.
        """
        nx, ny, nz = normal.T
        head = rays[:, 0] * nx + rays[:, 1] * ny + rays[:, 2] * nz
        sun = nx * self._sun[0] + ny * self._sun[1] + nz * self._sun[2]
        light = self.look.ambient - self.look.headlight * np.minimum(head, 0.0) + np.maximum(sun, 0.0)
        color = self._rgb[geom] * light[:, None]
        for plane, checker in self._checkers.items():
            on = np.flatnonzero(geom == plane)
            if len(on):
                mat = data.geom_xmat[plane].reshape(3, 3)
                center = data.geom_xpos[plane]
                mix = self._checker_mix(checker, origin - center, mat, distance[on], rays[on], footprint[on])
                color[on] *= checker.odd + mix[:, None] * (checker.even - checker.odd)
        return color

    def _checker_mix(
        self,
        checker: _Checker,
        origin: NDArray[np.float64],
        mat: NDArray[np.float64],
        distance: NDArray[np.float64],
        rays: NDArray[np.float64],
        footprint: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Share of even cells in each ray's footprint on a plane with axes `mat`; `origin` is relative to it."""
        _, right, up = self._axes
        z = mat[:, 2]
        slope = rays[:, 0] * z[0] + rays[:, 1] * z[1] + rays[:, 2] * z[2]
        spread = distance * footprint
        wave = 1.0
        for i in range(2):
            axis = mat[:, i]
            ray = rays[:, 0] * axis[0] + rays[:, 1] * axis[1] + rays[:, 2] * axis[2]
            x = (float(_dot(origin, axis)) + distance * ray) * checker.cells[i] + checker.phase[i]
            # a step across the image moves the point where the ray meets the plane by right - ray (z.right) / (z.ray)
            tilt = ray / slope
            width = np.abs(_dot(right, axis) - tilt * _dot(right, z)) + np.abs(_dot(up, axis) - tilt * _dot(up, z))
            half = np.maximum(width * spread, 1e-6) * (0.5 * abs(checker.cells[i]))
            wave = wave * ((_triangle(x + half) - _triangle(x - half)) / (2.0 * half))
        return 0.5 + 0.5 * wave

    def _sky_color(self, rays: NDArray[np.float64]) -> NDArray[np.float64]:
        horizon, zenith = np.array(self.look.horizon, np.float64), np.array(self.look.zenith, np.float64)
        return horizon + np.maximum(rays[:, 2:], 0.0) * (zenith - horizon)


@dataclass(frozen=True, kw_only=True)
class _Backdrop:
    """All that stands still: hits of the central rays, flattened, and the finished color `(pixel, 3)`."""

    pose: bytes
    geom: NDArray[np.int32]
    distance: NDArray[np.float64]
    normal: NDArray[np.float64]
    color: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Checker:
    """Squares of a plane: `cells` per meter and `phase` along its two axes, colors of even and odd squares."""

    cells: tuple[float, float]
    phase: tuple[float, float]
    even: NDArray[np.float64]
    odd: NDArray[np.float64]


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The integral of a square wave that is 1 on [0, 1) and -1 on [1, 2)."""
    return 1.0 - np.abs(x - 2.0 * np.floor(0.5 * x) - 1.0)


def _surfaces(model: mujoco.MjModel, look: Look) -> tuple[NDArray[np.float64], dict[int, _Checker]]:
    """Color `(geom, 3)` of every geom, and the checkers of the planes that have one."""
    import mujoco

    rgb = model.geom_rgba[:, :3].astype(np.float64)
    checkers: dict[int, _Checker] = {}
    for geom in range(model.ngeom):
        material = int(model.geom_matid[geom])
        if material < 0:
            continue
        if np.all(model.geom_rgba[geom] == (0.5, 0.5, 0.5, 1.0)):  # MuJoCo: a geom's own color wins unless untouched
            rgb[geom] = model.mat_rgba[material, :3]
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
            even=colors[0],
            odd=colors[1],
        )
    for name, color in look.colors.items():
        rgb[_geom_ids(model, name)] = color
    return rgb, checkers


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


def _names(model: mujoco.MjModel, kind: str) -> list[str]:
    count = model.nbody if kind == "body" else model.ngeom
    return [getattr(model, kind)(i).name for i in range(count)]


def _body_id(model: mujoco.MjModel, name: str) -> int:
    names = _names(model, "body")
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise ValueError(
            f"the model has no body {name!r}; "
            + (f"did you mean {close[0]!r}?" if close else f"bodies: {', '.join(filter(None, names))}")
        )
    return names.index(name)


def _geom_ids(model: mujoco.MjModel, name: str) -> list[int]:
    """Geoms of that name, or all geoms of the body of that name."""
    geoms, bodies = _names(model, "geom"), _names(model, "body")
    if name in geoms:
        return [geoms.index(name)]
    if name in bodies:
        return [int(i) for i in np.flatnonzero(model.geom_bodyid == bodies.index(name))]
    close = difflib.get_close_matches(name, [*geoms, *bodies], n=1)
    raise ValueError(
        f"colors names {name!r}, which is no geom or body of the model; "
        + (f"did you mean {close[0]!r}?" if close else f"geoms: {', '.join(filter(None, geoms))}")
    )
