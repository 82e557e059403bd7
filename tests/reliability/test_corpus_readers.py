"""The long tier of what reads files that others may have changed."""

from pathlib import Path

import pytest

from tests.harness.damaged_files import READERS, try_reader

NUM_CASES = 4_000  # of each reader


@pytest.mark.reliability
@pytest.mark.parametrize("reader", READERS)
def test_thousands_of_damaged_files_are_answered_in_words(reader: str, tmp_path: Path) -> None:
    """S13: 4,000 cases of each reader, 0 exceptions other than DreamBoothError."""
    assert try_reader(reader, tmp_path, NUM_CASES) >= NUM_CASES
