from __future__ import annotations

import pickle

import pytest
import torch

from rayvideo.data.table import Batch
from rayvideo.errors import UserError
from rayvideo.training.guards import NonFiniteError, check_finite

CLIPS = Batch([7, 11], ["a.mp4", "b.mp4"], ["cat", "dog"], *[torch.zeros(2, 1)] * 3)


def test_finite_numbers_pass():
    check_finite("the reward", torch.tensor([1.0, -3.4e38]), 1, CLIPS)
    check_finite("the frames", torch.zeros(2, 3, 4), 1, CLIPS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_error_names_step_tensor_and_clip(bad):
    values = torch.zeros(2, 3, 4)
    values[1, 2, 3] = bad
    with pytest.raises(NonFiniteError) as caught:
        check_finite("the frames", values, 5, CLIPS)
    assert str(caught.value) == "step 5: NaN or Inf in the frames of clip 11 (b.mp4, 'dog')"
    # It crosses processes, and jobs print it without a traceback.
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), UserError)


def test_a_scalar_stands_for_all_clips():
    with pytest.raises(NonFiniteError, match=r"clip 7 \(a\.mp4, 'cat'\), 11 \(b\.mp4, 'dog'\)"):
        check_finite("the loss", torch.tensor(float("nan")), 5, CLIPS)
