"""A short soak: five kills at random moments, and the weights of a run that was never killed."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from soak import Soak, summary


@pytest.mark.slow
def test_a1_to_a4_a_run_killed_five_times_ends_with_the_same_weights(tmp_path):
    """Another seed every time; it is printed, for ``python tests/faults/soak.py --seed``."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    soak = Soak(tmp_path, kills=5, seed=seed, deepspeed=None)
    kills = soak.run()
    print(summary(kills, soak.steps))
    assert len(kills) == 5
    assert all(kill.went_on <= max(kill.step, 0) for kill in kills)
