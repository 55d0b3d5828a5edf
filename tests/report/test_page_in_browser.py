"""The page as a person meets it: opened from the disk in Chromium, with the network off."""

import json
from pathlib import Path

import axe_playwright_python
import numpy as np
import pytest

from finetune.pictures.drawing import as_png
from finetune.report.page import render_page
from finetune.runs.kept_pictures import KeptPicture, as_document

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CANVAS_IS_BLANK = """canvas => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return !pixels.some((value, place) => place % 4 === 3 && value > 0);
}"""
ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</svg><script>alert(3)</script>",
    "</script><script>alert(4)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "' onmouseover='alert(5)",
    "javascript:alert(6)",
]


def text(page, selector):
    return " ".join(page.locator(selector).all_inner_texts())


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdict_proof_and_curves_of_a_run_are_read_from_the_page(plant, opened, width, scheme):
    page = opened(render_page([plant()]), width, color_scheme=scheme)
    verdict = text(page, ".verdict")
    assert "validation/accuracy 0.95 at step 20" in verdict
    assert "0.2 better than one that always gives the same answer" in verdict
    assert "proven: 2 fingerprints equal" in verdict
    assert page.locator(".verdict dl").bounding_box()["y"] < 200
    charts = page.locator(".chart canvas")
    assert charts.count() == page.locator(".chart").count() == 2
    assert not any(charts.nth(place).evaluate(CANVAS_IS_BLANK) for place in range(2))
    said = page.locator(".chart").first.get_attribute("aria-label")
    assert said.startswith("loss: train/loss from 1 at step 1 to 0.05 at step 20")
    assert page.locator("svg.timeline rect.frozen").count() == 2
    assert page.locator("svg.timeline rect.trained").count() == 2
    assert fits(page)
    assert (page.errors, page.requests, page.dialogs) == ([], [], [])


@pytest.mark.parametrize("width", [390, 1440])
def test_pictures_are_drawn_with_words_for_people_who_hear_them(plant, opened, width):
    run = plant()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    png = as_png(np.repeat(pixels[::20, ::20], 20, axis=0).repeat(20, axis=1))
    picture = KeptPicture("validation/confusion", "9 of 10 right", 20, 500, 300, png)
    (run / "pictures.json").write_text(json.dumps(as_document([picture])))
    page = opened(render_page([run]), width)
    image = page.locator(".pictures img")
    assert image.get_attribute("alt") == "9 of 10 right"
    assert image.evaluate("each => each.complete && each.naturalWidth") == 500
    box = image.bounding_box()
    assert 5 / 3 - 0.02 < box["width"] / box["height"] < 5 / 3 + 0.02
    assert fits(page)
    assert (page.errors, page.requests) == ([], [])


@pytest.mark.parametrize("width", [390, 1440])
def test_twelve_runs_are_side_by_side_and_sorted_by_a_click(plant, opened, width):
    runs = []
    for number in range(12):
        value = 0.5 + (number * 7 % 12) / 100
        curves = {
            "train/loss": {1: 2.0, 2: 1.0},
            "validation/accuracy": {1: 0.5, 2: value},
        }
        config = {"optimizer": {"type": "SGD", "lr": (number + 1) / 10}}
        runs.append(plant(f"run-{number}", curves, config=config))
    page = opened(render_page(runs), width)

    def order():
        return page.locator("table.sortable tbody th").all_inner_texts()

    best_first = sorted(range(12), key=lambda number: -(number * 7 % 12))
    assert order() == [f"run-{number}" for number in best_first]
    head = page.locator("table.sortable thead th", has_text="optimizer.lr")
    head.get_by_role("button").click()
    assert order() == [f"run-{number}" for number in range(12)]
    head.get_by_role("button").click()
    assert order() == [f"run-{number}" for number in reversed(range(12))]
    assert head.get_attribute("aria-sort") == "descending"
    legends = page.locator("[data-charts=all] figure").first.locator(".u-series").all_inner_texts()
    assert {one.partition(":")[0] for one in legends[1:]} == {f"run-{n}" for n in range(12)}
    part = page.locator("details.run").nth(5)
    assert part.locator("canvas").count() == 0
    part.locator("summary").first.click()
    part.locator("canvas").first.wait_for()
    assert part.locator("canvas").count() == 2
    assert fits(page)
    assert (page.errors, page.requests) == ([], [])


