"""One thread a worker: tests run side by side, and sums keep their order whatever the machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
