"""What prepared TFDS sets serve as: real ones against their records, and tiny ones made here."""

import collections
import json

import numpy as np
import pytest
from prepared_sets import PREPARED, needs_data, prepare, records
from tensorflow_datasets import features as kinds
from tensorflow_datasets.proto import tf_example_pb2

from attnconv.errors import UsageError
from attnconv.tasks import tfds
from attnconv.tasks.raw import validate

CLASSES = kinds.ClassLabel(names=["ant", "bee"])


def stored(name, split):
    """The features of every record, past TFDS's readers."""
    examples = records(tfds.find(name, PREPARED), split)
    return [tf_example_pb2.Example.FromString(example).features.feature for example in examples]


def real(name, fields=None):
    return tfds.read(name, tfds.find(name, PREPARED), fields)


@needs_data
def test_english_sentences_and_their_parts_of_speech():
    raw = real("universal_dependencies/en_ewt")
    validate(raw)
    assert raw.output == "labels" and raw.class_names[11] == "PROPN" and len(raw.class_names) == 18
    assert {split: len(x) for split, (x, _) in raw.splits.items()} == {
        "train": 12543,
        "validation": 2001,
        "test": 2077,
    }
    for split, called in (("train", "train"), ("validation", "dev")):
        inputs, labels = raw.splits[split]
        theirs = stored("universal_dependencies/en_ewt", called)
        tokens = [tuple(t.decode() for t in of["tokens"].bytes_list.value) for of in theirs]
        assert inputs.tolist() == tokens
        tags = [list(of["upos"].int64_list.value) for of in theirs]
        assert [of.tolist() for of in labels] == tags
        ids = [of["idx"].bytes_list.value[0].decode() for of in theirs]
        assert raw.names[split] == ids
    assert raw.splits["train"][0][0] == ("John", ".")
    assert [raw.class_names[label] for label in raw.splits["train"][1][0]] == ["PROPN", "PUNCT"]
    whole = real("universal_dependencies/en_ewt", ("text", "lemmas"))
    assert whole.output == "sequence" and whole.class_names == ()
    assert whole.splits["train"][0][0] == ("John.",)
    assert whole.splits["train"][1][0] == ("John", ".")


TURNS = {"left": ("I_TURN_LEFT",), "right": ("I_TURN_RIGHT",)}


def obeyed(command):
    """The actions of a command of SCAN, by the rules of Lake and Baroni 2018, figure 6."""
    if "and" in command:
        at = command.index("and")
        return obeyed(command[:at]) + obeyed(command[at + 1 :])
    if "after" in command:
        at = command.index("after")
        return obeyed(command[at + 1 :]) + obeyed(command[:at])
    if command[-1] in ("twice", "thrice"):
        return obeyed(command[:-1]) * {"twice": 2, "thrice": 3}[command[-1]]
    verb, *how = command
    act = () if verb == "turn" else (f"I_{verb.upper()}",)
    if not how:
        return act
    turn = TURNS[how[-1]]
    if how[0] == "opposite":
        return turn * 2 + act
    return (turn + act) * 4 if how[0] == "around" else turn + act


@needs_data
def test_commands_and_what_is_to_be_done():
    raw = real("scan/simple")
    validate(raw)
    assert raw.output == "sequence" and raw.class_names == () and raw.names == {}
    assert raw.source == "TensorFlow Datasets, scan/simple 1.1.1"
    assert {split: len(x) for split, (x, _) in raw.splits.items()} == {"train": 16728, "test": 4182}
    for inputs, labels in raw.splits.values():
        assert [obeyed(command) for command in inputs] == labels.tolist()
    back = real("scan/simple", ("actions", "commands"))
    assert back.splits["test"][0].tolist() == raw.splits["test"][1].tolist()


