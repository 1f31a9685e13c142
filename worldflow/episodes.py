"""One recorded episode, checked: as many frames as there should be, and every number finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from worldflow.frames import Frames, mapped
from worldflow.types import ActionSpec, Episode

if TYPE_CHECKING:
    from jaxtyping import Float64

__all__ = ["CAPTION", "as_episode", "checked_episode", "recorded_state", "shared_caption"]

CAPTION = "caption"
"""Key of an episode's caption, in the metadata that Minari keeps for each episode and in `infos`."""


def as_episode(episode: object) -> Episode:
    """Take an episode of ours or any Minari-like one.

    Minari keeps an episode's metadata apart from it: of its episodes only a caption in `infos` is seen. `Dataset` sees
    both.

    Args:
        episode: An `Episode`, or an object with `observations`, `actions`, `rewards`, `terminations`,
            `truncations` and perhaps `infos`, as Minari's `EpisodeData`.

    Raises:
        TypeError: It is neither.
        ValueError: Lengths do not match, frames are neither images nor vectors nor both under their names, or a number
            is not finite.
    """
    if isinstance(episode, Episode):
        parts = {name: getattr(episode, name) for name in Episode.__dataclass_fields__}
    else:
        names = {
            "frames": "observations",
            "actions": "actions",
            "rewards": "rewards",
            "terminated": "terminations",
            "truncated": "truncations",
        }
        missing = [name for name in names.values() if not hasattr(episode, name)]
        if missing:
            raise TypeError(
                f"an episode must be a worldflow Episode or have Minari's fields, got {type(episode).__name__} "
                f"without {', '.join(missing)}"
            )
        parts = {ours: getattr(episode, theirs) for ours, theirs in names.items()}
        parts["infos"] = getattr(episode, "infos", None) or {}
        parts["caption"] = shared_caption(parts["infos"].get(CAPTION, ()))
    frames = parts["frames"]
    if isinstance(frames, Frames | Mapping):
        frames = Frames({name: _image_or_vector(frames[name], f" ({name!r})") for name in frames.keys()})  # noqa: SIM118
    else:
        frames = _image_or_vector(frames)
    return checked_episode(None, **{**parts, "frames": frames}, where="the episode")


def checked_episode(
    action: ActionSpec | None,
    *,
    frames: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    infos: Mapping[str, Any],
    where: str,
    caption: str | None = None,
) -> Episode:
    """Make an episode of arrays, or say what is wrong with them.

    Args:
        action: What actions must be; None takes any numbers.
        frames: `uint8 (time + 1, row, column, channel)`, or numbers `(time + 1, number)`, which become `float32`; or
            both as `worldflow.frames.Frames`.
        actions: One per transition, as the rest.
        rewards: `(time,)`.
        terminated: `(time,)`.
        truncated: `(time,)`.
        infos: Further arrays, taken as they are.
        where: What to call the episode in an error.
        caption: What it shows, in words.

    Raises:
        ValueError: Counts do not match, or a number is of another kind or not finite.
    """
    actions, rewards = np.asarray(actions), np.asarray(rewards)
    terminated, truncated = np.asarray(terminated), np.asarray(truncated)
    length = len(rewards)
    if length < 1:
        raise ValueError(f"{where} has no transition")
    counts = {"actions": len(actions), "terminated": len(terminated), "truncated": len(truncated)}
    wrong = [f"{count} {name}" for name, count in counts.items() if count != length]
    if wrong or len(frames) != length + 1 or rewards.ndim != 1:
        raise ValueError(
            f"{where}: {length} rewards need {length + 1} frames and {length} of everything else, "
            f"got {len(frames)} frames{''.join(', ' + count for count in wrong)} and rewards of shape {rewards.shape}"
        )
    frames = mapped(lambda part: _finite(part, where), frames)
    for name, values in {"actions": actions, "rewards": rewards}.items():
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{where}: {name} must be numbers, got {values.dtype}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{where}: {name} must be finite, got NaN or infinity; remove the episode")
    if action is not None:
        if action.is_discrete and actions.dtype.kind == "f":
            raise ValueError(f"{where}: actions must be integers as the action space says, got {actions.dtype}")
        actions = actions.astype(action.dtype, copy=False)
    return Episode(
        frames=frames,
        actions=actions,
        rewards=rewards.astype(np.float32),
        terminated=terminated.astype(bool),
        truncated=truncated.astype(bool),
        infos=infos,
        caption=caption,
    )


def _image_or_vector(observed: Any, name: str = "") -> np.ndarray:
    """Images with their channels, or vectors, as they are."""
    frames = np.asarray(observed)
    is_vector = frames.dtype.kind == "f" and frames.ndim == 2 and frames.shape[1] > 0
    if frames.ndim == 3:
        frames = frames[..., None]
    if not is_vector and (frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3)):
        raise ValueError(
            f"observations of an episode{name} must be uint8 images (time + 1, row, column, 1 or 3 channels) or float "
            f"vectors (time + 1, number), got {frames.dtype} of shape {frames.shape}"
        )
    return frames


def _finite(frames: np.ndarray, where: str) -> np.ndarray:
    """Images as they are, and numbers as finite `float32`."""
    if frames.dtype.kind != "f":
        return frames
    with np.errstate(over="ignore"):  # a number beyond the type's range becomes infinite, and is refused below
        frames = frames.astype(np.float32, copy=False)
    if not np.isfinite(frames).all():
        raise ValueError(f"{where}: observations must be finite float32, got NaN or infinity; remove the episode")
    return frames


def shared_caption(said: Iterable[Any]) -> str | None:
    """The one caption that all steps of an episode agree on, or None where there is none or more than one.

    Args:
        said: What each step said: text, perhaps as the bytes of its UTF-8. None and empty text agree with all; anything
            else is no caption.

    Example:
        >>> shared_caption([None, "a red circle", "a red circle"])
        'a red circle'
        >>> shared_caption(["a red circle", "a blue one"])
    """
    texts: set[str] = set()
    for text in said:
        if text is not None and not isinstance(text, (str, bytes)):
            return None
        if text:
            texts.add(text.decode() if isinstance(text, bytes) else str(text))
    return texts.pop() if len(texts) == 1 else None


def recorded_state(episode: Episode, *, where: str = "the episode") -> Float64[np.ndarray, "time+1 state"]:
    """The simulator's state at every frame of an episode, from its `infos["state"]`.

    Args:
        episode: The episode.
        where: What to call it in an error.

    Raises:
        ValueError: If no state was recorded, or not one for every frame.
    """
    if "state" not in episode.infos:
        raise ValueError(
            f'{where} has no info["state"], so its physics cannot be measured; record it with `worldflow collect`, '
            'or with an environment whose info holds the simulator\'s state under "state"'
        )
    state = np.asarray(episode.infos["state"])
    if state.ndim != 2 or len(state) != len(episode.frames) or state.shape[1] < 1 or state.dtype.kind not in "fiub":
        raise ValueError(
            f'info["state"] of {where} must be numbers of shape (time + 1, state) = ({len(episode.frames)}, state), '
            f"got {state.dtype} of shape {state.shape}; record one state vector with every frame"
        )
    return state.astype(np.float64)
