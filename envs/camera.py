"""A MuJoCo camera without OpenGL: every pixel is a ray cast by the physics engine itself.

`mujoco.mj_multiRay` answers, for a bundle of rays from one point, which geom each ray meets, how far away and with
which surface normal. That is all a plain shaded picture needs, so no display, driver or context takes part and the
same state gives the same bytes on every run.

Two things make it fast and clean. What stands still is drawn once and kept while the camera stands still too; only
pixels that moving geoms may cover are cast again. And one ray goes through a pixel's center, but a pixel whose
neighbor shows another geom, or lies across a crease, gets the mean of several: only outlines pay for smoothness, and
they move by fractions of a pixel, as a model that learns from small frames needs. (A moving geom much thinner than a
pixel may be missed by the central rays and flicker: choose a view, or a size, that shows it.)

What is not drawn: shadows, reflections, translucency (a geom is opaque, or absent where alpha is 0), pictures on
anything but a checkered plane (other textured geoms show the mean color of their texture).
"""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldflow.envs.surfaces import Look, RayHits, Rays, Surfaces, Vector, dot
from worldflow.hints import did_you_mean

if TYPE_CHECKING:
    from mujoco import MjData, MjModel
    from numpy.typing import NDArray

__all__ = ["Look", "RayCamera", "RayHits", "View"]

_NUM_DRAWN_GROUPS = 3  # MuJoCo's viewer shows geom groups 0, 1 and 2 until told otherwise
_FAR = 1e10  # MuJoCo's own "no limit" (mjMAXVAL)
_BLOCK = 16384  # pixels smoothed at a time, which bounds memory
_CONTRAST = 0.03  # an outline fainter than 8 of 255 levels is as good unsmoothed
_CREASE_COSINE = 0.9  # neighbors on one geom whose normals differ by more than 26 degrees lie on two faces


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
        if np.linalg.norm(np.cross(sight, self.up)) <= 1e-9 * np.linalg.norm(sight) * np.linalg.norm(self.up):
            raise ValueError(
                f"up {self.up} must not be parallel to the line of sight from {self.position} to {self.target}; "
                "give another up"
            )


