"""A step of the world as machine code: one graph for one size of batch, compiled once and kept on disk.

A step of a small world is a thousand small operations, and calling them costs several times what they compute. Compiled
ahead of time (`torch.export`, AOTInductor) they become one call without Python. For that the step is written without
anything that depends on numbers: the frame is solved token by token, which is exact, needs no tolerance, and reads
every weight no more often than Jacobi's sweeps do in so few tokens (`worldflow.traced_frame`).

    world.compile_step(16)        # a minute the first time, a tenth of a second from then on
    world.step(state, actions)    # batches of 9 to 16 rows take the compiled way, filled up with copies of a row

The code depends on sizes alone: weights stay the world's own, and worlds of the same sizes share it. It is kept in
`worldflow.cache.user_cache_folder()`, under a name that changes with whatever it depends on.

On a GPU the same step is recorded as a CUDA graph (`worldflow.captured`), which takes a second and is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worldflow.cache import user_cache_folder
from worldflow.captured import Captured
from worldflow.frames import Frames
from worldflow.state import WorldState
from worldflow.types import LogProb, Transition

if TYPE_CHECKING:
    from worldflow.world import WorldModel

__all__ = [
    "MOST_SLOTS",
    "CompiledStep",
    "CompiledSteps",
    "Uncompilable",
    "compile_or_warn",
    "compiled_step",
    "traced_step",
]

MOST_SLOTS = 20
"""Most slots of a frame that are compiled for a CPU, one after the other."""
_STATE = tuple(f.name for f in fields(WorldState))
_DRAWN = ("reward", "reward_mean", "terminated", "termination_prob", "latent", "entropy", "is_finite")
_LIKELY = tuple(f.name for f in fields(LogProb))


class Uncompilable(RuntimeError):  # noqa: N818 - it names what is so
    """A world, or this machine, has no compiled steps; the message says why. Everything works without."""


class CompiledSteps(dict[int, "CompiledStep"]):
    """A world's compiled steps by the size of their batch. Copies of the world, and files, begin without any."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledSteps:
        return CompiledSteps()

    def __reduce__(self) -> tuple[type[CompiledSteps], tuple[()]]:
        return CompiledSteps, ()

    def fitting(self, batch_size: int) -> CompiledStep | None:
        """The step that so many rows take: the smallest that holds them, if they fill more than half of it."""
        sizes = [size for size in self if batch_size <= size < 2 * batch_size]
        return self[min(sizes)] if sizes else None


@dataclass(frozen=True, eq=False)
class CompiledStep:
    """The step of a world for one size of batch.

    Args:
        batch_size: Rows of the batch.
        code: The compiled graph, with the world's own weights.
        parts: Names of the parts of frames, in order; none where a frame is one array.
    """

    batch_size: int
    code: Callable[..., list[Tensor]]
    parts: tuple[str, ...] = ()

    def __call__(
        self, state: WorldState, features: Tensor, z: Tensor, chances: Tensor
    ) -> tuple[Transition, WorldState]:
        """As `WorldModel.drawn_step`, without guidance and with frames."""
        B = len(state)
        given = [*state.tensors().values(), features, z, chances]
        if B < self.batch_size:  # filled up with the first row, whose copies nobody sees
            given = [torch.cat((x, x[:1].expand(self.batch_size - B, *x.shape[1:]))) for x in given]
        out = [x[:B] for x in self.code(*(x.contiguous() for x in given))]
        return _unpacked(out, self.parts)


def compiled_step(world: WorldModel, batch_size: int, *, progress: bool = True) -> CompiledStep:
    """Compile a world's step for a size of batch, or take what was compiled before.

    Args:
        world: The world, on a CPU or a CUDA GPU.
        batch_size: Rows of the batch.
        progress: Show a progress bar while compiling.

    Raises:
        Uncompilable: If the world is elsewhere or in training, has shallow blocks, no actions, or, on a CPU, more than
            `MOST_SLOTS` slots a frame, or there is no C++ compiler.
    """
    _check(world)
    data = world.config.data
    parts = tuple(sorted(data.part_shapes)) if data.parts else ()
    if world.device.type == "cuda":
        return CompiledStep(batch_size, _recorded(world, batch_size), parts=parts)
    with _kept(world, batch_size) as path:
        if not path.is_file():
            _compile(world, batch_size, path, progress=progress)
        code = torch._inductor.aoti_load_package(str(path))
    own = {f"world.{name}": tensor for name, tensor in _weights(world).items()}
    needed = code.get_constant_fqns()
    code.load_constants({name: own[name] for name in needed}, check_full_update=True, user_managed=True)
    return CompiledStep(batch_size, code, parts=parts)


def compile_or_warn(world: WorldModel, batch_size: int, *, option: str) -> None:
    """Compile a world's step where that can be; elsewhere warn that an option has no effect, and why."""
    try:
        world.compile_step(batch_size)
    except Uncompilable as reason:
        warnings.warn(f"{option} has no effect: {reason}", stacklevel=2)


