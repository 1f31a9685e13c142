"""What training writes down: every metric is defined here, once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType

__all__ = ["METRICS", "NoLog", "TrainLog", "read_log"]

METRICS = {
    "codec/loss": "reconstruction error, weighted by the distance from the mean frame ([-1, 1] units, squared), "
    "and the weighted unevenness of the code",
    "codec/psnr": "plain reconstruction quality through a noisy code, dB (peak 2 in [-1, 1] units)",
    "codec/unevenness": "mean squared second difference of the code in time; the code has unit variance",
    "codec/gradient_norm": "norm of the codec's gradient before clipping",
    "codec/frames_per_second": "frames trained on per second",
    "flow/above_floor": "NLL of a frame above what the codes' noise costs, nats per dimension",
    "flow/draft_error": "mean squared error of the draft, in units of u",
    "flow/reward_nll": "NLL of the reward, nats",
    "flow/termination_nll": "NLL of the termination, nats",
    "flow/denoiser_error": "mean squared error of the denoiser beside the scaled gradient of the NLL",
    "flow/psnr": "as codec/psnr, where the codec learns along with the flow",
    "flow/gradient_norm": "norm of the gradient before clipping",
    "flow/transitions_per_second": "transitions trained on per second",
    "density/bits": "NLL of dequantized images, or of noisy ones or noisy codes, bits per dimension",
    "density/gradient_norm": "norm of the gradient before clipping",
    "density/images_per_second": "images trained on per second",
    "density/validation_bits": "as density/bits, of the running mean of weights on validation images",
    "held_out/above_floor": "as flow/above_floor, on episodes that were never trained on",
    "held_out/action_gap": "NLL with actions swapped between clips minus NLL, nats per dimension; 0 ignores actions",
    "held_out/reward_nll": "as flow/reward_nll, held out",
    "held_out/termination_nll": "as flow/termination_nll, held out",
}


class TrainLog:
    """Writes metrics to `log.jsonl` and, where it is installed, to TensorBoard.

    Args:
        folder: The run's folder.
        is_resumed: Go on behind what is there instead of starting anew.
    """

    def __init__(self, folder: Path, *, is_resumed: bool = False) -> None:
        self._file = (folder / "log.jsonl").open("a" if is_resumed else "w")
        self._board = None
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            print("tensorboard is not installed: metrics go to log.jsonl only")
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Write metrics of one moment.

        Raises:
            KeyError: If a metric is not in `METRICS`.
        """
        for name in metrics:
            if name not in METRICS:
                raise KeyError(f"{name!r} is not defined in worldflow.log.METRICS")
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **finite}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class NoLog:
    """A log that nobody reads, for fits whose result is measured afterwards."""

    def write(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Forget the metrics."""


def read_log(run: Path) -> list[dict[str, float]]:
    """The records of a run's `log.jsonl`, oldest first."""
    with (Path(run) / "log.jsonl").open() as file:
        return [json.loads(line) for line in file if line.strip()]
