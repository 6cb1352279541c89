"""The page as a browser sees it: whole by itself, every number in it, every text escaped."""

import html.parser
import re

import pytest

from attnconv import report
from attnconv.report import markup, page, plots, tables
from attnconv.report.conclusions import findings

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(html.parser.HTMLParser):
    """Collects what a page says and what it loads, and checks that its elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.tables, self.words, self.scripts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.loads += [(tag, value) for name, value in attributes if name in ("src", "href")]
        self.tables += [[]] if tag == "table" else []
        if tag == "tr":
            self.tables[-1].append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1].append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)


def test_the_page_needs_nothing_else(summary, tmp_path):
    report.write(summary, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert reader.loads == []
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"@import|url\(\s*['\"]?http", markup.STYLE)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "accuracy_by_cost.svg",
        "accuracy_by_train_size.svg",
        "differences.svg",
        "report.html",
        "summary.md",
    ]


def test_the_page_says_what_was_found_and_holds_every_number(summary):
    reader = Reader(page.html(summary))
    words = "".join(reader.words)
    for finding in findings(summary):
        assert finding in words
    assert words.index("Findings") < words.index("Scores") < words.index("How it was measured")
    scores, compared, every, about, config, environment = reader.tables
    for drawn, made in ((scores, tables.scores), (compared, tables.comparisons)):
        header, rows = made(summary)
        assert drawn == [header, *rows]
    assert every[5][:4] == ["1167", "cnn", "98.9 [98.0, 99.5]", "98.9 98.9 98.9 98.9 98.9"]
    assert every[5][-4:] == ["20,011", "2,469,134", "600", "2.9"]
    assert ["one example", "image 8 x 8 x 1: one of 10"] in about
    assert ["learning_rates", "0.001,0.003,0.01"] in config
    assert ["device", "cpu: AMD EPYC, 2 cores"] in environment


def test_markup_in_names_stays_text(make_summary):
    name = "</script><script>alert(1)</script>&amp;<b>"
    summary = make_summary(
        {(name, 10): (0.5, 0.4, 0.6), ("cnn", 10): (0.6, 0.5, 0.7)},
        [(10, name, "cnn", (-0.1, -0.2, 0.1))],
        name=name,
    )
    plain = make_summary({("cnn", 10): (0.6, 0.5, 0.7)})
    reader = Reader(page.html(summary))
    assert f"{name}: test accuracy" in reader.words, "the title"
    assert reader.tables[0][1][0] == name
    assert len(reader.scripts) == len(Reader(page.html(plain)).scripts), "no script of its own"


def test_odd_summaries_give_a_page(odd_summary):
    reader = Reader(page.html(odd_summary))
    compared = bool(odd_summary["comparisons"])
    assert ("Differences" in reader.words) == compared
    assert len(reader.tables) == 5 + compared


def test_plots_hold_the_numbers(summary):
    drawn = plots.plots(summary)
    assert list(drawn) == [
        "by_train_size",
        "by_params",
        "by_flops",
        "by_seconds",
        "differences_100",
        "differences_1167",
    ]
    sources = {
        tuple(renderer.data_source.data["model"]): renderer.data_source.data
        for renderer in drawn["by_train_size"].renderers
    }
    cnn = sources["cnn", "cnn"]
    assert cnn["y"] == pytest.approx([82.0, 98.9])
    assert cnn["low"] == pytest.approx([79.0, 98.0])
    assert cnn["high"] == pytest.approx([85.0, 99.5])
    assert cnn["test"] == ["82.0 % [79.0, 85.0]", "98.9 % [98.0, 99.5]"]
    (scatter,) = [
        renderer.data_source.data
        for renderer in drawn["differences_1167"].renderers
        if type(renderer.glyph).__name__ == "Scatter"
    ]
    assert scatter["pair"] == ["mlp − cnn", "mlp − hybrid", "cnn − hybrid"]
    assert scatter["estimate"] == pytest.approx([-1.9, -1.7, 0.2])
    assert scatter["verdict"] == ["established", "established", "not established"]
    assert scatter["fill"][2] == "white"


def test_scores_by_window_follow_the_costs(windowed, summary):
    words = "".join(Reader(page.html(windowed)).words)
    heading = "Scores against the window, 12,543 training examples"
    assert words.index("Scores against costs") < words.index(heading) < words.index("Differences")
    assert "Scores against the window" not in "".join(Reader(page.html(summary)).words)
    assert "Baseline: 85.7 % accuracy" in words

    plot = plots.plots(windowed)["by_window"]
    (ticks,) = {tuple(axis.ticker.ticks) for axis in plot.xaxis}
    (labels,) = (axis.major_label_overrides for axis in plot.xaxis)
    assert [labels[tick] for tick in ticks] == ["9", "17", "33", "attention"]
    lines = [r for r in plot.renderers if type(r.glyph).__name__ == "Line"]
    assert [line.data_source.data["model"] for line in lines] == [
        ["cnn:9", "cnn:17", "cnn:33"],
        ["attention:9", "attention:17"],
    ]
    points = [r.data_source.data for r in plot.renderers if type(r.glyph).__name__ == "Scatter"]
    assert points[1]["model"] == ["attention:9", "attention:17", "attention"]
    assert points[1]["y"] == pytest.approx([90.5, 92.9, 94.0])
