"""Where the prepared TFDS sets are, and tiny ones made as TFDS makes them."""

import json
from pathlib import Path

import pytest
import tensorflow_datasets as official_tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
PREPARED = DATA / "tfds"
needs_data = pytest.mark.skipif(
    not PREPARED.is_dir(), reason="the prepared sets are not beside the project"
)


def records(folder, split):
    """The raw records of a prepared split, past TFDS."""
    (file,) = folder.glob(f"*-{split}.array_record-*")
    reader = array_record_module.ArrayRecordReader(str(file))
    try:
        return reader.read_all()
    finally:
        reader.close()


def prepare(folder, features, supervised=None, **splits):
    """Writes a set as TFDS does."""
    folder.mkdir(parents=True)
    if isinstance(features, dict):
        features = official_tfds.features.FeaturesDict(features)
    features.save_config(folder)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for split, examples in splits.items():
        file = folder / f"tiny-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        for example in examples:
            writer.write(serializer.serialize_example(features.encode_example(example)))
        writer.close()
    info = {
        "name": "tiny",
        "version": folder.name,
        "fileFormat": "array_record",
        "splits": [
            {
                "name": split,
                "shardLengths": [str(len(examples))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, examples in splits.items()
        ],
    }
    if supervised is not None:
        keys = [{"featureKey": key} for key in supervised]
        info["supervisedKeys"] = {"tuple": {"items": keys}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