class RayCamera:
    """Renders the state of a MuJoCo model by ray casting.

    Args:
        model: The compiled model. Colors and what stands still are read once, here.
        view: Where the camera stands.
        height, width: Of the picture, in pixels.
        look: Light and colors.
        outline_rays: Even number of rays through a pixel on an outline, besides the central one; 0 turns smoothing
            off.

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
        model: MjModel,
        *,
        view: View,
        height: int = 64,
        width: int = 64,
        look: Look | None = None,
        outline_rays: int = 4,
    ) -> None:
        import mujoco  # here, so that worldflow.envs can be imported where MuJoCo is not installed

        for name, value in (("height", height), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if outline_rays < 0 or outline_rays % 2:
            raise ValueError(f"outline_rays must be even and not negative, got {outline_rays}")
        self.model, self.view, self.height, self.width = model, view, height, width
        self._multi_ray = mujoco.mj_multiRay
        self._groups = np.array([1] * _NUM_DRAWN_GROUPS + [0] * (mujoco.mjNGROUP - _NUM_DRAWN_GROUPS), np.uint8)
        self._body = None if view.body is None else _body_id(model, view.body)
        self._follow = np.array(view.follow, np.float64)

        forward = np.subtract(view.target, view.position, dtype=np.float64)
        forward /= np.sqrt(dot(forward, forward))
        right = np.cross(forward, view.up)
        right /= np.sqrt(dot(right, right))
        self._forward, self._right, self._up = forward, right, np.cross(right, forward)
        self._seen_along = np.stack((right, -self._up, forward), axis=1)  # right, down, ahead
        self._pixel = 2.0 * float(np.tan(np.radians(view.fovy) / 2.0)) / height  # side of a pixel at distance 1
        column = (np.arange(width, dtype=np.float64) + 0.5 - width / 2) * self._pixel
        row = (height / 2 - np.arange(height, dtype=np.float64) - 0.5) * self._pixel
        across, along = (axis.ravel() for axis in np.meshgrid(column, row))
        self._center = np.array((width, height)) / 2
        self._rays = self._through(across, along, share=self._pixel)
        lattice = _lattice(outline_rays)[..., None] * self._pixel
        around = (lattice[0] + across).ravel(), (lattice[1] + along).ravel()  # all pixels, then all again, ...
        self._around = self._through(*around, share=self._pixel / np.sqrt(1 + outline_rays))
        self._num_around = outline_rays

        self._surfaces = Surfaces(model, look=look or Look())
        self._sky = self._surfaces.sky(self._rays)
        kinds = mujoco.mjtGeom
        creased = [int(kind) for kind in (kinds.mjGEOM_CYLINDER, kinds.mjGEOM_BOX, kinds.mjGEOM_MESH)]
        self._is_creased = np.append(np.isin(model.geom_type, creased), False)  # the last is the sky's, geom -1
        self._has_creases = bool(self._is_creased.any())
        moves = model.body_weldid[model.geom_bodyid] != 0
        drawn = (model.geom_group < _NUM_DRAWN_GROUPS) & (_alpha(model) > 0)
        self._moving, self._static = np.flatnonzero(moves & drawn), np.flatnonzero(~moves & drawn)
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
        self._moves = np.append(moves, False)
        self._corners = model.geom_aabb[self._moving, None, :3] + signs * model.geom_aabb[self._moving, None, 3:]
        self._only_planes_stand = bool(np.all(model.geom_type[self._static] == int(kinds.mjGEOM_PLANE)))
        self._static_model = copy.copy(model)  # the same, with all that moves invisible
        self._static_model.geom_matid[moves] = -1
        self._static_model.geom_rgba[moves, 3] = 0.0
        self._backdrop: _Backdrop | None = None

    def cast(self, data: MjData) -> RayHits:
        """What the central ray of each pixel meets, as arrays `(row, column)` and, for normals, `(3, row, column)`."""
        hits = self._hits(self.model, data, self._rays_from(data))
        shape = self.height, self.width
        return RayHits(
            geom=hits.geom.reshape(shape),
            distance=hits.distance.reshape(shape),
            normal=hits.normal.reshape(3, *shape),
        )

    def render(self, data: MjData) -> NDArray[np.uint8]:
        """A picture of `data` as `uint8 (row, column, channel)`, a new array each time.

        Args:
            data: State of the camera's model, with positions up to date (`mj_forward`, or any step, does that).
        """
        rays = self._rays_from(data)
        backdrop = self._backdrop_of(data, rays)
        geom, normal, color = backdrop.hits.geom.copy(), backdrop.hits.normal.copy(), backdrop.color.copy()

        pixels = self._candidates(data, rays.origin)
        hits = self._hits(self.model, data, rays.take(pixels), with_static=False)
        behind = backdrop.hits.distance.take(pixels)
        front = np.flatnonzero((hits.geom >= 0) & ((behind < 0) | (hits.distance < behind)))
        pixels, hits = pixels.take(front), hits.take(front)
        geom[pixels], normal[:, pixels] = hits.geom, hits.normal
        _paint(color, pixels, self._surfaces.shade(data, rays.take(pixels), hits))
        fresh = np.zeros(len(geom), np.bool_)
        fresh[pixels] = True
        outline = self._outline(geom, normal, color, fresh)
        _paint(color, outline, self._smooth(data, rays.origin, outline, color, behind=backdrop.color))

        color *= 255.0
        color += 0.5
        return np.ascontiguousarray(color.astype(np.uint8).T).reshape(self.height, self.width, 3)

    def _rays_from(self, data: MjData) -> Rays:
        """The central rays, from where the camera stands now; it moves but never turns."""
        if self._body is None:
            return self._rays
        origin = np.array(self.view.position, np.float64)
        origin += self._follow * data.xpos[self._body]
        return self._rays.moved(origin)

    def _through(self, across: NDArray[np.float64], along: NDArray[np.float64], *, share: float) -> Rays:
        """Rays through points of the image plane at distance 1, each standing for a square of side `share` there."""
        shortening = 1.0 / np.sqrt(1.0 + across * across + along * along)
        across, along = across * shortening, along * shortening
        axes = zip(self._forward, self._right, self._up, strict=True)
        # Not a matrix product: BLAS may round differently on another machine.
        direction = np.stack([shortening * forward + across * right + along * up for forward, right, up in axes])
        origin = np.array(self.view.position, np.float64)
        return Rays(origin=origin, direction=direction, angle=shortening * share, right=self._right, up=self._up)

    def _hits(self, model: MjModel, data: MjData, rays: Rays, *, with_static: bool = True) -> RayHits:
        count = len(rays)
        geom, distance, normal = np.full(count, -1, np.int32), np.full(count, -1.0), np.zeros((count, 3))
        if count:
            vectors = np.ascontiguousarray(rays.direction.T).reshape(-1)
            self._multi_ray(
                model, data, rays.origin, vectors, self._groups, with_static, -1, geom,
                distance, normal.reshape(-1), count, _FAR,
            )  # fmt: skip
        return RayHits(geom=geom, distance=distance, normal=normal.T.copy())

    def _static_hits(self, data: MjData, rays: Rays) -> RayHits:
        """Hits with what stands still. A floor alone is met in closed form, as it is redrawn under a moving camera."""
        if not self._only_planes_stand:
            return self._hits(self._static_model, data, rays)
        count = len(rays)
        geom, distance, normal = np.full(count, -1, np.int32), np.full(count, np.inf), np.zeros((3, count))
        for plane in self._static:
            frame, offset = data.geom_xmat[plane], rays.origin - data.geom_xpos[plane]
            *axes, front = frame.reshape(3, 3).T
            along_x, along_y, slope, *_ = rays.on_plane(frame)
            slope = np.where(slope < -1e-15, slope, np.nan)  # a plane has a front only; mjMINVAL as in MuJoCo
            reach = -dot(offset, front) / slope
            met = (reach >= 0) & (reach < distance)
            for along, axis, size in zip((along_x, along_y), axes, self.model.geom_size[plane, :2], strict=True):
                if size > 0:
                    met &= np.abs(dot(offset, axis) + reach * along) <= size
            for part, value in ((geom, plane), (distance, reach), (normal, front[:, None])):
                np.copyto(part, value, where=met)
        distance[geom < 0] = -1.0
        return RayHits(geom=geom, distance=distance, normal=normal)

    def _backdrop_of(self, data: MjData, rays: Rays) -> _Backdrop:
        """The picture of what stands still; the last one again unless the camera or a static geom has moved."""
        static = self._static
        pose = b"".join(a.tobytes() for a in (rays.origin, data.geom_xpos[static], data.geom_xmat[static]))
        if self._backdrop is None or self._backdrop.pose != pose:
            hits, color = self._static_hits(data, rays), self._sky.copy()
            met = np.flatnonzero(hits.geom >= 0)
            _paint(color, met, self._surfaces.shade(data, rays.take(met), hits.take(met)))
            if self._body is None:  # to be kept: all of it may be smooth, even what is thinner than a pixel
                rough = np.arange(len(rays))
            else:
                rough = self._outline(hits.geom, hits.normal, color, np.ones(len(rays), np.bool_))
            for first in range(0, len(rough), _BLOCK):
                block = rough[first : first + _BLOCK]
                _paint(color, block, self._smooth(data, rays.origin, block, color))
            self._backdrop = _Backdrop(pose=pose, hits=hits, color=color)
        return self._backdrop

    def _candidates(self, data: MjData, origin: NDArray[np.float64]) -> NDArray[np.intp]:
        """Pixels that moving geoms may cover: the rectangles around the pictures of their bounding boxes."""
        turn = data.geom_xmat[self._moving].reshape(-1, 3, 3).transpose(0, 2, 1)
        corners = self._corners @ turn + (data.geom_xpos[self._moving] - origin)[:, None]
        seen = corners @ self._seen_along
        depth = seen[..., 2].min(axis=1)
        image = seen[..., :2] / np.maximum(seen[..., 2:] * self._pixel, 1e-9) + self._center
        low = np.maximum(image.min(axis=1) - 1.0, 0).astype(int).tolist()  # a pixel more, against rounding
        high = np.maximum(image.max(axis=1) + 2.0, 0).astype(int).tolist()
        covered = np.zeros((self.height, self.width), np.bool_)
        for (left, top), (right, bottom), is_ahead in zip(low, high, (depth > 1e-6).tolist(), strict=True):
            if is_ahead:
                covered[top:bottom, left:right] = True
            else:  # beside or around the camera, where a rectangle would have to be infinite
                covered[:] = True
        return np.flatnonzero(covered)

    def _outline(
        self,
        geom: NDArray[np.int32],
        normal: NDArray[np.float64],
        color: NDArray[np.float64],
        among: NDArray[np.bool_],
    ) -> NDArray[np.intp]:
        """Pixels that show another geom or face than a neighbor, in another color, one of the two in `among`."""
        image, among = geom.reshape(self.height, self.width), among.reshape(self.height, self.width)
        creased = among & self._is_creased.take(image, mode="wrap") if self._has_creases else None
        outline = np.zeros(len(geom), np.bool_)
        everything, after, before = slice(None), slice(1, None), slice(None, -1)
        for here, there, step in (
            ((everything, after), (everything, before), 1),
            ((after, everything), (before, everything), self.width),
        ):
            differs = np.zeros(image.shape, np.bool_)
            np.not_equal(image[here], image[there], out=differs[there])
            differs[there] &= among[here] | among[there]
            if creased is not None:
                differs[there] |= creased[here]
            first = np.flatnonzero(differs)
            second = first + step
            if creased is not None:
                same = (normal.take(first, axis=1) * normal.take(second, axis=1)).sum(axis=0)
                split = (geom.take(first) != geom.take(second)) | (same < _CREASE_COSINE)
                first, second = first[split], second[split]
            contrast = np.abs(color.take(first, axis=1) - color.take(second, axis=1)).max(axis=0)
            first = first[contrast > _CONTRAST]
            outline[first] = True
            outline[first + step] = True
        return np.flatnonzero(outline)

    def _smooth(
        self,
        data: MjData,
        origin: NDArray[np.float64],
        pixels: NDArray[np.intp],
        color: NDArray[np.float64],
        *,
        behind: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Mean color `(3, pixel)` of several rays through each of `pixels`, whose central ray gave `color`.

        Of everything, in front of the finished backdrop `behind (3, pixel)`; without it, of what stands still.
        """
        center, count = color.take(pixels, axis=1), self._num_around
        if center.size == 0 or count == 0:
            return center
        shift = np.arange(count)[:, None] * len(self._rays)
        rays = self._around.take((shift + pixels).ravel()).moved(origin)
        if behind is None:
            hits = self._hits(self._static_model, data, rays)
            shown = np.flatnonzero(hits.geom >= 0)
            around = self._surfaces.sky(rays)
        else:
            hits = self._hits(self.model, data, rays)
            shown = np.flatnonzero(self._moves.take(hits.geom, mode="wrap"))
            around = np.tile(behind.take(pixels, axis=1), count)
        _paint(around, shown, self._surfaces.shade(data, rays.take(shown), hits.take(shown)))
        return (center + around.reshape(3, count, len(pixels)).sum(axis=1)) / (1 + count)


