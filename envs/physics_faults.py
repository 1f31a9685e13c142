"""Faults of a MuJoCo model: parameters that differ during a step, and what happens to its state before one."""

# MuJoCo is an extension module without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["PhysicsFault"]


class PhysicsFault:
    """Changes the physics of affected steps; parameters are put back at the end of each, whatever happens inside.

    Args:
        env: A MuJoCo environment, with `model` and `data`.
        anomaly: Name of a physical anomaly.
        strength: See its description.

    Raises:
        ValueError: If it cannot act on this model.
    """

    def __init__(self, env: gym.Env[Any, Any], anomaly: str, strength: float) -> None:
        _check(env, anomaly)
        self.env, self.anomaly, self.strength = env, anomaly, strength
        self._side = 1.0
        self._hidden: NDArray[np.intp] = np.empty(0, np.intp)

    def begin(self, observation: Any, generator: np.random.Generator) -> None:
        """Draw what holds for an episode."""
        if self.anomaly == "wind":
            self._side = float(generator.choice((-1.0, 1.0)))
        elif self.anomaly == "object_gone":
            model, _ = _physics(self.env)
            seen = _seen_bodies(model)
            self._hidden = np.flatnonzero(model.geom_bodyid == seen[int(generator.integers(len(seen)))])

    def step(
        self, inner: Callable[[Any], Any], action: Any, *, is_affected: bool, generator: np.random.Generator
    ) -> tuple[Any, bool]:
        """Step, and say whether the fault acted."""
        if not is_affected:
            return inner(action), False
        with self._disturbed(generator):
            return inner(action), True

    @contextmanager
    def _disturbed(self, generator: np.random.Generator) -> Iterator[None]:
        model, data = _physics(self.env)
        if self.anomaly == "teleport":
            _teleport(model, data, self.strength, generator)
            yield
            return
        changed = {
            "gravity": lambda: [model.opt.gravity],
            "mass": lambda: _inertia(model) + _inverse_inertia(model),
            "friction": lambda: [model.geom_friction, model.pair_friction, model.dof_frictionloss],
            "damping": lambda: [model.dof_damping],
            "actuator_gain": lambda: [model.actuator_gainprm],
            "wind": lambda: [data.xfrc_applied],
            "object_gone": lambda: [model.geom_rgba, model.geom_matid],
        }[self.anomaly]()
        before = [values.copy() for values in changed]
        try:
            if self.anomaly == "wind":
                moved = _driven_bodies(model)
                data.xfrc_applied[moved, 0] += self._side * self.strength * model.body_mass[moved]
            elif self.anomaly == "object_gone":
                model.geom_rgba[self._hidden, 3] = 0.0  # rays and renderers pass through what has no opacity
                model.geom_matid[self._hidden] = -1  # a material's would count instead
            elif self.anomaly == "mass":
                for values in _inertia(model):
                    values *= self.strength
                for values in _inverse_inertia(model):
                    values /= self.strength
            else:
                for values in changed:
                    values *= self.strength
            yield
        finally:
            for values, old in zip(changed, before, strict=True):
                values[:] = old


def _physics(env: gym.Env[Any, Any]) -> tuple[Any, Any]:
    """The MuJoCo model and data of an environment."""
    return env.unwrapped.model, env.unwrapped.data


def _inertia(model: Any) -> list[NDArray[np.float64]]:
    return [model.body_mass, model.body_subtreemass, model.body_inertia]


def _inverse_inertia(model: Any) -> list[NDArray[np.float64]]:
    """What constraints are softened by, so that they stay as stiff for a body as they were."""
    return [model.body_invweight0, model.dof_invweight0]


def _driven_bodies(model: Any) -> NDArray[np.intp]:
    """Bodies of the trees that actuators move."""
    import mujoco

    kinds = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
    joints = model.actuator_trnid[np.isin(model.actuator_trntype, kinds), 0]
    return np.flatnonzero(np.isin(model.body_rootid, model.body_rootid[model.jnt_bodyid[joints]]))


