"""What people are told: gains, warnings, and a page that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rayvideo.data.video import read_clip, write_clip
from rayvideo.evaluation.captions import Prompt
from rayvideo.evaluation.compare import Chain, Comparison, Figures, Preview
from rayvideo.evaluation.findings import figures_of, print_table, table, warnings
from rayvideo.evaluation.guarding.rows import Figure, Row
from rayvideo.evaluation.report import write_report
from rayvideo.evaluation.workers import Variant
from rayvideo.recipe import Recipe, parse_recipe

BOTH = ("in_domain", "new")
CAPTION = "a <script>alert(1)</script> cat & 'dog'"
BASE = {"judge": 0.25, "held_out": 0.3, "motion": 0.2, "flicker": 0.05, "kid": 0.4}
STD = {"judge": 0.02, "held_out": 0.05, "motion": 0.1, "flicker": 0.02, "kid": 0.01}
DEVIATIONS = {"base": (-1.1, 0.0, 1.1) * 2, "tuned": (1.1, 0.0, -1.1) * 2}
"""Of each caption's clip, in standard deviations."""


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(
        {
            "model": {"path": "m"},
            "data": {"manifest": "clips.txt"},
            "reward": {"judges": [{"name": "judge"}]},
            "evaluation": {
                "judges": [{"name": "held_out", "checkpoint": "other.pt"}],
                "sets": {"in_domain": "a", "new": "b"},
            },
            "tracking": {"run_name": "first"},
        }
    )


def figures(**means: float) -> Figures:
    return {name: {"mean": mean, "std": STD[name], "n": 6} for name, mean in {**BASE, **means}.items()}


def comparison(folder: Path, **tuned: float) -> Comparison:
    """Two sets of which the first holds one caption that is shown; `tuned` are means of the tuned model."""
    prompt = Prompt("in_domain", CAPTION, 3)
    preview = Preview(prompt, "00-cat")
    colours: dict[Variant, int] = {"base": 60, "tuned": 200}
    for variant, colour in colours.items():
        preview.pixels[variant] = np.full((4, 32, 32, 3), colour, np.uint8)
        preview.files[variant] = f"report/clips/00-cat-{variant}.mp4"
        write_clip(folder / preview.files[variant], preview.pixels[variant])
    means: dict[str, dict[str, float]] = {"base": BASE, "tuned": {**BASE, **tuned}}
    rows = [
        {"set": name, "caption": f"{n}", "seed": 0, "variant": variant}
        | {metric: value + away * STD[metric] for metric, value in means[variant].items() if metric != "kid"}
        for name in BOTH
        for variant, column in DEVIATIONS.items()
        for n, away in enumerate(column)
    ]
    sets: dict[str, Any] = {name: {"base": figures(), "tuned": figures(**tuned)} for name in BOTH}
    return Comparison([Chain(20, rows, sets)], True, figures(judge=0.5), 2, [preview], 1.0)


def test_gains_are_in_standard_deviations_of_the_base(recipe: Recipe, tmp_path: Path) -> None:
    found = figures_of(recipe, comparison(tmp_path, judge=0.28, held_out=0.25))
    assert found["gain_in_base_std"]["new"] == pytest.approx({"judge": 1.5, "held_out": -1.0})
    assert found["wins"]["in_domain"] == pytest.approx({"judge": 2 / 3, "held_out": 1 / 3})
    assert found["sets"]["new"]["tuned"]["judge"] == {"mean": 0.28, "std": 0.02, "n": 6}
    assert found["reference"]["judge"]["mean"] == 0.5
    json.dumps(found)