@dataclass(frozen=True, kw_only=True)
class _Backdrop:
    """What stands still, seen from one place: central hits, and the finished color `(3, pixel)`."""

    pose: bytes
    hits: RayHits
    color: NDArray[np.float64]


def _paint(color: NDArray[np.float64], pixels: NDArray[np.intp], values: NDArray[np.float64]) -> None:
    """Write `values (3, pixel)` into some columns of `color`; by channels, which is four times as fast."""
    for channel, value in zip(color, values, strict=True):
        channel[pixels] = value


def _lattice(count: int) -> NDArray[np.float64]:
    """`count` points `(2, point)` that with the center are spread evenly over a unit square and along its axes.

    A Fibonacci lattice: `count` = 4 gives the rotated grid, 12 the lattice of 13 points.
    """
    total = 1 + count
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    steps = [k for k in range(1, total + 1) if np.gcd(k, total) == 1]
    step = min(steps, key=lambda k: abs(k / total - golden))
    index = np.arange(1, 1 + count // 2)
    half = np.stack((index, (index * step + count // 2) % total - count // 2)) / total
    return np.concatenate((half, -half), axis=1)


def _alpha(model: MjModel) -> NDArray[np.float32]:
    """Opacity of each geom, a material's before its own: what MuJoCo's rays go by."""
    own = model.geom_rgba[:, 3]
    return np.where(model.geom_matid < 0, own, np.append(model.mat_rgba[:, 3], 1.0)[model.geom_matid])


def _body_id(model: MjModel, name: str) -> int:
    names = [model.body(i).name for i in range(model.nbody)]
    if name not in names:
        raise ValueError(f"the model has no body {name!r}{did_you_mean(name, names)}")
    return names.index(name)
