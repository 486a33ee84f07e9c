"""Test set-up shared by all: helpers on the path, and where real data and real encoders are."""

import os
import sys
from pathlib import Path

import pytest

# The checkout comes before this folder: `launchers` is the package, not the folder of its tests.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from trainer.environment import prepare  # noqa: E402 - the path comes first

prepare()  # before any test loads torch: tests are run beside other work, too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _folder_from(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable} names {folder}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real corpora and click logs (``TNR_TEST_DATA``)."""
    return _folder_from("TNR_TEST_DATA")


@pytest.fixture(scope="session")
def real_encoders() -> Path:
    """Folder of pre-trained encoders (``TNR_TEST_ENCODERS``)."""
    return _folder_from("TNR_TEST_ENCODERS")