class _Step(nn.Module):
    """Tensors in, tensors out."""

    def __init__(self, world: WorldModel) -> None:
        super().__init__()
        self.world = world

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        state = WorldState(**dict(zip(_STATE, given[: len(_STATE)], strict=True)))
        transition, after, _ = self.world.drawn_step(state, None, *given[len(_STATE) :], is_traced=True)
        drawn = [getattr(transition, name) for name in _DRAWN]
        likely = [getattr(transition.log_prob, name) for name in _LIKELY]
        frame = transition.frame
        frames: list[Any] = list(frame.parts.values()) if isinstance(frame, Frames) else [frame]
        return (*frames, *drawn, *likely, *after.tensors().values())


def _unpacked(out: list[Tensor], parts: tuple[str, ...]) -> tuple[Transition, WorldState]:
    frame: Any = Frames(dict(zip(parts, out, strict=False))) if parts else out[0]
    out = out[len(parts) or 1 :]
    first, second = len(_DRAWN), len(_DRAWN) + len(_LIKELY)
    likely = LogProb(**dict(zip(_LIKELY, out[first:second], strict=True)))
    drawn = dict(zip(_DRAWN, out[:first], strict=True))
    transition = Transition(frame=frame, **drawn, log_prob=likely)
    return transition, WorldState(**dict(zip(_STATE, out[second:], strict=True)))


def _check(world: WorldModel) -> None:
    flow = world.flow
    if world.device.type not in ("cpu", "cuda"):
        raise Uncompilable(f"steps are compiled for CPUs and CUDA GPUs, and this world is on {world.device}")
    if world.training:
        raise Uncompilable("steps are compiled for worlds in evaluation mode: call world.eval() first")
    if len(flow.shallow):
        raise Uncompilable("this world has shallow blocks, whose inversion takes as many sweeps as it needs")
    if world.device.type == "cpu" and flow.deep.frames.slots > MOST_SLOTS:
        raise Uncompilable(f"this world has {flow.deep.frames.slots} slots a frame, at most {MOST_SLOTS} are compiled")
    if flow.deep.action_in is None:
        raise Uncompilable("this world has no actions to step with")


def _weights(world: WorldModel) -> dict[str, Tensor]:
    return dict(world.named_parameters()) | dict(world.named_buffers())


@contextlib.contextmanager
def _kept(world: WorldModel, batch_size: int) -> Any:
    """Where the code lies, or may be put; without a folder to keep it, a place that is gone afterwards."""
    folder = user_cache_folder()
    name = f"step-{_key(world, batch_size)}.pt2"
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / "steps").mkdir(parents=True, exist_ok=True)
            if os.access(folder / "steps", os.W_OK):
                yield folder / "steps" / name
                return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / name


def _key(world: WorldModel, batch_size: int) -> str:
    """Of all that the code depends on: sizes, sources, versions, and the machine."""
    digest, config = hashlib.sha256(), world.config
    about = {
        "config": [asdict(part) for part in (config.codec, config.flow, config.reward)],
        "weights": {name: (tuple(x.shape), str(x.dtype)) for name, x in _weights(world).items()},
        "batch": batch_size,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "default": str(torch.get_default_dtype()),
    }
    digest.update(json.dumps(about, default=str, sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def traced_step(world: WorldModel, batch_size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The step that is compiled, tensors in, tensors out, and what it is given, in shapes and types."""
    state, flow = world.begin(batch_size), world.config.flow
    like = {"dtype": world.dtype, "device": world.device}
    features = torch.zeros(batch_size, flow.action_dim, **like)
    z = torch.zeros(batch_size, flow.num_tokens, flow.latent_dim, **like)
    chances = torch.full((batch_size, 4), 0.5, **like)
    return _Step(world), tuple(x.contiguous() for x in (*state.tensors().values(), features, z, chances))


def _recorded(world: WorldModel, batch_size: int) -> Callable[..., list[Tensor]]:
    """A step as a CUDA graph; its results are the caller's own."""
    step, example = traced_step(world, batch_size)
    names = [str(i) for i in range(len(example))]
    try:
        with torch.no_grad():
            captured = Captured(lambda given: step(*given.values()), dict(zip(names, example, strict=True)))
    except RuntimeError as error:
        raise Uncompilable(f"steps could not be recorded as a CUDA graph: {error}"[:500]) from error
    return lambda *given: [x.clone() for x in captured(dict(zip(names, given, strict=True)))]


def _compile(world: WorldModel, batch_size: int, path: Path, *, progress: bool) -> None:
    """Write the code of a step to `path`."""
    from tqdm import tqdm

    step, given = traced_step(world, batch_size)
    # Nothing of a world is written into the code: not its weights, nor small ones as numbers.
    options = {"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True}
    with (
        tqdm(total=2, desc=f"compiling steps of {batch_size}", disable=not progress, leave=False) as bar,
        tempfile.TemporaryDirectory(dir=path.parent) as temporary,
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(step, given, strict=False)
            bar.update()
            made = torch._inductor.aoti_compile_and_package(
                exported, package_path=str(Path(temporary) / "step.pt2"), inductor_configs=options
            )
        except Exception as error:  # compilers fail in many ways, and nothing depends on them
            logging.getLogger("worldflow").debug("steps could not be compiled", exc_info=True)
            compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
            reason = "there is no C++ compiler" if compiler is None else f"{type(error).__name__}: {error}"
            raise Uncompilable(f"steps could not be compiled: {reason}"[:500]) from error
        Path(made).replace(path)
        bar.update()
