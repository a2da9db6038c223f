"""Several endpoints: which the settings name, and what servers say of their queues."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from processors.lane import Description, Queue
from processors.llm.openai_compatible import OpenAICompatible
from processors.llm.queue_metrics import queue_of
from processors.rungs import MANNERS, ladder
from streams.clock import SystemClock
from tests.support.engines import settings_in

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3 4B"} 7.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3 4B"} 5.0
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3 4B"} 2.0
vllm:num_requests_waiting{engine="1",model_name="Qwen/Qwen3 4B"} 0.0
vllm:num_requests_waiting_by_reason{reason="capacity"} 90.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
"""
LLAMA_CPP = """\
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
"""


@pytest.mark.parametrize(
    ("page", "queue"),
    [
        (VLLM, Queue(2, 12)),
        (LLAMA_CPP, Queue(1, 2)),
        ("", None),
        ("<html>not found</html>", None),
        ("vllm:num_requests_waiting 3.0", None),
        ("vllm:num_requests_waiting 3.0\nvllm:num_requests_running many", None),
        ("vllm:num_requests_waiting NaN\nvllm:num_requests_running 1.0", None),
        ("vllm:num_requests_waiting\nvllm:num_requests_running{", None),
    ],
)
def test_a_page_of_metrics_becomes_a_queue_or_nothing(page: str, queue: Queue | None) -> None:
    assert queue_of(page.splitlines()) == queue


FIRST, SECOND = "http://one.test:8000/v1", "https://two.test/llm/v1"


@pytest.mark.parametrize(
    ("engines", "addresses"),
    [
        ({"llm_base_url": FIRST}, [FIRST]),
        ({"llm_base_urls": (FIRST, SECOND)}, [FIRST, SECOND]),
        ({"llm_base_url": "http://unused.test/v1", "llm_base_urls": (SECOND,)}, [SECOND]),
    ],
)
async def test_each_endpoint_is_a_lane_with_the_deadlines_of_the_settings(
    tmp_path: Path, engines: dict[str, Any], addresses: list[str]
) -> None:
    settings = settings_in(tmp_path, llm="openai", llm_first_token_s=1.5, llm_between_tokens_s=0.7, **engines)
    one = ladder(settings, "llm", SystemClock())
    assert [lane.name for lane in one.lanes] == [f"llm.{number}" for number in range(len(addresses))]
    assert [lane.client.description.address for lane in one.lanes] == addresses  # type: ignore[attr-defined]
    assert (one.manner.first_s, one.manner.stall_s) == (1.5, 0.7)
    await one.close()


def test_engines_of_ours_keep_their_own_deadlines(tmp_path: Path) -> None:
    assert ladder(settings_in(tmp_path, llm_first_token_s=1.5), "llm", SystemClock()).manner == MANNERS["llm"]


def test_an_address_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TRUNKLINE_ENGINES__LLM_BASE_URLS: expected .*; found 'two.test:8000'"):
        ladder(settings_in(tmp_path, llm="openai", llm_base_urls=(FIRST, "two.test:8000")), "llm", SystemClock())


async def test_an_endpoint_is_described_without_its_secrets(tmp_path: Path) -> None:
    address = "https://user:secret@two.test:8443/llm/v1/?token=secret"
    settings = settings_in(tmp_path, llm="openai", llm_base_url=address, llm_model="m", llm_key=SecretStr("secret"))
    client = OpenAICompatible(settings)
    assert client.description == Description("m", "remote", "https://two.test:8443/llm/v1/")
    await client.close()
