"""The recipe's names of number formats as torch dtypes."""

from __future__ import annotations

import torch

from rayvideo.sections import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
