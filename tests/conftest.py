"""Fixtures that tests of every kind may ask for by name."""

import os
import tempfile
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from tests.support.kafka import TestBroker, running_broker

# Suites that several modules run tell what differed, as test modules do.
pytest.register_assert_rewrite("tests.support.stt_suite", "tests.support.llm_suite", "tests.support.tts_suite")

# Processes of a platform share the keys of its calls, and those of a test run do so whatever their directories.
_KEYS = tempfile.TemporaryDirectory(prefix="trunkline-keys-")
os.environ.setdefault("TRUNKLINE_PRIVACY__KEYS_DIR", _KEYS.name)

# A slow machine fails no test.
hypothesis.settings.register_profile("trunkline", deadline=None)
hypothesis.settings.load_profile("trunkline")


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A real Kafka broker with the platform's topics, shared by all tests of the run: use session ids of your own."""
    with running_broker(tmp_path_factory.mktemp("kafka"), provisioned=True) as broker:
        yield broker
        # In order: the first such stop on a machine archives the broker's classes, and later starts take half the time.
        broker.stop()


@pytest.fixture
def new_topic(kafka: TestBroker) -> Callable[..., str]:
    """Creates a topic that no other test uses: `new_topic(partitions=2)` returns its name."""
    return kafka.create_topic
