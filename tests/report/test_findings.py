"""Sentences for summaries whose conclusions are known."""

from attnconv.report.text import findings


def found(summary, start):
    """The one finding that starts so."""
    (sentence,) = [finding for finding in findings(summary) if finding.startswith(start)]
    return sentence


def test_largest_size_first_then_ranking_then_warnings(summary):
    starts = [finding.split(" ")[0:3] for finding in findings(summary)]
    assert starts == [
        ["At", "1167", "training"],
        ["At", "100", "training"],
        ["cnn", "scored", "highest"],
        ["The", "chosen", "learning"],
    ]


def test_what_is_established_and_what_is_not(summary):
    assert found(summary, "At 1167") == (
        "At 1167 training examples cnn scored highest: 98.9 % [98.0, 99.5]. "
        "cnn is ahead of mlp by 1.9 points [0.6, 3.2]. "
        "Not established: cnn against hybrid (+0.2 points [-0.7, 1.1]). "
        "Of the others hybrid is ahead of mlp by 1.70 points [0.04, 3.40]."
    )


def test_nothing_established_claims_no_lead(summary):
    sentence = found(summary, "At 100 ")
    assert sentence == (
        "At 100 training examples cnn scored highest: 82.0 % [79.0, 85.0]. "
        "Not established: cnn against mlp (+2.0 points [-1.0, 5.0]), "
        "cnn against hybrid (+1.0 points [-2.0, 4.0]). "
        "Between mlp and hybrid no difference is established."
    )
    assert "ahead" not in sentence
    assert not any("equal" in finding for finding in findings(summary))


def test_the_question_is_answered_first(make_summary):
    summary = make_summary(
        {
            (model, size): (0.9, 0.88, 0.92)
            for model in ("attention", "cnn", "mlp")
            for size in (100, 1167)
        },
        [
            (100, "attention", "cnn", (-0.01, -0.03, 0.01)),
            (1167, "attention", "cnn", (0.02, 0.01, 0.03)),
        ],
    )
    assert findings(summary)[0] == (
        "Convolution or self-attention: at 1167 training examples attention is ahead of cnn by "
        "2.0 points [1.0, 3.0]; at 100 training examples not established, attention against cnn "
        "(-1.0 points [-3.0, 1.0])."
    )


def two_sizes(make_summary, small, large):
    """mlp and cnn at two sizes, with the two differences mlp minus cnn."""
    return make_summary(
        {
            ("mlp", 100): (0.7 + small[0], 0.6, 0.9),
            ("cnn", 100): (0.7, 0.6, 0.9),
            ("mlp", 900): (0.7 + large[0], 0.6, 0.9),
            ("cnn", 900): (0.7, 0.6, 0.9),
        },
        [(100, "mlp", "cnn", small), (900, "mlp", "cnn", large)],
    )


def test_a_ranking_that_turns(make_summary):
    summary = two_sizes(make_summary, (0.1, 0.05, 0.15), (-0.1, -0.15, -0.05))
    assert found(summary, "The ranking") == (
        "The ranking changes with the number of training examples: "
        "mlp is ahead of cnn at 100, cnn of mlp at 900."
    )


def test_a_turn_that_is_not_established(make_summary):
    summary = two_sizes(make_summary, (0.1, 0.05, 0.15), (-0.1, -0.25, 0.05))
    sentence = found(summary, "The highest score changes hands (mlp at 100, cnn at 900)")
    assert sentence.endswith("a change of the ranking is not established.")


def test_one_winner_at_all_sizes(make_summary):
    summary = two_sizes(make_summary, (0.1, 0.05, 0.15), (0.1, -0.05, 0.25))
    assert found(summary, "mlp scored highest at both train sizes")


def test_learning_rate_at_the_edge(summary):
    assert "edge of the grid for mlp (0.003 at 100)" in found(summary, "The chosen learning rate")


def test_rates_at_which_training_diverged(make_summary):
    scores = {("cnn", 10): (0.9, 0.8, 0.95), ("cnn", 20): (0.9, 0.8, 0.95)}
    assert found(make_summary(scores, diverged={("cnn", 20): [10.0, 100.0]}), "Training") == (
        "Training diverged for cnn (10 at 20; 100 at 20): these learning rates were left out of "
        "the choice."
    )


def test_one_seed_and_few_seeds(make_summary):
    scores = {("mlp", 100): (0.7, 0.6, 0.8), ("cnn", 100): (0.8, 0.7, 0.9)}
    assert (
        "spread of training is not in the intervals" in findings(make_summary(scores, seeds=1))[-1]
    )
    assert findings(make_summary(scores, seeds=3))[-1].startswith("Only 3 seeds")
    assert not any("seed" in finding for finding in findings(make_summary(scores, seeds=5)))


