import pytest
from runs import tiny_run


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The config of a tiny run whose parts are on disk."""
    return tiny_run.build(tmp_path_factory.mktemp("tiny"))
