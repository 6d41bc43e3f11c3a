"""Healthy judges pass, and each broken one fails by the check that is for it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from rayvideo.doctor import gradients, pixels, remote, thresholds
from rayvideo.doctor.finding import Finding
from rayvideo.doctor.judge import examine_judge, from_files
from rayvideo.doctor.samples import Samples
from rayvideo.menagerie.build import WEIGHTS
from rayvideo.rewards import Reward, RewardError, load_reward
from rayvideo.sections import Judge
from rayvideo.serving.local import LocalPool
from tests.doctor.conftest import judge_of
from tests.documents import block_of

CPU = torch.device("cpu")
HERE = "tests.doctor.judges"


def found(judge: Judge, samples: Samples) -> dict[str, Finding]:
    return {one.name: one for one in examine_judge(judge, load_reward(judge), samples, 0, CPU)}


def failed(findings: dict[str, Finding]) -> set[str]:
    assert all(one.mend for one in findings.values() if one.ok is False)
    return {name for name, one in findings.items() if one.ok is False}


@pytest.mark.parametrize("name", ["judge", "held_out"])
def test_the_menageries_judges_are_healthy(samples, name):
    findings = found(judge_of(name), samples)
    assert failed(findings) == set()
    assert len(findings) == 9
    assert all(one.ok for one in findings.values())


def test_a_measure_without_gradient_is_healthy(samples):
    checkpoint = f"{WEIGHTS}/classifier.safetensors"
    findings = found(
        Judge(name="kind", type="rayvideo.menagerie.classifier:KindClassifier", checkpoint=checkpoint), samples
    )
    assert failed(findings) == set()
    assert findings["gradient"].ok is None
    assert "[-1, 1]" in findings["normalisation"].measured


@pytest.mark.parametrize(
    ("kind", "check", "words"),
    [
        ("NextCaption", "own frame and caption", "scores differ by"),
        ("OneCaption", "right above wrong caption", "don't change with the caption"),
        ("Swapped", "answers", "RewardError|AttributeError|frames"),
        ("WorseIsHigher", "clean above degraded", "% of pairs: blur"),
        ("Detached", "gradient", "detached: scores have no graph"),
        ("Rounded", "gradient", "exactly 0 for 12 of 12 frames"),
        ("HalfDetached", "finite differences", "off by"),
        ("Relative", "own frame and caption", "scores differ by"),
        ("NormalisedTwice", "normalisation", "declared"),
        ("FromMinusOne", "normalisation", "declared"),
        ("Bytes", "normalisation", "declared"),
        ("Restless", "answers", "asked twice"),
    ],
)
def test_a_broken_judge_is_caught(samples, kind, check, words):
    findings = found(judge_of(kind=f"{HERE}:{kind}"), samples)
    assert check in failed(findings)
    assert re.search(words, findings[check].measured)
    if kind not in ("WorseIsHigher", "Relative", "NormalisedTwice", "FromMinusOne", "Bytes"):  # which also rank wrongly
        assert failed(findings) <= {check, "right above wrong caption"}


def test_a_healthy_judge_of_clips(samples):
    findings = found(judge_of(kind=f"{HERE}:Film", dtype="bf16"), samples)
    assert failed(findings) == set()
    assert len(findings) == 10
    assert all(one.ok for one in findings.values())
    assert "one finite score for each of 6 clips" in findings["answers"].measured
    assert "a clip (" in findings["gradient"].measured
    assert "declared" in findings["normalisation"].measured
    assert "own clip and caption" in findings


def test_what_has_no_meaning_for_a_judge_of_clips_is_left_out(samples):
    findings = found(Judge(name="lively", type="tests.clip_judges:Lively"), samples)
    assert {name for name, one in findings.items() if one.ok} == {"answers", "score scale", "own clip and caption"}
    assert failed(findings) == set()
    assert findings["gradient"].measured == "its class says differentiable = False"
    assert findings["normalisation"].measured == "no layer of the judge takes pictures of three channels"
    assert findings["resize and antialias"].measured == "the judge resizes in its own way, if at all"


@pytest.mark.parametrize(
    ("kind", "check", "words"),
    [
        ("FilmOfNextCaption", "own clip and caption", "in a batch, scores differ by .* from the same clips alone"),
        ("FilmDetached", "gradient", "detached: scores have no graph"),
        ("FilmHalfDetached", "finite differences", "off by"),
        ("FilmRelative", "own clip and caption", "scores differ by"),
        ("FilmNormalisedTwice", "normalisation", "declared"),
    ],
)
def test_a_broken_judge_of_clips_is_caught(samples, kind, check, words):
    findings = found(judge_of(kind=f"{HERE}:{kind}"), samples)
    assert check in failed(findings)
    assert re.search(words, findings[check].measured)


def test_the_resize_of_clips_is_looked_at(samples):
    judge = Judge(name="small", type="tests.clip_judges:Steady", options={"frames": 4, "size": [20, 20]})
    finding = found(judge, samples)["resize and antialias"]
    assert "64x64 to 20x20, bilinear" in finding.measured
    assert re.search(r"[1-9]\d% of pixels get no gradient", finding.measured)
    assert finding.ok is False


def test_clips_that_are_too_short_or_were_not_read_are_told(samples):
    patient = load_reward(Judge(name="patient", type="tests.clip_judges:Steady", options={"frames": 99}))
    with pytest.raises(RewardError, match="judge 'patient' asks for 99 frames; .* too short; raise data.frames"):
        samples.asked(patient, CPU)
    with pytest.raises(RewardError, match="judge 'patient' sees clips, of which none were read"):
        replace(samples, clips=None).asked(patient, CPU)


def test_judges_of_frames_and_of_clips_are_compared_with_their_actors(samples):
    judges = [judge_of(), judge_of("held_out").model_copy(update={"name": "film", "type": f"{HERE}:Film"})]
    here = {one.name: remote.local(samples.asked(load_reward(one), CPU), gradient=True) for one in judges}
    finding = remote.compare(LocalPool(judges), here, True)
    assert finding.ok
    assert re.fullmatch(r"scores differ by \S+ \(judge\), \S+ \(film\), gradients by \S+, relative", finding.measured)
    turned = here["film"]._replace(slope=-torch.as_tensor(here["film"].slope))
    assert remote.compare(LocalPool(judges), {**here, "film": turned}, True).ok is False
    assert remote.weights(judges, here).ok is None


def test_a_head_that_no_file_holds_is_found():
    random, whole = (judge_of(kind=kind) for kind in (f"{HERE}:Headless", "hpsv2"))
    found = from_files(random, load_reward(random))
    assert found.ok is False
    assert re.fullmatch(r"2 of \d+ tensors are random, as head\.weight", found.measured)
    assert from_files(whole, load_reward(whole)).ok


@pytest.mark.parametrize("kind", ["NormalisedTwice", "FromMinusOne", "Bytes"])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_a_wrong_normalisation_is_seen_behind_any_resize(samples, kind, resize):
    frames = torch.rand(2, 3, 96, 80)
    healthy, broken = (load_reward(judge_of(kind=k, resize=resize)) for k in ("hpsv2", f"{HERE}:{kind}"))
    assert pixels.normalisation(healthy, frames, ["a", "b"]).ok
    assert not pixels.normalisation(broken, frames, ["a", "b"]).ok


@pytest.mark.parametrize(
    ("gain", "offset", "ok", "words"),
    [
        (2, -1, True, r"[-1, 1]"),
        (1, 0, False, "no convention"),
        (255, 0, False, "no convention"),
        (0, 1, False, "alike"),
    ],
)
def test_a_judge_that_declares_nothing_is_held_to_the_conventions(samples, gain, offset, ok, words):
    judge = Judge(name="plain", type=f"{HERE}:Plain", options={"gain": gain, "offset": offset})
    finding = pixels.normalisation(load_reward(judge), *samples.one_each())
    assert finding.ok is ok
    assert words in finding.measured


def test_a_plain_resize_by_more_than_two_leaves_pixels_without_gradient(samples):
    frames, captions = samples.one_each()
    large = torch.nn.functional.interpolate(frames, size=(160, 160), mode="bicubic").clamp(0, 1)
    plain, antialiased = (
        pixels.resize(load_reward(judge_of(resize=r)), large, captions) for r in ("bilinear", "bicubic")
    )
    assert not plain.ok
    assert "160x160 to 64x64, bilinear" in plain.measured
    assert "36% of pixels get no gradient" in plain.measured
    assert antialiased.ok
    assert pixels.resize(load_reward(judge_of()), frames, captions).ok


def test_a_bf16_judge_is_compared_with_its_fp32_self(samples):
    findings = found(judge_of(dtype="bf16"), samples)
    assert failed(findings) == set()
    assert "cosine 0.9" in findings["gradient in bf16"].measured


def test_an_actor_with_another_judge_is_caught(samples):
    pool = LocalPool([judge_of(weight=2.0)])
    same, other = (
        remote.local(samples.asked(load_reward(judge_of(name)), CPU), gradient=True) for name in ("judge", "held_out")
    )
    assert remote.compare(pool, {"judge": same}, True).ok
    assert remote.compare(pool, {"judge": other}, True).ok is False
    turned = same._replace(slope=-torch.as_tensor(same.slope))
    assert remote.compare(pool, {"judge": turned}, True).ok is False


def test_a_judge_without_a_say_is_named(samples):
    here = remote.local(samples.asked(load_reward(judge_of()), CPU), gradient=True)
    loud, quiet = (judge_of().model_copy(update={"name": f"w{w:g}", "weight": w}) for w in (1.0, 1e-3))
    finding = remote.weights([loud, quiet], {"w1": here, "w0.001": here})
    assert finding.ok is False
    assert "w1 99.9%, w0.001 0.1%" in finding.measured
    assert "'w0.001' has no say" in finding.mend


def test_noise_that_hardly_moves_the_score_is_no_error():
    names: dict[str, type[Reward]] = {}
    exec(block_of("README.md", "python", "(Reward)"), names)
    blue, captions = names["Blueness"].load(None), ["a", "b"]
    frames, noise = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    _, slope = gradients.slope(blue, frames, captions)
    along = (noise * slope).sum((1, 2, 3), keepdim=True) / slope.square().sum((1, 2, 3), keepdim=True)
    assert gradients._error(blue, frames, captions, slope, noise - along * slope) < thresholds.FINITE_DIFFERENCES
