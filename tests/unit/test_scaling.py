"""infra/kubernetes/scaling.yaml: of the form that KEDA takes, on metrics that there are, with numbers that fit."""

import re
from typing import Annotated, Any, Literal

import pytest
import yaml
from prometheus_client import REGISTRY
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from api.metrics import Metrics
from processors import engine_host, ladder, lane, metrics
from processors.llm import queue_metrics
from processors.pipeline import STAGES
from streams.settings import REPOSITORY, Settings
from tests.unit.test_compose import services

FILE = REPOSITORY / "infra" / "kubernetes" / "scaling.yaml"
DOCUMENT = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
MODULES = (engine_host, ladder, lane, metrics)  # imported for the metrics that they register
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Part(BaseModel):
    """Of a ScaledObject (keda.sh/v1alpha1), as far as it is used here."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class Target(Part):
    api_version: Literal["apps/v1"]
    kind: Literal["StatefulSet", "Deployment"]
    name: Name


class Query(Part):
    """Of the trigger `prometheus`; all of its values are strings."""

    server_address: Annotated[str, StringConstraints(pattern="^https?://")]
    query: str
    threshold: Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?$")]


class Trigger(Part):
    type: Literal["prometheus"]
    name: Name
    metric_type: Literal["Value", "AverageValue"]
    metadata: Query


class Policy(Part):
    type: Literal["Pods", "Percent"]
    value: int = Field(gt=0)
    period_seconds: int = Field(gt=0, le=1800)


class Rules(Part):
    stabilization_window_seconds: int = Field(ge=0, le=3600)
    policies: list[Policy] = Field(min_length=1)


class Behavior(Part):
    scale_up: Rules
    scale_down: Rules


class AutoscalerConfig(Part):
    behavior: Behavior


class Advanced(Part):
    horizontal_pod_autoscaler_config: AutoscalerConfig


class Metadata(Part):
    name: Name


class Spec(Part):
    scale_target_ref: Target
    polling_interval: int = Field(gt=0)
    min_replica_count: int = Field(ge=0)
    max_replica_count: int = Field(ge=1)
    advanced: Advanced
    triggers: list[Trigger] = Field(min_length=1)


class ScaledObject(Part):
    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: Spec


OBJECTS = [ScaledObject.model_validate(one) for one in yaml.safe_load_all(FILE.read_text(encoding="utf-8"))]
STAGE_OBJECTS = [one for one in OBJECTS if one.spec.scale_target_ref.kind == "StatefulSet"]


def exported() -> dict[str, set[str]]:
    """The metrics of workers, engines and gateways with their labels."""
    collectors: list[Any] = [*REGISTRY._names_to_collectors.values(), *vars(Metrics()).values()]
    named = [one for one in collectors if hasattr(one, "_labelnames")]
    return {one._name: set(one._labelnames) for one in named}


@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: str(one.metadata.name))
def test_what_it_scales_by_is_there(one: ScaledObject) -> None:
    known = exported()
    for trigger in one.spec.triggers:
        query = trigger.metadata.query
        names = re.findall(r"\b(trunkline_\w+)(?:\{(\w+)=\"(\w+)\"\})?", query)
        for name, label, value in names:
            assert label in known[name], query
            assert value in STAGES
        served = set(re.findall(r"\bvllm:\w+", query))
        assert names or served
        assert served <= set(queue_metrics.PREFIXES)


def test_each_stage_is_scaled_by_its_own_metrics() -> None:
    assert [one.metadata.name for one in STAGE_OBJECTS] == [f"trunkline-{stage}" for stage in STAGES]
    for one, stage in zip(STAGE_OBJECTS, STAGES, strict=True):
        assert one.spec.scale_target_ref.name == one.metadata.name
        assert all(f'component="{stage}"' in trigger.metadata.query for trigger in one.spec.triggers)


@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: str(one.metadata.name))
def test_the_numbers_fit_those_of_the_platform(one: ScaledObject) -> None:
    room, deadline = (trigger.metadata.threshold for trigger in one.spec.triggers)
    partitions = int(services()["stt"]["environment"]["TRUNKLINE_KAFKA__PARTITIONS"])
    # A worker with fewer than two partitions could have half the work of another.
    assert 2 <= one.spec.min_replica_count < one.spec.max_replica_count <= partitions // 2
    if one.spec.scale_target_ref.kind == "StatefulSet":
        assert float(room) == pytest.approx(0.7 * Settings().load.utilisation_max)
    else:
        flags = yaml.safe_load((REPOSITORY / "infra/engines/vllm.yaml").read_text(encoding="utf-8"))
        assert int(room) == round(0.7 * flags["max-num-seqs"])
    assert 0 < float(deadline) < 1
    down = one.spec.advanced.horizontal_pod_autoscaler_config.behavior.scale_down
    assert down.stabilization_window_seconds >= 600
    assert [(policy.type, policy.value) for policy in down.policies] == [("Pods", 1)]


def test_the_document_names_the_numbers_and_metrics_as_they_are() -> None:
    known = exported()
    named = set(re.findall(r"`(trunkline_\w+?)(?:\{[^`]*)?`", DOCUMENT))
    assert named - {f"{name}{end}" for name in known for end in ("", "_total", "_bucket")} == set()
    for one in OBJECTS:
        for trigger in one.spec.triggers:
            assert f"| {trigger.metadata.threshold} |" in DOCUMENT
            assert re.sub(r'"\w+"', '"STAGE"', trigger.metadata.query) in DOCUMENT or trigger.metadata.query in DOCUMENT