def test_models_of_different_size(make_summary):
    scores = {("mlp", 100): (0.7, 0.6, 0.8), ("cnn", 100): (0.8, 0.7, 0.9)}
    near, far = {"mlp": 20000, "cnn": 20816}, {"mlp": 20000, "cnn": 20817}
    assert "20,000 (mlp) to 20,817 (cnn)" in findings(make_summary(scores, params=far))[-1]
    assert not any("differ by more" in f for f in findings(make_summary(scores, params=near)))
    apart = findings(make_summary(scores, params=far, match="none"))
    assert not any("differ by more" in finding for finding in apart)
    # The FLOPs of the two are one to two.
    assert "2,469,134 (cnn)" in findings(make_summary(scores, match="flops"))[-1]


def test_two_at_the_top(make_summary):
    summary = make_summary(
        {("mlp", 100): (0.8, 0.7, 0.9), ("cnn", 100): (0.8, 0.7, 0.9)},
        [(100, "mlp", "cnn", (0.0, -0.01, 0.01))],
    )
    assert findings(summary) == [
        "At 100 training examples mlp and cnn scored the same: 80.0 % [70.0, 90.0]. "
        "Not established: mlp against cnn (+0.0 points [-1.0, 1.0])."
    ]


def test_each_of_two_at_the_top_has_its_interval_and_its_leads(make_summary):
    scores = {
        "mlp": (0.96, 0.91, 0.98),
        "cnn": (0.96 + 1e-16, 0.94, 0.97),
        "local": (0.9, 0.8, 0.95),
    }
    rows = [
        ("mlp", "cnn", (0.0, -0.02, 0.02)),
        ("mlp", "local", (0.06, -0.01, 0.13)),
        ("cnn", "local", (0.06, 0.01, 0.11)),
    ]
    summary = make_summary(
        {(model, 100): score for model, score in scores.items()}
        | {(model, 900): (0.9 + 0.01 * (model == "cnn"), 0.8, 0.95) for model in scores},
        [(100, *row) for row in rows],
    )
    assert found(summary, "At 100 ") == (
        "At 100 training examples mlp and cnn scored highest: 96.0 % [91.0, 98.0] and 96.0 % "
        "[94.0, 97.0]. cnn is ahead of local by 6.0 points [1.0, 11.0]. Not established: mlp "
        "against cnn (+0.0 points [-2.0, 2.0]), mlp against local (+6.0 points [-1.0, 13.0])."
    )
    assert found(summary, "cnn scored highest, or as high as another, at both train sizes")
    summary["cells"] = [cell for cell in summary["cells"] if cell["model"] != "cnn"]
    summary["comparisons"] = []
    summary["cells"][0]["test"]["estimate"] = 0.95
    assert found(summary, "mlp scored highest, or as high as another, at both")
    summary["cells"][2]["test"]["estimate"] = 0.89
    assert found(summary, "The highest score changes hands (mlp at 100, local at 900)")


def test_no_better_than_the_most_frequent_class(make_summary):
    scores = {("mlp", 100): (0.87, 0.86, 0.88), ("cnn", 100): (0.91, 0.9, 0.92)}

    def of(share):
        summary = make_summary(scores, most_frequent=share)
        return [x.rpartition(". ")[2] for x in findings(summary) if x.startswith("Always")]

    start = "Not established to be above that at 100 training examples: "
    assert of(0.85) == of(None) == []
    assert of(0.86) == of(0.89) == [f"{start}mlp."]
    assert of(0.9) == [f"{start}every model."]
    sentence = found(make_summary(scores, most_frequent=0.8702), "Always")
    assert sentence.startswith("Always the class most frequent in training would score 87.0 %. ")


def test_who_was_held_out(make_summary):
    scores = {("cnn", 10): (0.9, 0.8, 0.95)}
    sentence = found(make_summary(scores, config={"hold_out": "_jackson_"}), "The test split is")
    assert sentence.startswith(
        "The test split is the examples whose name contains '_jackson_', and the learning rate is "
        "chosen on others: the"
    )
    config = {"hold_out": "_jackson_", "learning_rates": [0.01]}
    sentence = found(make_summary(scores, config=config), "The test split is")
    assert "whose name contains '_jackson_': the intervals" in sentence


def test_rates_at_the_edge_are_listed_once(make_summary):
    scores = {("cnn", size): (0.9, 0.8, 0.95) for size in (10, 20, 30)}
    summary = make_summary(scores, edge=list(scores))
    summary["cells"][1]["learning_rate"] = 0.1
    assert "for cnn (0.003 at 10, 30; 0.1 at 20): a" in found(summary, "The chosen learning rate")