@pytest.mark.parametrize("width", [390, 1440])
def test_a_stranger_reads_from_the_page_which_of_three_runs_is_best_and_why(plant, opened, width):
    steps = range(10, 101, 10)
    falls = {step: 10 / step for step in steps}
    rises = {step: 0.2 + abs(step - 30) / 50 for step in steps}
    good = {"train/loss": falls, "validation/loss": falls}
    overfit = {"train/loss": dict.fromkeys(steps, 0.001), "validation/loss": rises}
    runs = [
        plant("overfit", overfit | {"validation/accuracy": dict.fromkeys(steps, 0.8)}),
        plant(
            "wild",
            {"train/loss": {1: 2.0, 2: 3e30}},
            status="failed",
            reason="the loss is nan in step 3",
            config={"optimizer": {"type": "SGD", "lr": 1e30}},
        ),
        plant("good", good | {"validation/accuracy": dict.fromkeys(steps, 0.97)}),
    ]
    page = opened(render_page(runs), width)
    rows = page.locator("table.sortable tbody tr")
    assert rows.locator("th").all_inner_texts() == ["good", "overfit", "wild"]
    assert rows.locator(".tone").all_inner_texts() == ["done", "done", "failed"]
    best = " ".join(rows.first.inner_text().split())
    # Which is best, how long it took, what was frozen in it, and that this is proven.
    for answer in ("0.97", "2.5 s", "'net.layer.1' throughout", "proven, 2 fingerprints"):
        assert answer in best
    said = page.locator("ul.advice").first.locator("li").all_inner_texts()
    wrong = {line.partition(":")[0]: line for line in said}
    assert "Overfitting: validation/loss was 0.2 at step 30" in wrong["overfit"]
    assert "failed at step 2: the loss is nan in step 3" in wrong["wild"]
    assert "Lower the rate (optimizer.lr is 1e+30)" in wrong["wild"]
    assert fits(page)


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_of_a_run_is_never_markup(plant, opened, attack):
    phases = [plant.phase(attack, plant.lower)]
    for state in phases[0]["states"]:
        state["name"] = f"{attack}.{state['name']}"
    curves = {f"validation/{attack}": {1: 0.5, 2: 0.7}, "train/loss": {1: 2.0, 2: 1.0}}
    run = plant(
        curves=curves,
        main=f"validation/{attack}",
        phases=phases,
        classes=[attack, "b"],
        notes=[attack],
        status="failed",
        reason=f"nan {attack}",
        config={"name": attack, "seed": attack, attack: attack},
    )
    for html in (render_page([run], [attack]), render_page([run, run], [attack, f"{attack}2"])):
        page = opened(html)
        for shape in ("h1", "summary", "svg.timeline rect", "th button"):
            if page.locator(shape).count():
                page.locator(shape).first.hover()
        assert attack in page.locator("main").inner_text()
        assert page.locator("main img, main script, main a[href^=javascript]").count() == 0
        assert (page.dialogs, page.requests, page.errors) == ([], [], [])


def test_a_script_that_slips_in_is_not_run_and_loads_nothing(plant, opened):
    """The content security policy holds even where escaping would fail."""
    slipped = (
        '<img src=x onerror=alert(1)><script>alert(2)</script><img src="https://a.test/b.png">'
    )
    html = render_page([plant()])
    page = opened(html.replace("<main id=", f"{slipped}<main id="))
    page.wait_for_timeout(300)
    assert page.dialogs == []
    assert len(page.errors) >= 3
    assert all("Content Security Policy" in error for error in page.errors)


ODD = {
    "one epoch": {"curves": {"train/loss": {1: 1.0}, "validation/accuracy": {1: 0.5}}},
    "nothing logged": {"curves": {"train/loss": {0: 1.0}}, "status": None, "proof": False},
    "nan": {
        "curves": {"train/loss": {1: 1.0, 2: None}},
        "status": "failed",
        "reason": "loss is NaN",
    },
    "regression": {
        "curves": {"validation/mae": {1: 2.0, 2: 1.5}},
        "main": "validation/mae",
        "classes": None,
        "counts": None,
        "config": {"task": {"type": "regression"}},
    },
    "1,000 classes": {"classes": [f"class {n}" for n in range(1000)], "counts": [3] * 1000},
    "long names": {"classes": ["x" * 200, "y z" * 70], "notes": ["w" * 2000]},
    "chinese": {
        "classes": ["体育", "财经新闻"],
        "notes": ["数据有重复"],
        "config": {"name": "新闻"},
    },
    "right to left": {"classes": ["رياضة", "ספורט"], "notes": ["ملاحظة على البيانات"]},
}


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_runs_hold_together(plant, opened, odd, width, request):
    name = {"long names": "n" * 200, "chinese": "运行一", "right to left": "تجربة"}
    run = plant(**odd)
    label = next((one for key, one in name.items() if key in request.node.name), "run")
    for html in (render_page([run], [label]), render_page([run, run], [label, "other"])):
        page = opened(html, width)
        assert label in page.locator("main").inner_text()
        assert fits(page)
        # What a browser has to do before the page is there; seconds depend on others' work.
        assert len(html) < 300_000
        assert page.evaluate("document.querySelectorAll('*').length") < 1500
        assert (page.errors, page.requests) == ([], [])


def test_a_run_of_a_hundred_thousand_steps_gives_a_small_page(plant, opened):
    steps = range(1, 100_001)
    curves = {
        "train/loss": {step: 1 / step for step in steps},
        "train/grad_norm": {step: step % 17 + 1.0 for step in steps},
        "validation/accuracy": dict.fromkeys(range(1000, 100001, 1000), 0.5),
    }
    html = render_page([plant(curves=curves)])
    assert len(html) < 400_000
    page = opened(html)
    # A person waits for the last chart; two seconds are far above what a quiet machine takes.
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert page.locator(".chart canvas").count() == 3
    print(f"opened in {loaded:.0f} ms")


def test_it_prints_on_paper_with_all_runs_open(plant, opened, tmp_path):
    page = opened(render_page([plant(f"run-{number}") for number in range(5)]))
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.run[open]").count() == 5
    assert page.locator("details.run .verdict").nth(4).is_visible()
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000


AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("runs", [1, 3])
def test_axe_finds_nothing_serious(plant, opened, runs, scheme):
    html = render_page([plant(f"run-{number}") for number in range(runs)])
    # axe itself is no part of the page, and its policy would refuse it.
    page = opened(html.replace("Content-Security-Policy", "X"), color_scheme=scheme)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(result => result.violations)")
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert json.dumps([(one["id"], len(one["nodes"])) for one in serious]) == "[]"


def test_the_status_of_a_run_is_not_broken_in_the_table(plant, opened):
    runs = [
        plant(name, status="stopped", config={"optimizer": {"lr": lr}})
        for name, lr in (("a" * 30, 0.1), ("b" * 30, 0.2))
    ]
    page = opened(render_page(runs), 390)
    heights = page.locator("td .tone").evaluate_all(
        "all => all.map(one => one.getClientRects().length)"
    )
    assert heights == [1, 1]
