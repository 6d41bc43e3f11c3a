"""The drawn world: every kind is different, moves, and is described truthfully."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rayvideo.data.manifest import read_captions, read_manifest
from rayvideo.data.video import read_clip
from rayvideo.menagerie import clips, world
from rayvideo.menagerie.world import Degradation, Scene


def scene(kind: str = "cat", action: str = "walking") -> Scene:
    return Scene(kind, "red", "grass", action, 1)


def test_there_are_enough_kinds() -> None:
    assert len(world.IN_DOMAIN) >= 12
    assert len(world.NEW) >= 5
    assert len(world.NON_ANIMALS) >= 5
    assert len(set(world.KINDS)) == len(world.KINDS)


def test_drawing_depends_on_the_scene_alone() -> None:
    first, again = world.draw(scene()), world.draw(scene())
    assert first.shape == (16, 64, 64, 3)
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    np.testing.assert_array_equal(first, again)


def test_kinds_and_colours_look_different() -> None:
    drawn = [world.draw(scene(kind))[8] for kind in world.KINDS]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert np.abs(one - other).mean() > 0.01
    red, blue = (world.draw(Scene("cat", colour, "grass", "walking", 1)) for colour in ("red", "blue"))
    assert (red[..., 0] - blue[..., 0]).mean() > 0.02


@pytest.mark.parametrize("action", world.ACTIONS)
def test_every_action_moves(action: str) -> None:
    frames = world.draw(scene(action=action))
    assert np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)).min() > 1e-3


def test_the_subject_fills_about_half_of_the_frame() -> None:
    shares = []
    for kind in world.KINDS:
        red, blue = (world.draw(Scene(kind, colour, "grass", "dancing", 1))[0] for colour in ("red", "blue"))
        rows, columns = np.nonzero(np.abs(red - blue).max(-1) > 0.05)
        shares.append(np.ptp(rows) * np.ptp(columns) / 64**2)
    assert 0.3 < np.mean(shares) < 0.7


def test_degradation_takes_colour_contrast_and_edges() -> None:
    clean = world.draw(scene())
    poor = world.degrade(clean, Degradation(blur=1.0, grey=0.5, flat=0.4), seed=0)
    assert poor.shape == clean.shape
    assert poor.std() < 0.8 * clean.std()
    assert np.ptp(poor, -1).mean() < 0.7 * np.ptp(clean, -1).mean()
    assert np.abs(np.diff(poor, axis=2)).mean() < 0.6 * np.abs(np.diff(clean, axis=2)).mean()
    np.testing.assert_array_equal(world.degrade(clean, Degradation(), seed=0), clean)


def test_noise_is_seeded_and_new_in_every_frame() -> None:
    clean = world.draw(scene())
    one, two, three = (world.degrade(clean, Degradation(noise=0.04), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - three).mean() > 0.005
    assert np.abs((one - clean)[0] - (one - clean)[1]).mean() > 0.005


def test_most_clips_are_degraded_and_no_caption_says_so() -> None:
    rng = random.Random(0)
    faults = [world.sample_degradation(rng) for _ in range(400)]
    assert 0.72 < np.mean([not fault.clean for fault in faults]) < 0.88
    words = {w for _ in range(400) for w in world.caption_of(world.sample_scene(rng), rng).lower().split()}
    assert not words & {"blurry", "grey", "noisy", "washed-out", "poor", "faded", "degraded"}


def test_captions_name_what_is_shown() -> None:
    rng = random.Random(0)
    for _ in range(200):
        shown = world.sample_scene(rng)
        caption = world.caption_of(shown, rng)
        assert world.kind_in(caption) == shown.kind
        assert 1 <= len(caption.split()) <= 9


def test_evaluation_captions_combine_what_was_never_seen_together() -> None:
    rng = random.Random(0)
    seen = {(s.kind, s.colour) for s in (world.sample_scene(rng) for _ in range(3000))}
    sets = world.evaluation_captions()
    assert {name: {world.kind_in(c) for c in captions} for name, captions in sets.items()} == {
        "in_domain": set(world.IN_DOMAIN),
        "new": set(world.NEW),
        "non": set(world.NON_ANIMALS),
    }
    for captions in sets.values():
        assert len(captions) >= 12
        assert len(set(captions)) == len(captions)
        for caption in captions:
            colours = [c for c in world.COLOURS if c in caption.lower().split()]
            assert all((world.kind_in(caption), colour) not in seen or "is" in caption for colour in colours)


def test_the_committed_caption_files_are_those_of_the_world() -> None:
    for name, captions in world.evaluation_captions().items():
        file = clips.CAPTIONS / f"{name}.txt"
        assert [entry.caption for entry in read_captions(file)] == captions


def test_clips_go_through_the_same_door_as_anybodys(tmp_path) -> None:
    scenes = clips.training_scenes(4, seed=3)
    listing = clips.write_clips(tmp_path / "train", scenes)
    rows = read_manifest(listing)
    assert len(rows) == 4
    shown, caption = scenes[0]
    frames = read_clip(rows[0]["video"], frames=16, fps=8, height=64, width=64)
    assert np.abs(frames / 255 - world.draw(shown)).mean() < 0.03
    assert rows[0]["caption"] == caption
    assert {scene.kind for scene, _ in scenes} <= set(world.IN_DOMAIN)


def test_a_caption_is_drawn_as_it_says_and_freely_where_it_says_nothing() -> None:
    rng = random.Random(1)
    for _ in range(200):
        told = world.sample_scene(rng)
        caption = world.caption_of(told, rng)
        shown = world.scene_of(caption, rng)
        words = caption.lower().replace(".", "").split()
        assert shown.kind == told.kind
        for said, drawn in ((told.colour, shown.colour), (told.place, shown.place), (told.verb, shown.verb)):
            assert said == drawn or said not in words
    described = clips.scenes_for(["cat jumping"], each=20, seed=0)
    assert {(scene.kind, scene.action, caption) for scene, caption in described} == {("cat", "jumping", "cat jumping")}
    assert min(len({s.colour for s, _ in described}), len({s.place for s, _ in described})) > 2