def test_the_question_says_what_each_sees(make_summary):
    scores = {("cnn", 10): (0.9, 0.8, 0.95), ("attention", 10): (0.9, 0.8, 0.95)}
    rows = [(10, "cnn", "attention", (0.0, -0.1, 0.1))]
    (sentence,) = questions(make_summary(scores, rows, windows={"cnn": 17}))
    assert sentence.startswith(
        "Convolution or self-attention (cnn sees 17 positions, attention sees all positions): at"
    )


def test_long_lists_are_cut(odd_summary):
    for finding in findings(odd_summary):
        assert len(finding) < 800
    if len(odd_summary["cells"]) == 36:
        # family_11 is ahead of six of the eleven others by more than the half width of 5 points.
        assert "and 3 more, in the table of differences" in findings(odd_summary)[0]


def test_one_model_alone(make_summary):
    (sentence,) = findings(make_summary({("cnn", 1167): (0.9, 0.8, 0.95)}))
    assert sentence == (
        "At 1167 training examples cnn scored 90.0 % [80.0, 95.0]; "
        "it was run alone, so nothing is compared."
    )


def questions(summary):
    return [finding for finding in findings(summary) if finding.startswith("Convolution or self")]


def test_windows_are_compared_at_equal_windows(windowed):
    nine, seventeen = questions(windowed)
    assert nine == (
        "Convolution or self-attention with a window of 9 positions: at 12,543 training examples "
        "not established, cnn:9 against attention:9 (+0.50 points [-0.30, 1.30]); at 1000 training "
        "examples not established, cnn:9 against attention:9 (+0.50 points [-0.30, 1.30])."
    )
    assert seventeen.startswith("Convolution or self-attention with a window of 17 positions: at")


def test_the_question_on_a_graph_and_where_nothing_answers_it(make_summary):
    pairs = {"graph_conv": 0.8, "graph_attention": 0.7, "attention": 0.6, "cnn:9": 0.5}
    summary = make_summary(
        {(model, 10): (score, score, score) for model, score in pairs.items()},
        [
            (10, "graph_conv", "graph_attention", (0.1, 0.05, 0.15)),
            (10, "attention", "cnn:9", (0.1, 0.05, 0.15)),
        ],
    )
    assert questions(summary) == [
        "Convolution or self-attention: at 10 training examples graph_conv is ahead of "
        "graph_attention by 10.0 points [5.0, 15.0]."
    ]


def test_exact_match_is_named(make_summary):
    alone = make_summary({("cnn", 10): (0.9, 0.8, 0.95)}, output="sequence")
    assert findings(alone)[0].startswith(
        "At 10 training examples cnn scored 90.0 % exact match [80.0, 95.0]; it was run alone"
    )
    two = make_summary(
        {("cnn", 10): (0.9, 0.8, 0.95), ("attention", 10): (0.5, 0.4, 0.6)},
        [(10, "cnn", "attention", (0.4, 0.3, 0.5))],
        output="sequence",
    )
    assert found(two, "At 10").startswith(
        "At 10 training examples cnn scored highest: 90.0 % exact match [80.0, 95.0]."
    )


def test_what_is_known_from_elsewhere_stands_before_the_warnings(make_summary):
    def of(name, train=10, vocabulary=99, **config):
        scores = {("cnn", 10): (0.9, 0.8, 0.95)}
        options = {"train": train, "vocabulary": vocabulary, "config": config}
        return findings(make_summary(scores, name=name, seeds=1, **options))

    for name in ("scan/length", "scan/length:1.1.1"):
        _, known, warning = of(name)
        assert known.startswith("Published: 20.8 % exact match")
        assert "Lake and Baroni 2018" in known
        assert warning.startswith("One seed only")
    assert "99.8 %" in of("scan/simple")[1]
    assert "1.2 %" in of("scan/addprim_jump")[1]
    assert "76.1 % accuracy" in of("rt_polarity")[1]
    assert "85.7 % accuracy" in of("universal_dependencies/en_ewt")[1]
    assert len(of("scan")) == len(of("digits")) == 2
    assert len(of("universal_dependencies/en_ewt", fields=["tokens", "xpos"])) == 2, "other tags"
    assert not any("Published" in x for x in of("rt_polarity", hold_out="a")), "another test split"
    assert len(of("rt_polarity", train=11)) == 2, "it was trained on fewer"
    assert len(of("rt_polarity", vocabulary=None)) == 2, "no texts"
