"""The terminal table and summary.md: every number where it should be."""

import re

from attnconv.report import text


def test_table_reads_row_by_row(summary):
    lines = text.table(summary).splitlines()
    assert lines[2].split() == ["model", "100", "1167", "params", "flops", "s/run", "lr"]
    assert re.split(r"  +", lines[5]) == [
        "cnn",
        "82.0 [79.0, 85.0]",
        "98.9 [98.0, 99.5]",
        "20,011",
        "2.47M",
        "2.9",
        "0.003",
    ]
    assert len({len(line) for line in lines[2:]}) == 1, "the columns line up"


def test_table_fits_a_terminal(make_summary):
    models = ("mlp", "local", "cnn", "attention", "hybrid")
    sizes = (100, 1000, 10000)
    scores = {(model, size): (0.99, 0.98, 1.0) for model in models for size in sizes}
    table = text.table(make_summary(scores, test=10_000, edge=[("cnn", 10000)]))
    assert "99.00 [98.00, 100.00]" in table, "a large test split gives two decimals"
    assert "0.003*" in table
    assert table.splitlines()[-1].startswith("* at the edge")
    assert max(map(len, table.splitlines())) <= 110


def test_markdown_holds_every_number(summary):
    written = text.markdown(summary)
    for cell in summary["cells"]:
        row = (
            f"| {cell['train_size']} | {cell['model']} | "
            f"{100 * cell['test']['estimate']:.1f} [{100 * cell['test']['low']:.1f}, "
            f"{100 * cell['test']['high']:.1f}] |"
        )
        assert row in written
        assert f"{cell['flops']:,}" in written
    assert "| 1167 | mlp | cnn | -1.9 [-3.2, -0.6] | yes |" in written
    assert "| 1167 | cnn | hybrid | +0.2 [-0.7, 1.1] | not established |" in written
    assert "| learning\\_rates | 0.001,0.003,0.01 |" in written
    assert "| train\\_sizes | 100,all |" in written
    assert "1,167 training, 270 validation, 360 test examples" in written
    assert "cpu: AMD EPYC, 2 cores" in written


def test_markdown_says_how_it_was_measured(summary, make_summary):
    written = text.markdown(summary)
    assert "All 6 intervals hold together with 95% confidence" in written
    assert "read once" in written
    assert "chosen among 0.001, 0.003, 0.01" in written
    alone = text.markdown(make_summary({("cnn", 10): (0.5, 0.4, 0.6)}, seeds=1))
    assert "hold together" not in alone
    assert "with one seed the spread of training is not in the interval" in alone
    assert (
        "270 validation examples choose the learning rate, and 360 test examples are read once, by "
        "the runs with the chosen learning rate. Scores"
    ) in written
    assert "averaged over seeds" in written and "averaged over" not in alone
    assert "where 2 runs shared it" in written and "Smyth 2004)" in written


def test_what_was_not_done_is_not_said_to_be(make_summary):
    scores = {("mlp", 10): (0.5, 0.4, 0.6), ("cnn", 10): (0.6, 0.5, 0.7)}
    rows = [(10, "mlp", "cnn", (-0.1, -0.2, 0.0))]

    def of(**options):
        return text.markdown(make_summary(scores, rows, **options)).replace("\\", "")

    one = of(config={"learning_rates": [0.01]}, runs_at_once=1)
    assert "Every family has the learning rate 0.01, the only one tried." in one
    assert "choose the learning rate" not in one and "by the runs with the chosen" not in one
    assert "on the device named below, alone." in one
    assert "Its interval holds with 95% confidence: its width comes from |t| in a" in one
    assert "averaged with what all pairs show" not in one
    together = of(runs_at_once=15, one_program=True)
    assert "its share of 15 runs that were one program." in together


def test_what_the_flops_are_counted_for(make_summary):
    def of(**options):
        return text.markdown(make_summary({("cnn", 10): (0.5, 0.4, 0.6)}, **options))

    assert "one forward pass for one example; seconds" in of()
    assert "for the whole graph; seconds" in of(graph=True)
    longest = "for one example of the greatest length"
    assert f"{longest}; seconds" in of(padded=True)
    assert f"{longest}, at which alone they are matched; seconds" in of(padded=True, match="flops")


def test_markdown_tables_are_whole(odd_summary):
    """Each row of a table has as many cells as its header, whatever the names hold."""
    columns = None
    for line in text.markdown(odd_summary).splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        if not line.startswith("|"):
            columns = None
        elif columns is None:
            columns = bars
        else:
            assert bars == columns, line


def test_markup_in_a_name_stays_text(make_summary):
    name = "<script>a|b*c_d`e#f\n</script> [g](h)"
    written = text.markdown(make_summary({("cnn", 10): (0.5, 0.4, 0.6)}, name=name))
    title = written.splitlines()[0]
    assert title == r"# \<script\>a\|b\*c\_d\`e\#f \</script\> [g\](h)"


def test_markdown_says_what_the_metric_is(make_summary):
    def of(output, **options):
        written = text.markdown(
            make_summary({("cnn", 10): (0.5, 0.4, 0.6)}, output=output, **options)
        )
        return written.replace("\\", "")

    label, labels, sequence = of("label"), of("labels", vocabulary=99), of("sequence", vocabulary=9)
    assert "Scores are accuracy on the test split, in percent, averaged over seeds." in label
    assert "Scores are accuracy over all test vectors that have a label, in percent" in labels
    assert "a sequence counts where the whole of it is right, its length included." in sequence
    dependent = "the labels of one example do not count as independent"
    assert [dependent in written for written in (label, labels, sequence)] == [False, True, False]
    table = "Parameters do not count the table of token embeddings, the same for all families."
    assert [table in written for written in (label, labels, sequence)] == [False, True, True]
    assert table not in of("label", vocabulary=99, config={"vectors": "one_hot"})


def test_what_is_known_of_the_task_is_written_everywhere_once(windowed):
    assert text.markdown(windowed).count("- Baseline: 85.7 % accuracy") == 1
