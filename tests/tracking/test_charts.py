"""The order in which MLflow's pages show a run's charts."""

from __future__ import annotations

from rayvideo.tracking.charts import base_chart, clip_chart, guard_chart, step_chart, strip_key
from rayvideo.tracking.run import metric_name

STEP = {
    "reward": "1-reward/reward",
    "score/hps": "1-reward/score.hps",
    "loss": "6-training/loss",
    "saturation": "6-training/saturation",
    "score/hps/segment-3": "7-judges/score.hps.segment-3",
    "judge_cosine/hps/clip": "7-judges/judge_cosine.hps.clip",
    "seconds/judge": "8-seconds/judge",
    "mine/of/my/objective": "mine/of/my/objective",
}


def groups(names: list[str]) -> list[str]:
    """Groups of charts from above, as MLflow's page makes them: a name without its last part, sorted."""
    return sorted({name.rpartition("/")[0] for name in names})


def test_a_steps_figures_have_their_groups() -> None:
    assert {key: step_chart(key) for key in STEP} == STEP


def test_reward_held_out_motion_and_clips_come_first() -> None:
    made = [
        *(step_chart(key) for key in STEP),
        clip_chart("eval", "in", "guard", held_out={"guard"}),
        clip_chart("eval", "in", "kid"),
        *(clip_chart("preview", "in", metric) for metric in ("hps", "motion", "contrast")),
        base_chart("preview", "in", "motion"),
        strip_key("preview", "in", "a red cat"),
    ]
    assert groups(made)[:4] == ["1-reward", "2-held-out", "3-motion", "4-clips"]
    assert groups(made)[-3:] == ["8-seconds", "9-base", "mine/of/my"]


def test_figures_of_clips_have_their_groups() -> None:
    assert clip_chart("preview", "in", "hps", held_out={"guard"}) == "1-reward/preview.in.hps"
    assert clip_chart("eval-50-steps", "in", "guard", held_out={"guard"}) == "2-held-out/eval-50-steps.in.guard"


def test_what_guards_find_is_beside_what_it_is_about() -> None:
    assert guard_chart(None, "hps") == "1-reward/guards.hps"
    assert guard_chart("new/odd", "guard", held_out={"guard"}) == "2-held-out/guards.new.odd.guard"
    assert guard_chart("new", "diversity") == "2-held-out/guards.new.diversity"
    assert guard_chart(None, "flicker") == "3-motion/guards.flicker"


def test_slashes_in_sets_and_captions_open_no_groups() -> None:
    for name in (clip_chart("eval", "new/odd", "motion"), strip_key("eval", "new/odd", "black / white cat")):
        assert metric_name(name).count("/") == 1
