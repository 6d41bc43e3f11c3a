"""Every limit between ✓ and ✗, with its reason. Scores and gradients of one judge differ by orders of magnitude from
those of another, so all limits are ratios.
"""

from __future__ import annotations

CLIPS = 8
"""Clips that are looked at. Each frame of each meets every caption: 64 pairs, enough to tell 0.6 from 0.9."""
FRAMES_PER_CLIP = 2

PAIRED = 1e-3
"""Score in a batch against score alone, of the largest score: other kernels for other batches round differently."""
PAIRED_REDUCED = 2e-2
LEAK = 1e-3
"""Gradient of a score by the other frames, of that by its own: exactly 0 unless the judge mixes frames."""

FINITE_DIFFERENCES = 0.02
"""Gradient against central differences. fp32 reaches 2e-5 to 1e-3 on networks of 32 and 64 pixels; a term that is left
out of the graph costs far more."""
DIFFERENCE_STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
"""Steps in pixel values (root mean square): above, scores bend; below, fp32 has too few digits."""
REDUCED_COSINE = 0.9
"""Cosine of a bf16 or fp16 judge's gradient with its fp32 one. Each rounding is noise of 2^-8; below 0.9 it adds up to
nearly half the gradient's length."""

REMOTE = 1e-2
"""Actor against this process, fp32: machine and device may differ; another resize or frame order costs far more."""
REMOTE_REDUCED = 5e-2

WINS = 0.6
"""Share of pairs that the better frame or caption must win. Chance and a judge that can't tell give 0.5, one with the
wrong sign less; the menagerie's judges 0.9 and more."""
SPREAD = 1e-5
"""Spread of scores, of the largest: below, fp32 hardly tells them apart."""

NORMALISATION = 0.02
"""Recovered mean (in pixel values) and relative standard deviation against declared ones: bf16 rounds to 0.004. The
nearest two conventions, CLIP's and ImageNet's, have deviations 15 % apart."""

RESIZE = 0.5
"""Mean difference of scores between the two resizes, in standard deviations of the clips' scores: above, what is
trained on and what the judge's official scorer says rank clips differently."""
BLIND = 0.01
"""Share of pixels that no gradient reaches: a plain bilinear resize by more than 2 jumps over pixels."""

LOUDEST = 100.0
"""Ratio of the weighted gradients of two judges: above, the weaker one has no say."""

SATURATED = 0.25
"""Share of decoded pixel values outside [0, 1]. The menagerie's clips have 0.02 at most; so far out, frames are shown
otherwise than the model made them, and a hard clamp takes that share of the gradient."""

KEPT = 0.8
"""Share of a gradient's energy that `model.vae_context` keeps: its cosine with the whole gradient is the root, 0.9."""

MEMORY = 0.9
"""Of the device's or machine's memory: a longer caption or a fragmented allocator needs some room."""
