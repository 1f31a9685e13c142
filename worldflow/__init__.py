"""worldflow: learn a simulator from recorded trajectories, then step it, plan in it, score with it.

`worldflow.train`, `worldflow.evaluate`, `worldflow.score` and `worldflow.generate` are the functions; the modules of
the same names are reached by `from worldflow.train import ...` and so on (`worldflow.evaluate` the function is in
`worldflow.fidelity`).
"""

from worldflow.calibration import Alarms, Detector, calibrate
from worldflow.checkpoint import load, save
from worldflow.data import Dataset, check_compatible, read_episodes, windows
from worldflow.fidelity import EvaluateConfig, evaluate
from worldflow.fidelity_types import Fidelity
from worldflow.generate import edit, generate
from worldflow.index import SplitRule
from worldflow.monitor import Monitor
from worldflow.recipes import TrainConfig, world_config
from worldflow.score import EpisodeScores, score
from worldflow.shipped import worlds
from worldflow.state import WorldState
from worldflow.text import TextEmbedding, TextEncoder
from worldflow.train import train
from worldflow.types import ActionSpec, Clip, DataSpec, Dream, Episode, LogProb, Transition
from worldflow.world import WorldConfig, WorldModel

__version__ = "0.1.0"
__all__ = [
    "ActionSpec",
    "Alarms",
    "Clip",
    "DataSpec",
    "Dataset",
    "Detector",
    "Dream",
    "Episode",
    "EpisodeScores",
    "EvaluateConfig",
    "Fidelity",
    "LogProb",
    "Monitor",
    "SplitRule",
    "TextEmbedding",
    "TextEncoder",
    "TrainConfig",
    "Transition",
    "WorldConfig",
    "WorldModel",
    "WorldState",
    "__version__",
    "calibrate",
    "check_compatible",
    "edit",
    "evaluate",
    "generate",
    "load",
    "read_episodes",
    "save",
    "score",
    "train",
    "windows",
    "world_config",
    "worlds",
]