@needs_data
def test_spoken_digits():
    raw = real("spoken_digit")
    validate(raw)
    assert raw.output == "label" and raw.class_names == tuple("0123456789")
    assert raw.source == "TensorFlow Datasets, spoken_digit 1.0.9"
    inputs, labels = raw.splits["train"]
    assert np.bincount(labels).tolist() == [250] * 10 and set(raw.splits) == {"train"}
    theirs = stored("spoken_digit", "train")
    names = [of["audio/filename"].bytes_list.value[0].decode() for of in theirs]
    assert raw.names["train"] == names
    speakers = collections.Counter(name.split("_")[1] for name in names)
    assert set(speakers.values()) == {500} and len(speakers) == 5
    for name, label, frames, of in zip(names, labels, inputs, theirs, strict=True):
        samples = len(of["audio"].int64_list.value)
        assert name[0] == str(label)
        assert frames.shape == (1 + max(0, samples - 200) // 80, 40)  # of 25 ms, every 10 ms
        assert frames.dtype == np.float32


def make(tmp_path, features, rows, *, name="tiny", supervised=None, fields=None, **splits):
    prepare(tmp_path / name / "1.0.0", features, supervised, train=rows, **splits)
    return tfds.read(name, tfds.find(name, tmp_path), fields)


def refusal(*args, **options):
    with pytest.raises(UsageError) as error:
        make(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_texts_with_a_label(tmp_path):
    features = {"sentence": kinds.Text(), "label": CLASSES, "id": kinds.Text(), "n": np.int32}
    rows = [
        {"sentence": text, "label": label, "id": f"no {n}", "n": n}
        for n, (text, label) in enumerate([("a  bee, ", 1), ("Ähm", 0), ("x", -1)])
    ]
    raw = make(tmp_path, features, rows, test=rows[:2])
    assert raw.splits["train"][0].tolist() == ["a  bee, ", "Ähm"]
    assert raw.splits["train"][1].tolist() == [1, 0] and raw.output == "label"
    assert raw.names == {"train": ["no 0", "no 1"], "test": ["no 0", "no 1"]}
    named = make(tmp_path, features, rows, name="named", fields=("id", "label"))
    assert named.splits["train"][0].tolist() == ["no 0", "no 1"]
    rows[0]["sentence"], rows[1]["sentence"] = " \t", b"\xff"
    assert refusal(tmp_path, features, rows, name="bytes") == (
        "bytes (train): record 1: sentence is not UTF-8"
    )


@pytest.mark.parametrize("blank", ["", " \t", "\u2003"])
def test_records_without_text_are_left_out(tmp_path, blank):
    features = {"sentence": kinds.Text(), "label": CLASSES}
    rows = [{"sentence": text, "label": 1} for text in ("a", blank, "b")]
    raw = make(tmp_path, features, rows)
    assert raw.splits["train"][0].tolist() == ["a", "b"]
    assert raw.source == (
        "TensorFlow Datasets, tiny 1.0.0, left out for want of sentence or label: 1 of 3 in train"
    )


def test_supervised_keys_decide(tmp_path):
    features = {"a": kinds.Text(), "b": kinds.Text(), "label": CLASSES, "other": CLASSES}
    rows = [{"a": f"a{i}", "b": f"b{i}", "label": 0, "other": i % 2} for i in range(4)]
    raw = make(tmp_path, features, rows, supervised=("b", "other"))
    assert raw.splits["train"][0].tolist() == ["b0", "b1", "b2", "b3"]
    assert raw.splits["train"][1].tolist() == [0, 1, 0, 1]
    assert raw.source == "TensorFlow Datasets, tiny 1.0.0, b to other"
    assert refusal(tmp_path, features, rows, name="none").endswith(
        "found a (Text), b (Text), label (ClassLabel), other (ClassLabel); say which: "
        "--fields=INPUT,LABEL, as a,label"
    )
    wrong = refusal(tmp_path, features, rows, name="wrong", supervised=("label", "a"))
    assert "say which" in wrong


def test_labels_of_tokens(tmp_path):
    features = {
        "tokens": kinds.Sequence(kinds.Text()),
        "lemmas": kinds.Sequence(np.str_),
        "tags": kinds.Sequence(CLASSES),
    }
    rows = [
        {"tokens": ["a", "b", "c"], "lemmas": ["d"], "tags": ["bee", -1, "ant"]},
        {"tokens": ["e"], "lemmas": [], "tags": ["ant"]},
    ]
    raw = make(tmp_path, features, rows)
    assert raw.output == "labels" and raw.class_names == ("ant", "bee")
    assert raw.splits["train"][0].tolist() == [("a", "b", "c"), ("e",)]
    assert [of.tolist() for of in raw.splits["train"][1]] == [[1, -1, 0], [0]]
    assert (tmp_path / "tiny" / "1.0.0" / "tags.labels.txt").is_file()
    untagged = [*rows, {"tokens": ["f"], "lemmas": [], "tags": [-1]}]
    assert len(make(tmp_path, features, untagged, name="untagged").splits["train"][0]) == 2
    rows[1]["lemmas"] = ["f"]
    assert refusal(tmp_path, features, rows, name="short", fields=("lemmas", "tags")) == (
        "short (train): record 0: expected a label of tags for each of its 1 inputs, found 3"
    )
    rows[0]["lemmas"] = ["x", "y", "z"]
    lemmas = {key: features[key] for key in ("lemmas", "tags")}
    rows = [{key: row[key] for key in lemmas} for row in rows[:1]]
    assert make(tmp_path, lemmas, rows, name="only").splits["train"][0].tolist() == [
        ("x", "y", "z")
    ]


def test_two_texts(tmp_path):
    rows = [{"question": " how  many", "answer": "", "id": "q"}] * 2
    raw = make(tmp_path, {key: kinds.Text() for key in rows[0]}, rows)
    assert raw.splits["train"][0].tolist() == [("how", "many")] * 2
    assert raw.splits["train"][1].tolist() == [()] * 2 and raw.names["train"] == ["q", "q"]
    rows = [{"de": "ja", "en": "yes indeed"}] * 2
    languages = kinds.Translation(languages=["de", "en"])
    raw = make(tmp_path, languages, rows, name="both", supervised=("en", "de"))
    assert raw.splits["train"][0].tolist() == [("yes", "indeed")] * 2
    assert refusal(tmp_path, languages, rows, name="either") == (
        "either: expected an image, a tensor of rank 2 or 3, audio, a text or tokens, and class "
        "labels or a second text, found de (Text), en (Text); say which: --fields=INPUT,LABEL, "
        "as en,de"
    )


@pytest.mark.parametrize(
    "feature",
    [
        kinds.Tensor(shape=(None, 2), dtype=np.float32),
        kinds.Sequence(kinds.Tensor(shape=(2,), dtype=np.float32)),
    ],
)
def test_sequences_of_vectors_of_any_length(tmp_path, feature):
    features = {"path": feature, "label": CLASSES, "marks": kinds.Sequence(CLASSES)}
    paths = [np.arange(2 * t, dtype=np.float32).reshape(t, 2) + t for t in (3, 3, 1)]
    rows = [{"path": x, "label": i % 2, "marks": [i % 2] * len(x)} for i, x in enumerate(paths)]
    raw = make(tmp_path, features, rows, fields=("path", "label"), test=rows[:2])
    for split, n in (("train", 3), ("test", 2)):
        inputs = raw.splits[split][0]
        assert inputs.dtype == object and inputs.shape == (n,)
        for found, path in zip(inputs, paths, strict=False):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, path)
    each = make(tmp_path, features, rows, name="each", fields=("path", "marks"))
    assert each.output == "labels"
    assert [of.tolist() for of in each.splits["train"][1]] == [[0, 0, 0], [1, 1, 1], [0]]
    same = make(tmp_path, features, rows[:2], name="same", fields=("path", "label"))
    np.testing.assert_array_equal(same.splits["train"][0], paths[:2])
    rows[2]["path"] = np.array([[1, np.nan]], np.float32)
    assert refusal(tmp_path, features, rows, name="nan", fields=("path", "label")) == (
        "nan (train): record 2: expected finite numbers"
    )
    rows[2]["path"], rows[2]["marks"] = np.zeros((0, 2), np.float32), []
    some = make(tmp_path, features, rows, name="some", fields=("path", "label"))
    assert len(some.splits["train"][0]) == 2


def with_audio(folder, feature="sound", **audio):
    """Says that a feature is audio: TFDS cannot construct one without TensorFlow."""
    path = folder / "features.json"
    content = json.loads(path.read_text())
    node = content["featuresDict"]["features"][feature]
    known = {"shape": node["tensor"]["shape"], "dtype": "int64", "encoding": "NONE"}
    audio = {key: value for key, value in (known | audio).items() if value is not None}
    name = "tensorflow_datasets.core.features.audio_feature.Audio"
    content["featuresDict"]["features"][feature] = {"pythonClassName": name, "audio": audio}
    path.write_text(json.dumps(content))


def test_audio(tmp_path):
    features = {"sound": kinds.Tensor(shape=(None,), dtype=np.int64), "label": CLASSES}
    rng = np.random.default_rng(0)
    waves = [rng.integers(-9999, 9999, n) for n in (1600, 2000, 300)]
    rows = [{"sound": wave, "label": i % 2} for i, wave in enumerate(waves)]
    folder = tmp_path / "tiny" / "1.0.0"
    prepare(folder, features, train=rows)

    def read(**audio):
        prepared = (folder / "features.json").read_text()
        with_audio(folder, **audio)
        try:
            return tfds.read("tiny", folder)
        finally:
            (folder / "features.json").write_text(prepared)

    lengths = {
        rate: [len(frames) for frames in read(sampleRate=str(rate)).splits["train"][0]]
        for rate in (8000, 16000)
    }
    assert lengths == {8000: [18, 23, 2], 16000: [8, 11, 1]}
    with pytest.raises(UsageError) as error:
        read()
    assert str(error.value) == ("tiny (train): expected a sampleRate of sound in features.json")
    for encoded in ({"lazyDecode": True}, {"encoding": "ZLIB"}):
        with pytest.raises(UsageError) as error:
            read(sampleRate="8000", **encoded)
        assert str(error.value).endswith("found label (ClassLabel), sound (Audio, encoded)")
    rows[1]["sound"] = waves[0][:0]
    prepare(tmp_path / "silent" / "1.0.0", features, train=rows)
    with_audio(tmp_path / "silent" / "1.0.0", sampleRate="8000")
    raw = tfds.read("silent", tmp_path / "silent" / "1.0.0")
    assert [len(frames) for frames in raw.splits["train"][0]] == [18, 2]


def test_features_that_are_not_needed_need_not_be_readable(tmp_path):
    features = {"text": kinds.Text(), "label": CLASSES, "odd": kinds.Text()}
    rows = [{"text": "a", "label": 0, "odd": "x"}] * 2
    folder = tmp_path / "tiny" / "1.0.0"
    prepare(folder, features, train=rows)
    path = folder / "features.json"
    content = json.loads(path.read_text())
    nodes = content["featuresDict"]["features"]
    nodes["odd"] = {"pythonClassName": "no.such.module.Odd", "jsonFeature": {"json": "{}"}}
    path.write_text(json.dumps(content))
    raw = tfds.read("tiny", folder)
    assert raw.splits["train"][0].tolist() == ["a", "a"]
    assert raw.source == "TensorFlow Datasets, tiny 1.0.0, text to label"
    del nodes["text"]
    audio = "tensorflow_datasets.core.features.audio_feature.Audio"
    old = {"shape": [None], "dtype": "int64", "file_format": "wav", "sample_rate": 8000}
    nodes["sound"] = {"pythonClassName": audio, "jsonFeature": {"json": json.dumps(old)}}
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError) as error:
        tfds.read("tiny", folder)
    assert str(error.value).endswith(
        "found label (ClassLabel), odd (Odd), sound (Audio, which needs tensorflow)"
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"featuresDict": {}}', '{"type": "X"}'])
def test_a_set_that_is_not_whole(tmp_path, content):
    rows = [{"text": "a", "label": 0}] * 2
    folder = tmp_path / "tiny" / "1.0.0"
    prepare(folder, {"text": kinds.Text(), "label": CLASSES}, train=rows)
    whole = (folder / "features.json").read_text()
    (folder / "features.json").write_text(content)
    for _ in range(2):
        with pytest.raises(UsageError) as error:
            tfds.read("tiny", folder)
        assert str(error.value).startswith(f"tiny: expected a whole prepared set in {folder}, got ")
        (folder / "features.json").write_text(whole)
        (folder / "dataset_info.json").unlink(missing_ok=True)
