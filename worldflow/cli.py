"""The command line: `worldflow COMMAND`, as `COMMANDS` lists them.

Each command is one dataclass, whose fields are its options and their docstrings its help. A command that cannot do what
it was asked says why in one line on stderr and ends with 1; one that was not understood, with 2; `score
--fail-on-alarm`, where there was an alarm, with 3; an interrupted one, with 130. Results go to stdout, as JSON with
`--json`; everything else goes to stderr.
"""

from __future__ import annotations

import contextlib
import json as json_format
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from worldflow import __version__
from worldflow.ablation import DenoiseBench
from worldflow.agents.command import PlanCommand
from worldflow.agents.compare_command import CompareCommand
from worldflow.agents.dream_command import DreamCommand
from worldflow.agents.improve_command import ImproveCommand
from worldflow.bench import DensityBench
from worldflow.bench_recipe import RecipeBench
from worldflow.bench_score import ScoreBench
from worldflow.bench_speed import SampleBench, StepBench
from worldflow.bench_states import StatesBench
from worldflow.bench_train import DataBench, TrainBench
from worldflow.checkpoint import load
from worldflow.data import Dataset
from worldflow.demo import DemoConfig, demo
from worldflow.evaluate_command import Evaluate
from worldflow.generate import edit, generate, read_frames
from worldflow.hints import did_you_mean
from worldflow.image_commands import SampleImages, TrainImages
from worldflow.import_command import ImportCommand, on_existing
from worldflow.log import read_log
from worldflow.long_video import DriftBench
from worldflow.recipes import TrainConfig
from worldflow.score_command import Alarmed, Score
from worldflow.team import Team
from worldflow.train import train
from worldflow.video import beside as side_by_side
from worldflow.video import film_strip, save_png, write_video

__all__ = ["Collect", "Demo", "Evaluate", "Generate", "Score", "Ship", "Train", "main"]

OWN_TASK = "worldflow/"
DEFAULT_SIZE = 64
"""Rows and columns of a recorded frame, unless the environment prefers another."""


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Record episodes of a Gymnasium environment as a Minari data set."""

    env_id: Positional[Annotated[str, arg(metavar="ENV_ID")]]
    """A registered id such as worldflow/Reacher-v0, or MODULE:ID to import a module first."""
    out: str
    """Folder of the data set."""
    episodes: int = 100
    """Episodes to record; with --append, how many more."""
    policy: str = "random"
    """random, smooth, MODULE:CALLABLE, or FILE.zip of Stable-Baselines3; smooth is random but correlated in time."""
    random_fraction: float = 0.0
    """Probability that a step takes a random action in place of the policy's."""
    seed: int = 0
    """Decides everything random: the same call records the same data."""
    observation: Literal["pixels", "vector", "dict"] = "pixels"
    """What to record: pixels, rendered where the environment observes none; the vector that it observes itself; or
    both at once as a dict, where it observes one, or tells a vector beside its picture."""
    size: int | None = None
    """Rows and columns of a frame, where the environment can choose; by default 64, or what the environment prefers."""
    action_repeat: int = 1
    """Simulator steps for each action, in worldflow's own tasks."""
    max_steps: int | None = None
    """Steps after which an episode is cut off; by default the environment's own limit, or 1000."""
    anomaly: str | None = None
    """Make this anomaly in every episode and label it: gravity, teleport, blur, action_delay and others; a wrong name
    lists them."""
    strength: float | Literal["weak", "middle", "strong"] | None = None
    """How strong an anomaly: a number in its own unit, or weak, middle (the default) or strong."""
    env_args: str = "{}"
    """Further arguments of the environment, as a JSON object."""
    append: bool = False
    """Continue the data set that is there."""
    overwrite: bool = False
    """Replace the data set that is there, once the first new episode is finished."""
    json: bool = False
    """Print the result as JSON."""

    def __call__(self) -> dict[str, Any]:
        """Record."""
        from gymnasium import error as gym_error

        from worldflow.envs.collect import collect
        from worldflow.envs.making import make_env
        from worldflow.envs.perturb import Perturb
        from worldflow.envs.tasks import TASKS

        existing = on_existing(append=self.append, overwrite=self.overwrite)
        if self.strength is not None and self.anomaly is None:
            raise ValueError("--strength needs --anomaly: it says how strong which one is")
        arguments = _json_object(self.env_args, "--env-args")
        size = DEFAULT_SIZE if self.size is None else self.size
        name = self.env_id.rpartition(":")[2]
        if name in {f"{OWN_TASK}{task}-v0" for task in TASKS}:
            arguments = {"size": size, "action_repeat": self.action_repeat, **arguments}
        elif name.startswith(OWN_TASK):
            asked = {"size": self.size, "action_repeat": self.action_repeat if self.action_repeat != 1 else None}
            arguments = {**{key: value for key, value in asked.items() if value is not None}, **arguments}
        elif self.action_repeat != 1:
            raise ValueError(f"--action-repeat is for {OWN_TASK}... tasks only, {self.env_id!r} is none")
        if self.observation == "vector" and self.size is not None:
            raise ValueError("--size is that of pictures; leave it out with --observation vector")
        try:
            made = make_env(self.env_id, observed=self.observation, size=size, env_kwargs=arguments)
            with contextlib.closing(made) as env:
                folder = collect(
                    env if self.anomaly is None else Perturb(env, self.anomaly, strength=self.strength),
                    out=self.out,
                    episodes=self.episodes,
                    policy=self.policy,
                    seed=self.seed,
                    random_fraction=self.random_fraction,
                    max_steps=self.max_steps,
                    observation=self.observation,
                    on_existing=existing,
                )
        except gym_error.Error as error:  # such as a dependency that is not installed
            raise ValueError(f"{self.env_id}: {error}") from error
        dataset = Dataset(folder)
        return {
            "dataset": str(folder),
            "episodes": len(dataset),
            "transitions": int(dataset.lengths.sum()),
            "frame_shape": list(dataset.spec.frame_shape),
            **({} if dataset.spec.parts is None else {"vectors": dataset.spec.parts.sizes}),
            "action_shape": list(dataset.spec.action.shape),
        }


