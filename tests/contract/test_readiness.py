"""What /readyz says of a platform in which something keeps dying."""

import os
from pathlib import Path

import httpx
import psutil

from api.supervisor import state_path, write_state
from tests.support.gateway import running_gateway
from tests.support.kafka import TestBroker


async def test_readiness_names_what_keeps_dying(kafka: TestBroker, tmp_path: Path) -> None:
    settings = kafka.settings(data_dir=tmp_path, api={"port": 0})
    created = psutil.Process(os.getpid()).create_time()
    row = {
        "name": "llm",
        "state": "ready",
        "engines": [{"name": "engine-llm.0", "state": "failing", "problem": "no model"}],
    }
    async with running_gateway(settings) as gateway, httpx.AsyncClient(base_url=gateway.http) as http:
        assert (await http.get("/readyz")).json()["status"] == "ready"
        write_state(state_path(settings), {"pid": os.getpid(), "created": created, "components": [row]})
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "failing")
        assert answer.json()["failing"] == ["engine-llm.0"]
        assert int(answer.headers["retry-after"]) > 0
