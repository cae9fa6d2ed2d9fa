"""Models the tests share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers import models
from zipcache_rt import Model


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return models.smollm2()


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Model:
    return Model(smollm2_path, threads=2)


@pytest.fixture(scope="session")
def gemma3_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.gemma3(tmp_path_factory.mktemp("gemma3"))