@dataclass(frozen=True, kw_only=True)
class Train:
    """Learn a world from a data set."""

    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """Folder of the data set, as `worldflow collect --out` wrote it."""
    out: str
    """Folder of the run: weights, log, pictures, and what --resume needs."""
    resume: bool = False
    """Go on from what an earlier call with the same options left in the folder."""
    json: bool = False
    """Print the result as JSON."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)
    """How to train."""

    def __call__(self) -> dict[str, Any] | None:
        """Train."""
        world = train(self.dataset, out=self.out, config=self.config, resume=self.resume)
        if not Team.of(world.device).leads:
            return None
        looks = [record for record in read_log(Path(self.out)) if "held_out/above_floor" in record]
        result = {"run": self.out, "parameters": sum(p.numel() for p in world.parameters())}
        if looks:
            result |= {name: value for name, value in looks[-1].items() if name.startswith("held_out/")}
        return result


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Make videos with a learned world: from a text, from an image, or on from a video."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, as `worldflow train --out` wrote it, or the name of a world that ships."""
    out: str
    """Video to write: .mp4, .gif or .png for a film strip; several samples stand side by side."""
    text: str | None = None
    """What to show, for a world that was trained with captions."""
    image: str | None = None
    """Image file to start from."""
    video: str | None = None
    """Video file to go on from; with --edit, to make another of."""
    edit: float | None = None
    """Make of --video what --text says; from 0, which keeps what the video's noise is, to 1, which draws it anew."""
    source: str = ""
    """With --edit: what the video shows."""
    frames: int = 16
    """Frames to make, given ones included."""
    samples: int = 1
    """Videos to make."""
    guidance: float = 0.0
    """How far to go beyond the text."""
    temperature: float = 1.0
    """Scale of the noise; below 1 draws nearer to the mode."""
    denoise: Literal["none", "tweedie", "denoiser"] = "none"
    """Take the codes' noise off the finished video: by the flow's own gradient, or by a denoiser that learned it."""
    window: int | None = None
    """Frames that a memory sees before it starts anew from the last ones, encoded again, as STARFlow-V makes long
    videos; without it, memory rolls."""
    keep: int | None = None
    """With --window: frames that the new memory starts from; three quarters of the window unless given."""
    encoder: str | None = None
    """Where the text encoder is now, if not where it was in training."""
    seed: int = 0
    """The same seed gives the same videos."""
    fps: float = 8.0
    """Frames a second of the file."""
    json: bool = False
    """Print the result as JSON."""

    def __call__(self) -> dict[str, Any]:
        """Generate."""
        if self.image is not None and self.video is not None:
            raise ValueError("give --image to start from or --video to go on from, not both")
        if self.edit is not None and (self.video is None or self.text is None):
            raise ValueError("--edit needs --video, what to edit, and --text, what it should become")
        if self.samples < 1:
            raise ValueError(f"--samples must be at least 1, got {self.samples}")
        if (suffix := Path(self.out).suffix.lower()) not in (".mp4", ".gif", ".png"):
            raise ValueError(f"--out must end in .mp4, .gif or .png, got {suffix or self.out!r}")
        world = load(self.run, device="cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator().manual_seed(self.seed)
        path = self.image or self.video
        last = 1 if self.image else self.frames if self.edit is not None else world.config.flow.window
        given = None if path is None else read_frames(path, world, last=last)
        how = {"guidance": self.guidance, "encoder": self.encoder, "generator": generator}
        if self.edit is not None:
            assert given is not None and self.text is not None
            words = {"text": self.text, "source": self.source, "strength": self.edit}
            clips = torch.stack([edit(world, given, **words, **how) for _ in range(self.samples)])
        else:
            clips = generate(
                world,
                frames=self.frames,
                text=self.text,
                given=given,
                samples=self.samples,
                temperature=self.temperature,
                denoise=self.denoise,
                window=self.window,
                keep=self.keep,
                progress=True,
                **how,
            )
        if suffix == ".png":
            save_png(film_strip(*clips), self.out)
        else:
            write_video(side_by_side(*clips), self.out, fps=self.fps)
        return {"video": self.out, "samples": len(clips), "frames": clips.shape[1]}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Record, learn, step, imagine and score a pendulum in minutes, and report what came out."""

    config: OmitArgPrefixes[DemoConfig] = field(default_factory=DemoConfig)
    """What to do."""

    def __call__(self) -> None:
        """Run the whole path."""
        demo(self.config)


@dataclass(frozen=True, kw_only=True)
class Ship:
    """Make a world that ships with the package: record, train, evaluate and store it."""

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """Which world to make: InvertedPendulum, Reacher, HalfCheetah."""
    out: str | None = None
    """Folder of the finished world; by default its place in the package."""
    work: str = "runs/ship"
    """Folder for what is made on the way; the same call goes on with what it finds there."""
    dataset: str | None = None
    """Use this data set, in place of recording one."""
    run: str | None = None
    """Use this finished run, trained on --dataset, in place of training one."""
    minutes: float | None = None
    """Minutes to train, in place of the recipe's."""
    json: bool = False
    """Print the result as JSON."""

    def __call__(self) -> dict[str, Any]:
        """Make it."""
        from worldflow.ship import ship

        folder = ship(self.name, out=self.out, work=self.work, dataset=self.dataset, run=self.run, minutes=self.minutes)
        return {"world": str(folder), "bytes": sum(p.stat().st_size for p in folder.iterdir())}


COMMANDS: dict[str, type | dict[str, type]] = {
    "collect": Collect,
    "import": ImportCommand,
    "train": Train,
    "generate": Generate,
    "evaluate": Evaluate,
    "score": Score,
    "plan": PlanCommand,
    "dream": DreamCommand,
    "compare": CompareCommand,
    "improve": ImproveCommand,
    "ship": Ship,
    "demo": Demo,
    "bench": {
        "step": StepBench,
        "sample": SampleBench,
        "score": ScoreBench,
        "train": TrainBench,
        "data": DataBench,
        "drift": DriftBench,
        "denoise": DenoiseBench,
        "density": DensityBench,
        "states": StatesBench,
        "recipe": RecipeBench,
    },
    "images": {"train": TrainImages, "sample": SampleImages},
}
GROUPS = {"bench": "Compare with other libraries", "images": "Learn the density of images and draw more of them"}
"""What the commands of a group are for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Its words; the program's own by default.

    Returns:
        The exit status: 0, 1 for a failure, 2 for a command that was not understood, 3 for an alarm that was to fail,
        130 for an interrupt.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in words or os.environ.get("WORLDFLOW_DEBUG", "0") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    match words:
        case []:
            print(_help(), file=sys.stderr)
            return 2
        case ["--version"]:
            print(f"worldflow {__version__}")
            return 0
        case ["-h" | "--help", *_]:
            print(_help())
            return 0
        case [name, *_] if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS, otherwise=f"the commands are {', '.join(COMMANDS)}")
            return _fail(f"unknown command {name!r}{hint}", status=2)
    name, *options = words
    kind = COMMANDS[name]
    if isinstance(kind, dict):
        members = kind
        match options:
            case []:
                print(_group_help(name, members), file=sys.stderr)
                return 2
            case ["-h" | "--help", *_]:
                print(_group_help(name, members))
                return 0
            case [member, *_] if member not in members:
                hint = did_you_mean(member, members, otherwise=f"there are {', '.join(members)}")
                return _fail(f"unknown command '{name} {member}'{hint}", status=2)
        kind, name, options = members[options[0]], f"{name} {options[0]}", options[1:]
    try:
        command = tyro.cli(kind, prog=f"worldflow {name}", args=options, config=(tyro.conf.FlagCreatePairsOff,))
        is_json = getattr(command, "json", False)
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.showwarning = _show_warning
            if is_json:  # whatever it prints on the way is not the result
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            try:
                result, status = command(), 0
            except Alarmed as alarm:
                result, status = alarm.result, 3
        if result is not None:
            _print_result(result, json=is_json)
    except SystemExit as error:  # tyro's: it has printed the help or what was wrong
        return error.code if isinstance(error.code, int) else 0
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted; what was saved before is kept", status=130)
    except (ValueError, TypeError, ImportError) as error:
        if is_debugging:
            raise
        return _fail(_with_notes(str(error), error))
    except BrokenPipeError:  # who read the output has gone, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if is_debugging:
            raise
        named = f": {error.filename}" if error.filename else ""
        return _fail(_with_notes(f"{error.strerror or error}{named}", error))
    except Exception as error:
        if is_debugging:
            raise
        said = _with_notes(f"{type(error).__name__}: {error}", error)
        return _fail(f"{said}; this is unexpected: run it with --debug and report what it shows")
    return status


def _help() -> str:
    lines = [f"  {name:<9} {_summary(name, kind)}" for name, kind in COMMANDS.items()]
    return "\n".join(
        [
            "usage: worldflow COMMAND ...",
            "",
            "Learn a simulator from recorded trajectories, then step it and score with it.",
            "",
            *lines,
            "",
            "  worldflow COMMAND --help   explains a command and its options",
            "  worldflow --version        prints the version",
            "  --debug                    shows the traceback of an error, as does WORLDFLOW_DEBUG=1",
        ]
    )


def _group_help(name: str, members: Mapping[str, type]) -> str:
    lines = [f"  {member:<9} {_summary(member, kind)}" for member, kind in members.items()]
    end = f"  worldflow {name} COMMAND --help   explains one and its options"
    return "\n".join([f"usage: worldflow {name} COMMAND ...", "", *lines, "", end])


def _summary(name: str, kind: type | Mapping[str, type]) -> str:
    if isinstance(kind, Mapping):
        return f"{GROUPS[name]}: {', '.join(kind)}."
    return (kind.__doc__ or "").splitlines()[0]


def _fail(message: str, *, status: int = 1) -> int:
    print(f"worldflow: {' '.join(message.split())}", file=sys.stderr)
    return status


def _with_notes(message: str, error: BaseException) -> str:
    """What an error says, and what was noted on its way, such as what is kept."""
    return "; ".join((message, *getattr(error, "__notes__", ())))


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"worldflow: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _json_object(text: str, option: str) -> dict[str, Any]:
    with contextlib.suppress(json_format.JSONDecodeError):
        found = json_format.loads(text)
        if isinstance(found, dict):
            return found
    raise ValueError(f"""{option} must be a JSON object such as '{{"render_mode": "rgb_array"}}', got {text!r}""")


def _print_result(result: Mapping[str, Any], *, json: bool) -> None:
    if json:
        print(json_format.dumps(result))
        return
    for name, value in result.items():
        if isinstance(value, Mapping):
            print(f"{name}:")
            for inner, number in value.items():
                print(f"  {inner:<16}{number:>12.5g}")
        else:
            print(f"{name}: {f'{value:.5g}' if isinstance(value, float) else value}")
