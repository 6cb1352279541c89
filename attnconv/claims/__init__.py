"""Claims of the field, each with the smallest experiment that could contradict it."""

from attnconv import tasks
from attnconv.claims import (
    attention_distance,
    conv_as_attention,
    convolutional_start,
    data,
    layouts,
    parameters,
    permutation,
    reach,
    receptive_field,
    sample_complexity,
    scan,
    translation,
)
from attnconv.claims.claim import Claim, Evidence, Setting

CLAIMS: dict[str, Claim] = {
    module.CLAIM.name: module.CLAIM
    for module in (
        parameters,
        sample_complexity,
        translation,
        permutation,
        conv_as_attention,
        data,
        convolutional_start,
        layouts,
        receptive_field,
        attention_distance,
        reach,
        scan,
    )
}

__all__ = ["CLAIMS", "Claim", "Evidence", "Setting", "missing"]


def missing(claim: Claim, setting: Setting) -> list[str]:
    """The sets that a claim needs and that are not in the folder of prepared ones."""
    there = {name.partition(":")[0] for name in tasks.prepared(setting.data_dir)}
    return [name for name in claim.needs if name not in there]
