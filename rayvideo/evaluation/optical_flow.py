"""Motion by optical flow: how far things move, found by OpenCV's DIS, which needs no weights.

Independent of `metrics.motion`, and sees other faults: that one measures lasting change of a coarse picture, this one
how far fine texture goes from each frame to the next. What the two say of planted faults: docs/evaluation.md.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE = 12  # pixels that the longer side must have: patches of 8 at half the size
MAX_SIDE = 256  # longer sides are averaged down to it: flow changes by a few percent, its time by the square


def mean_flow(luma: Tensor) -> Tensor:
    """Mean length of the flow between neighbouring frames, in frame widths per frame; 0 for a still clip.

    Kroeger et al. (2016), OpenCV's preset "medium", over all pixels and pairs of frames. Brightness is stretched to
    the clip's own range first, so that a clip which only became more vivid moves no further. The mean is over the
    background as well: it is the ratio of two clips of one caption that says something. Noise that is new in every
    frame flows too.

    Args:
        luma: Grey frames [F, H, W] in [0, 1].

    Raises:
        ValueError: fewer than 2 frames, or both sides shorter than 12 pixels.
    """
    import cv2  # takes a third of a second, which only clips that are measured should cost

    longer = max(luma.shape[1:])
    if len(luma) < 2 or longer < MIN_SIDE:
        raise ValueError(f"optical flow needs 2 frames of {MIN_SIDE} pixels, got {len(luma)} of {longer}")
    if longer > MAX_SIDE:
        height, width = (max(1, round(side * MAX_SIDE / longer)) for side in luma.shape[1:])
        luma = F.adaptive_avg_pool2d(luma, (height, width))
    lowest, highest = luma.aminmax()
    stretched = (luma - lowest) / (highest - lowest).clamp(min=1 / 255)  # of a level: a flat clip stays so
    frames = (stretched * 255).round().byte().cpu().numpy()
    cv2.setNumThreads(torch.get_num_threads())  # as Ray allots them; OpenCV would take every core
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [torch.from_numpy(finder.calc(*pair, None)) for pair in pairwise(frames)]
    return torch.stack(flows).norm(dim=-1).mean() / luma.shape[-1]
