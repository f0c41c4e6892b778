"""The fixture that keeps tests apart does so."""

import os
from pathlib import Path


def test_home_is_private_to_the_test(nemorun_home: Path) -> None:
    assert os.environ["NEMORUN_HOME"] == str(nemorun_home)
    assert not nemorun_home.exists()
