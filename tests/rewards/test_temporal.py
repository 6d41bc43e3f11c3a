from itertools import pairwise

import pytest
import torch

from rayvideo.errors import RecipeError
from rayvideo.recipe import parse_recipe
from rayvideo.rewards.temporal import attenuation, clip_frames, rate_per_frame, sample_segments, video_reward


def test_each_index_lies_in_its_segment_and_every_frame_is_reached():
    indices = sample_segments(2000, 16, 4, generator=torch.Generator().manual_seed(0))
    assert indices.shape == (2000, 4)
    assert torch.equal(indices // 4, torch.arange(4).expand(2000, 4))
    counts = indices.flatten().bincount(minlength=16)
    assert counts.min() > 2000 / 4 * 0.8  # uniform: 500 each
    # Segments are drawn independently of each other, clips too.
    assert torch.corrcoef((indices % 4).T.float()).fill_diagonal_(0).abs().max() < 0.1


def test_evaluation_takes_the_first_frame_of_each_segment():
    assert sample_segments(2, 16, 4, random=False).tolist() == [[0, 4, 8, 12]] * 2


def test_a_clip_with_its_own_generator_gets_the_same_frames_in_any_batch():
    def generators(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    both = sample_segments(2, 16, 4, generator=generators(1, 2))
    assert torch.equal(both[1:], sample_segments(1, 16, 4, generator=generators(2)))
    with pytest.raises(ValueError, match="one per clip"):
        sample_segments(2, 16, 4, generator=generators(1))


@pytest.mark.parametrize(("frames", "segments"), [(16, 4), (16, 16), (81, 9), (5, 1)])
def test_equal_segments_are_drawn_by_one_call_as_they_always_were(frames, segments):
    length = frames // segments
    plain = torch.arange(segments) * length + torch.randint(
        length, (3, segments), generator=torch.Generator().manual_seed(5)
    )
    assert torch.equal(sample_segments(3, frames, segments, generator=torch.Generator().manual_seed(5)), plain)


@pytest.mark.parametrize(
    ("frames", "segments", "starts"),
    [(81, 4, [0, 20, 40, 60]), (17, 3, [0, 5, 11]), (16, 3, [0, 5, 10]), (5, 4, [0, 1, 2, 3])],
)
def test_segments_of_uneven_length_share_out_the_clip(frames, segments, starts):
    assert sample_segments(1, frames, segments, random=False).tolist() == [starts]
    indices = sample_segments(4000, frames, segments, generator=torch.Generator().manual_seed(0))
    for segment, (start, end) in enumerate(pairwise([*starts, frames])):
        drawn = indices[:, segment]
        counts = (drawn - start).bincount(minlength=end - start)
        assert counts.tolist() == pytest.approx([4000 / (end - start)] * (end - start), rel=0.3)
    alone = [sample_segments(1, frames, segments, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    both = sample_segments(2, frames, segments, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.equal(both, torch.cat(alone))


@pytest.mark.parametrize("segments", [0, 17])
def test_more_segments_than_frames_are_refused(segments):
    with pytest.raises(ValueError, match=f"{segments} segments of 16 frames; allowed: 1 to 16"):
        sample_segments(1, 16, segments)


def test_a_recipe_takes_segments_that_do_not_divide_its_frames():
    def recipe(frames, segments):
        data = {"manifest": "clips.txt", "frames": frames}
        return parse_recipe(
            {
                "model": {"path": "m"},
                "data": data,
                "reward": {"judges": [{"name": "judge"}], "segments": segments},
            }
        )

    assert recipe(81, 4).reward.segments == 4
    with pytest.raises(RecipeError, match=r"reward\.segments 17 is more than data\.frames 16.*allowed: 1 to 16"):
        recipe(16, 17)


def test_attenuation_is_one_at_the_middle_frame_only():
    weights = attenuation(torch.arange(16), 16)
    assert (weights == 1).nonzero().flatten().tolist() == [8]
    assert weights[7] == weights[9] == pytest.approx(torch.tensor(-1.0).exp().item())


def test_the_mean_weight_of_each_segment_is_the_papers():
    by_segment = attenuation(torch.arange(16), 16).view(4, 4).mean(dim=1)
    assert by_segment.tolist() == pytest.approx([0.0026, 0.1428, 0.3883, 0.0071], abs=5e-5)


@pytest.mark.parametrize(
    ("frames", "rate", "mean"),
    [(16, 1.0, 0.1352), (16, 0.5, 0.2505), (16, 2.0, 0.0821), (16, 0.0, 1), (81, 1.0, 0.0267)],
)
def test_the_rate_sets_the_mean_weight(frames, rate, mean):
    assert attenuation(torch.arange(frames), frames, rate).mean().item() == pytest.approx(mean, abs=5e-5)


@pytest.mark.parametrize(
    ("frames", "segments", "unit", "mean"),
    [
        (16, 4, "frame", 0.135),
        (16, 4, "clip", 0.135),
        (81, 4, "frame", 0.027),
        (81, 4, "clip", 0.125),
        (81, 3, "clip", 0.125),
        (121, 4, "clip", 0.125),
    ],
)
def test_a_rate_per_clip_keeps_the_mean_weight_of_the_papers_16_frames(frames, segments, unit, mean):
    indices = sample_segments(20_000, frames, segments, generator=torch.Generator().manual_seed(0))
    weights = attenuation(indices, frames, rate_per_frame(1.0, unit, frames))
    assert weights.mean().item() == pytest.approx(mean, abs=2e-3)


def test_a_rate_per_clip_weighs_a_place_of_the_clip_alike_whatever_its_length():
    quarter = [
        attenuation(torch.tensor(frames // 4), frames, rate_per_frame(1.0, "clip", frames)) for frames in (16, 64)
    ]
    assert quarter[0] == quarter[1] == pytest.approx(torch.tensor(-4.0).exp().item())
    assert rate_per_frame(0.3, "frame", 81) == 0.3
    assert rate_per_frame(0.3, "clip", 16) == 0.3


def test_the_reward_is_a_mean_over_frames_not_normalised_by_the_weights():
    scores, weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.5, 0.0], [1.0, 0.5]])
    assert video_reward(scores, weights).tolist() == [0.25, 2.5]


@pytest.mark.parametrize(
    ("clip", "fps", "frames", "expected"),
    [
        ((6, 8), None, None, [0, 1, 2, 3, 4, 5]),
        ((16, 8), None, 4, [2, 6, 10, 14]),
        ((16, 8), None, 1, [8]),
        ((5, 8), None, 5, [0, 1, 2, 3, 4]),
        ((7, 8), None, 3, [1, 3, 5]),
        ((16, 8), 4, None, [0, 2, 4, 6, 8, 10, 12, 14]),
        ((6, 8), 8.0, None, [0, 1, 2, 3, 4, 5]),
        ((5, 24), 8, None, [0, 3]),
        ((6, 24), 8, None, [0, 3]),  # the next would be nearest to frame 6, which the clip lacks
        ((8, 10), 8, None, [0, 1, 3, 4, 5, 6]),
        ((3, 8), 16, None, [0, 1, 1, 2, 2]),
        ((16, 8), 8, 4, [6, 7, 8, 9]),
        ((16, 8), 8, 5, [6, 7, 8, 9, 10]),
        ((16, 8), 4, 8, [1, 3, 5, 7, 9, 11, 13, 15]),
        ((16, 8), 4, 4, [5, 7, 9, 11]),
        ((16, 8), 8, 16, list(range(16))),
        ((81, 16), 8, 1, [40]),
    ],
)
def test_a_judge_of_clips_is_shown_the_frames_it_asks_for(clip, fps, frames, expected):
    indices, times = clip_frames(clip[0], clip[1], fps, frames)
    assert indices.tolist() == expected
    assert times.tolist() == pytest.approx([index / clip[1] for index in expected])


@pytest.mark.parametrize(
    ("fps", "frames", "reason"),
    [
        (None, 17, "asks for 17 frames; a clip of 16 frames at 8 fps is too short"),
        (8, 17, "asks for 17 frames at 8 fps; a clip of 16 frames at 8 fps is too short"),
        (4, 9, "asks for 9 frames at 4 fps"),
        (0, None, "which can't be"),
        (None, 0, "which can't be"),
    ],
)
def test_a_clip_that_is_too_short_for_its_judge_is_refused(fps, frames, reason):
    with pytest.raises(ValueError, match=reason):
        clip_frames(16, 8, fps, frames)
