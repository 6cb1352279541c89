"""The beginning of CIFAR-10 as a TFDS set, which TFDS finds once this is imported."""

import itertools
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar

COUNTS = {"train_": 2000, "test_": 1000}


class Cifar10_3k(cifar.Cifar10):  # type: ignore[misc]
    """Training images 0 to 1,999 and test images 0 to 999, as CIFAR-10's files have them.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images, section 3.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return self.dataset_info_from_configs(
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _generate_examples(self, split_prefix: str, filepaths: Any) -> Iterator[Any]:
        examples = super()._generate_examples(split_prefix, filepaths)
        for index, example in itertools.islice(examples, COUNTS[split_prefix]):
            yield index, {name: example[name] for name in ("image", "label")}
