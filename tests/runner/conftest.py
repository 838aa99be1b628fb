import pytest
from runner import tiny_run


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The config of a tiny run whose parts lie on disk."""
    return tiny_run.build(tmp_path_factory.mktemp("tiny"))