def _seen_bodies(model: Any) -> NDArray[np.intp]:
    """Moving bodies with a geom that is drawn."""
    import mujoco

    own = model.geom_rgba[:, 3]
    alpha = np.where(model.geom_matid < 0, own, np.append(model.mat_rgba[:, 3], 1.0)[model.geom_matid])
    drawn = (model.geom_group < mujoco.mjNGROUP // 2) & (alpha > 0)
    return np.unique(model.geom_bodyid[drawn & (model.body_weldid[model.geom_bodyid] != 0)])


def _teleport(model: Any, data: Any, strength: float, generator: np.random.Generator) -> None:
    import mujoco

    jump = generator.normal(size=model.nv)
    jump *= strength / np.linalg.norm(jump)
    position = data.qpos.copy()
    mujoco.mj_integratePos(model, position, jump, 1.0)  # joints with quaternions turn, they are not added to
    limits = mujoco.mjtJoint
    for joint in np.flatnonzero(model.jnt_limited):
        if model.jnt_type[joint] in (int(limits.mjJNT_HINGE), int(limits.mjJNT_SLIDE)):
            at = model.jnt_qposadr[joint]
            position[at] = np.clip(position[at], *model.jnt_range[joint])
    data.qpos[:] = position
    mujoco.mj_forward(model, data)


def _check(env: gym.Env[Any, Any], anomaly: str) -> None:
    if not all(hasattr(env.unwrapped, name) for name in ("model", "data")):
        raise ValueError(
            f"{anomaly} needs a MuJoCo environment with model and data, got {env.unwrapped}; "
            "faults of sensing, such as sensor_noise, work on any pictures"
        )
    import mujoco

    model, data = _physics(env)
    if not isinstance(model, mujoco.MjModel) or not isinstance(data, mujoco.MjData):
        raise ValueError(f"{anomaly} needs MuJoCo's own model and data, got {type(model)} and {type(data)}")
    linear = (int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtGain.mjGAIN_AFFINE))
    other = "choose another anomaly"
    if anomaly == "gravity" and not np.any(model.opt.gravity):
        raise ValueError(f"gravity is zero in this model, so scaling it changes nothing; {other}")
    if anomaly == "gravity" and not _is_felt(model):
        raise ValueError(f"gravity moves no joint of this model, which all move across it; {other}")
    if anomaly == "friction" and not _has_friction(model):
        raise ValueError(f"friction acts where bodies touch, and no bodies of this model can; {other}")
    if anomaly == "damping" and not np.any(model.dof_damping):
        raise ValueError(f"no joint of this model is damped, so scaling it changes nothing; {other}")
    if anomaly == "actuator_gain" and (model.nu == 0 or not np.isin(model.actuator_gaintype, linear).all()):
        raise ValueError(f"actuator_gain needs actuators of fixed or affine gain; {other}")
    if anomaly == "wind" and not len(_driven_bodies(model)):
        raise ValueError(f"wind pushes what actuators of joints move, and this model has none; {other}")
    if anomaly == "object_gone" and not len(_seen_bodies(model)):
        raise ValueError(f"no moving body of this model is drawn, so none can vanish; {other}")


def _is_felt(model: Any) -> bool:
    """Whether gravity pulls at any joint, in a few arbitrary poses: upright, a pendulum feels none."""
    import mujoco

    data, generator = mujoco.MjData(model), np.random.default_rng(0)
    for _ in range(3):
        position = np.array(model.qpos0)
        mujoco.mj_integratePos(model, position, generator.normal(size=model.nv), 1.0)
        data.qpos[:], data.qvel[:] = position, 0.0
        mujoco.mj_forward(model, data)
        if np.abs(data.qfrc_bias).max() > 1e-9:  # at rest: gravity alone
            return True
    return False


def _has_friction(model: Any) -> bool:
    import mujoco

    if np.any(model.dof_frictionloss) or model.npair:
        return True
    if model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_CONTACT):
        return False
    kind, met, body = model.geom_contype, model.geom_conaffinity, model.body_weldid[model.geom_bodyid]
    meets = (kind[:, None] & met[None]) | (met[:, None] & kind[None])
    return bool(np.any((meets != 0) & (body[:, None] != body[None])))