def test_every_metric_of_clips_has_its_interval(recipe: Recipe, tmp_path: Path) -> None:
    found = figures_of(recipe, comparison(tmp_path, judge=0.28, motion=0.1))["paired"]
    assert set(found) == set(BOTH)
    assert set(found["new"]) == set(BASE) - {"kid"}
    judge, motion = found["new"]["judge"], found["new"]["motion"]
    assert (judge["clips"], judge["captions"]) == (6, 6)
    assert set(judge) == {"clips", "captions", "difference", "gain_in_base_std"}
    assert set(motion) == {"clips", "captions", "difference", "change"}
    assert judge["difference"]["value"] == pytest.approx(0.03)
    assert judge["gain_in_base_std"]["value"] == pytest.approx(1.5)
    assert motion["change"]["value"] == pytest.approx(-0.5)
    for estimate in (judge["difference"], judge["gain_in_base_std"], motion["difference"], motion["change"]):
        assert estimate["low"] < estimate["value"] < estimate["high"]


def test_gain_over_scores_that_do_not_vary_is_unknown(tmp_path: Path) -> None:
    same = comparison(tmp_path)
    same.chains[0].sets["new"]["base"]["judge"]["std"] = 0.0
    assert same.chains[0].gain("judge")["new"] is None
    assert same.chains[0].paired_gain("judge")["new"] is None


@pytest.mark.parametrize(
    ("tuned", "expected"),
    [
        ({"judge": 0.3, "held_out": 0.35, "motion": 0.225, "flicker": 0.02, "kid": 0.1}, []),
        ({"judge": 0.1, "held_out": 0.297}, []),  # its fall is within the noise; a training judge needs no warning
        ({"held_out": 0.28}, ["held-out judge 'held_out' fell by 0.40 standard deviations"]),
        ({"motion": 0.16}, ["motion changed by -20%"]),
        ({"motion": 0.25}, ["motion changed by +25%"]),
        ({"flicker": 0.06}, ["flicker rose by 20%"]),
        ({"kid": 0.42}, ["KID 0.4 to 0.42"]),
    ],
)
def test_warnings_name_what_moved_the_wrong_way(
    recipe: Recipe, tmp_path: Path, tuned: dict[str, float], expected: list[str]
) -> None:
    found = warnings(recipe, comparison(tmp_path, **tuned))
    assert len(found) == 2 * len(expected)  # in both sets
    for text in expected:
        assert found[0].startswith("in_domain: ")
        assert text in found[0]


