"""Make a world's random numbers: one independent stream for each purpose and block."""

import numpy as np

from shards.world.settings import WorldSettings

_STREAMS = (
    "words",
    "entities",
    "events",
    "attributes",
    "titles",
    "bodies",
    "users",
    "histories",
    "train",
    "dev",
    "baselines",
    "test",
)


def random_stream(settings: WorldSettings, name: str, block: int = 0) -> np.random.Generator:
    """Return the random numbers of one purpose and block, equal on every machine.

    Args:
        settings: Only the seed is read.
        name: Purpose of the numbers (one of the streams listed in this module).
        block: Number of the block of articles or impressions.
    """
    key = [settings.seed, _STREAMS.index(name), block]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