def test_page_is_whole_safe_and_self_contained(recipe: Recipe, tmp_path: Path) -> None:
    metrics = "\n".join(json.dumps({"step": s, "reward": s / 9, "score/judge": 0.2 + s / 100}) for s in range(1, 31))
    facts = {"adapter": "<dir>"}
    path = write_report(tmp_path, recipe, comparison(tmp_path, judge=0.28, flicker=0.06), facts, metrics)
    assert path == tmp_path / "report" / "index.html"
    page = path.read_text()
    assert "<script" not in page
    assert CAPTION in html.unescape(page)
    assert "&lt;dir&gt;" in page
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[\w/.]""", page)
    for text in (
        "+1.50 σ [-",
        "better in 67%",
        "+20.0% [-",
        "0.2800",
        "± 0.0200",
        "flicker rose by 20%",
        "real clips",
        "held-out judge",
    ):
        assert text in page, text
    assert "2 of the real clips could not be read" in page

    clips = [base64.b64decode(clip) for clip in re.findall(r"data:video/mp4;base64,([\w+/=]+)", page)]
    assert len(clips) == 2
    (tmp_path / "again.mp4").write_bytes(clips[1])
    assert read_clip(tmp_path / "again.mp4", 4, 8, 32, 32).mean() == pytest.approx(200, abs=3)


def test_what_guards_found_is_drawn_with_interval_and_margin(recipe: Recipe, tmp_path: Path) -> None:
    figures = {
        "held_out": Figure("held-out", 0, 0, 0.5, 0.25, 0.75, 0.2),
        "motion": Figure("measure", 0, 0, -0.5, -0.75, -0.25, 0.25),
    }
    page = write_report(tmp_path, recipe, comparison(tmp_path), {}, guards=[Row(40, 80, figures)]).read_text()
    assert "Guards while training" in page
    assert re.findall(r'class="band" points="([^"]+)"', page) == [
        "0.0,240.0 680.0,160.0 680.0,0.0 0.0,240.0",
        "0.0,0.0 680.0,240.0 680.0,80.0 0.0,0.0",
    ]
    assert re.findall(r'class="margin" x1="0" y1="([^"]+)"', page) == ["80.0"], "of a measure alone"
    assert "held-out judge, change σ; lower is worse; margin 0.2" in page
    assert "Guards while" not in write_report(tmp_path, recipe, comparison(tmp_path), {}).read_text()


def test_reward_curve_rises_to_the_right(recipe: Recipe, tmp_path: Path) -> None:
    steps = [1, 2, 3, 3, 4]  # step 3 was done twice; the later value counts
    values = [0.0, 0.1, 9.0, 0.2, 0.4]
    metrics = "\n".join(json.dumps({"step": s, "reward": v}) for s, v in zip(steps, values, strict=True))
    page = write_report(tmp_path, recipe, comparison(tmp_path), {}, metrics).read_text()
    points = re.search(r'class="raw" points="([^"]+)"', page)
    assert points
    assert points[1] == "0.0,240.0 226.7,180.0 453.3,120.0 680.0,0.0"
    assert "step 4" in page
    assert "0.4000" in page


def test_base_alone_has_no_gains(recipe: Recipe, tmp_path: Path) -> None:
    alone = comparison(tmp_path)
    alone.has_tuned = False
    for variants in alone.chains[0].sets.values():
        del variants["tuned"]
    del alone.previews[0].files["tuned"]
    assert set(figures_of(recipe, alone)) == {"sets", "by_steps", "reference"}
    page = write_report(tmp_path, recipe, alone, {}).read_text()
    assert "tuned model" not in page
    assert page.count("<video") == 1


def test_console_table(recipe: Recipe, tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    print_table(recipe, comparison(tmp_path, judge=0.28, flicker=0.06), console)
    text = console.export_text()
    for words in ("in_domain", "0.2500 ± 0.0200", "0.2800 ± 0.0200", "+1.50 σ", "(held-out)", "warning: new"):
        assert words in text, words


def test_several_numbers_of_steps_stand_side_by_side(recipe: Recipe, tmp_path: Path) -> None:
    both = comparison(tmp_path, judge=0.28)
    longer = comparison(tmp_path, judge=0.26, motion=0.25).chains[0]
    both.chains.append(Chain(50, longer.rows, longer.sets))
    found = figures_of(recipe, both)
    assert found["sets"]["new"]["tuned"]["judge"]["mean"] == 0.28  # the plain keys are those of the first
    assert list(found["by_steps"]) == ["20", "50"]
    assert found["by_steps"]["20"]["sets"] == found["sets"]
    assert found["by_steps"]["50"]["gain_in_base_std"]["new"]["judge"] == pytest.approx(0.5)
    assert found["warnings"] == [f"{name}, 50 steps: motion changed by +25%; up to 15% is usual" for name in BOTH]
    assert list(table(recipe, both))[:6] == [
        ("judge", 20, "base", ["0.2500 ± 0.0200"] * 2),
        ("judge", 20, "tuned", ["0.2800 ± 0.0200"] * 2),
        ("judge", 20, "gain", ["+1.50 σ [-0.33, +3.33]"] * 2),
        ("judge", 50, "base", ["0.2500 ± 0.0200"] * 2),
        ("judge", 50, "tuned", ["0.2600 ± 0.0200"] * 2),
        ("judge", 50, "gain", ["+0.50 σ [-1.33, +2.33]"] * 2),
    ]
    page = write_report(tmp_path, recipe, both, {}).read_text()
    assert page.count('<th scope="row">50</th>') == len(BOTH) + 2  # of each set, and of each judge
    for title in ("motion", "flicker", "KID", "0.2600 ± 0.0200", "held-out"):
        assert title in page, title
