"""One settings class for every process and both profiles, read from the environment (`TRUNKLINE_...`).

The embedded platform hands its choices to its processes as the same variables that docker-compose and Helm set.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, IPvAnyNetwork, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

REPOSITORY = Path(__file__).resolve().parent.parent


class KafkaSettings(BaseModel):
    """The cluster; without bootstrap servers the embedded broker is started."""

    bootstrap_servers: str = Field("", description="host:port,...; empty: the embedded broker")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    ssl_ca_location: str = ""
    partitions: int = Field(8, ge=1, le=1000, description="of every conversation topic; fixed once calls have run")
    replication_factor: int = Field(1, ge=1)
    min_insync_replicas: int = Field(1, ge=1)
    retention_days: dict[str, int] = Field(
        default_factory=dict,
        description='days by topic, where the catalogue\'s defaults do not suit: {"voice.audio.in": 7}',
    )
    session_timeout_ms: int = Field(
        10_000, ge=500, description="silence after which a worker's partitions move on; longer than a broker's failover"
    )
    java_home: Path | None = Field(None, description="Java 17+ of the embedded broker; empty: found on the machine")
    heap_mb: int = Field(512, ge=128, description="heap of the embedded broker")
    distribution_dir: Path | None = Field(None, description="an unpacked Apache Kafka 4 to run instead of fetched jars")
    jars_dir: Path = Field(Path.home() / ".cache" / "trunkline" / "kafka", description="where fetched jars are kept")
    maven_url: str = Field("", description="a mirror of Maven Central; empty: Maven Central")


class ClickHouseUser(BaseModel):
    """Who may ask the embedded ClickHouse, and of which tenant alone; `trunkline bi-user` makes one."""

    tenant: str = Field(min_length=1)
    password_hash: str = Field(pattern=r"^scrypt:[0-9a-f]{32}:[0-9a-f]{64}$", repr=False)


class ClickHouseSettings(BaseModel):
    """The analytics store; without a host the embedded chdb keeps it below the data directory."""

    host: str = ""
    port: int = 8123
    username: str = "default"
    password: SecretStr = SecretStr("")
    secure: bool = False
    database: str = "trunkline"
    users: dict[str, ClickHouseUser] = Field(
        default_factory=dict,
        description="of the embedded ClickHouse, each of a tenant; with any, the operator needs a password, too",
    )
    http_port: int = Field(0, description="loopback port on which the embedded ClickHouse answers queries; 0: any")
    answer_s: int = Field(30, ge=1, description="without a sign of life from a server, after which it is asked again")
    batch_rows_max: int = Field(5000, ge=1)
    batch_wait_ms: int = Field(
        1000,
        ge=1,
        description="how long rows wait for company, on a busy machine ten times that: a batch costs a lot",
    )


class ApiSettings(BaseModel):
    """The gateway."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    key: SecretStr | None = Field(
        None, description="an admin's key for all tenants, beside those that `trunkline keys` makes (docs/access.md)"
    )
    sessions_max: int = Field(100, ge=1, description="concurrent calls of one gateway; more are refused")
    partitions: tuple[int, ...] = Field((), description="whose calls this gateway takes, as a JSON list; empty: all")
    spread: int | None = Field(
        None,
        ge=1,
        description="over how many of a gateway's partitions new calls are spread; empty: all, but 2 in `trunkline up` "
        "with a broker of its own. Few cost the log less, and suffice where each stage has one worker",
    )
    frame_ms: int = Field(
        40,
        ge=20,
        le=100,
        description="how often callers' audio is read and written; half of it with few calls, more where many can wait",
    )
    quiet_frame_ms: int = Field(1000, ge=20, le=1000, description="length of frames while a caller is silent")
    barge_in_ms: int = Field(
        1500, ge=0, le=5000, description="sound over the agent, which hushes it, that stops it though it has no words"
    )
    lead_ms: int = Field(5000, ge=200, le=60_000, description="how far speech is sent ahead of what is being heard")
    session_idle_s: float = Field(120.0, gt=0, description="silence from both sides after which a call is ended")
    session_max_s: float = Field(604_800.0, gt=0, description="longest call; within audio's and sessions' retention")
    resume_grace_s: float = Field(
        30.0, ge=0, description="how long a call whose connection was lost waits for its client; 0: ends at once"
    )
    resume_key: SecretStr | None = Field(
        None, description="signs resume tokens, the same for all gateways; empty: resume.key in the data directory"
    )
    public_url: str = Field("", description="the gateway's address as the telephone company reaches it, https://...")
    twilio_auth_token: SecretStr | None = Field(None, description="Twilio's requests must be signed with it")


class AccessSettings(BaseModel):
    """Who may ask the API, besides those who have keys; see docs/access.md."""

    closed: bool = Field(False, description="nobody comes in without a key, not even over loopback before there is one")
    requests_per_s: float = Field(50.0, gt=0, description="of a key without a limit of its own; twice that at once")
    issuer: str = Field("", description="OpenID Connect issuer (`iss`) whose tokens are taken; empty: none are")
    audience: str = Field("", description="what a token must be meant for (`aud`)")
    jwks: str = Field("", description="the issuer's keys: a URL or a file; empty: where its discovery document says")
    jwks_s: float = Field(300.0, gt=0, description="after so long the issuer's keys are looked at again")
    role_claim: str = Field("roles", description="the claim that names roles; dots lead into it: realm_access.roles")
    role_names: dict[str, str] = Field(
        default_factory=dict,
        description='roles by what the issuer calls them, where that differs: {"voice-auditors": "auditor"}',
    )
    tenant_claim: str = Field("tenant", description="the claim that names the tenant; * is all tenants")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.issuer and not self.audience:
            raise ValueError("audience: with an issuer it is needed, or tokens made for others would be taken")
        return self


_READINGS_ON_A_GPU = 16


class EngineSettings(BaseModel):
    """Which engine each stage asks; names are those of infra/models.yaml and of each stage's engine.py.

    `package.module:factory` is an engine of your own: `factory(settings)` gives a `processors.engine.Engine`.
    """

    stt: str = "faster-whisper"
    stt_model: str = Field("", description="a name of models.yaml; empty: the first one listed for the engine")
    embeddings: str = "minilm"
    embeddings_model: str = Field("", description="as stt_model")
    completeness: str = Field(
        "smollm2", description="the language model that tells whole English sentences from broken off ones; empty: none"
    )
    llm: str = "llama-cpp"
    llm_base_url: str = Field("", description="OpenAI-compatible endpoint, for llm=openai")
    llm_base_urls: tuple[str, ...] = Field(
        (), description="several of them, used instead, as a JSON list; each ask goes to the one with least to do"
    )
    llm_first_token_s: float = Field(
        3.0, gt=0, description="an endpoint that has not begun to answer by then has failed, and the next one is asked"
    )
    llm_between_tokens_s: float = Field(2.5, gt=0, description="one that pauses for so long in its answer has failed")
    llm_tools: Literal["protocol", "schema"] = Field(
        "protocol",
        description="how an endpoint's model chooses a tool: OpenAI's tools, or a first answer held to a JSON schema, "
        "as is done with any endpoint that refuses tools",
    )
    llm_model: str = Field("", description="as stt_model; for llm=openai the name that the endpoint knows")
    llm_key: SecretStr = SecretStr("")
    llm_fallback_base_url: str = Field("", description="a second endpoint, asked where the first fails; empty: none")
    llm_fallback_model: str = Field("", description="the name that the second endpoint knows; empty: its first")
    llm_fallback_key: SecretStr = SecretStr("")
    tts: str = "hibari"
    tts_model: str = Field("", description="as stt_model")
    tts_dir: Path | None = Field(
        None, description="for tts=coqui: a model's folder with its config.json; empty: a model of models.yaml"
    )
    tts_fallback: str = Field(
        "espeak-ng", description="program that speaks where the voice fails and it is installed; empty: none"
    )
    device: str = Field("cpu", description="cpu or cuda")
    compute_type: str = Field(
        "",
        description="numbers that stt's model computes with, as CTranslate2 calls them; empty: float16 on cuda, int8",
    )
    threads: int = Field(1, ge=1, description="threads of a model on the CPU; more were no faster beside other work")
    batch_max: int = Field(0, ge=0, le=64, description="readings in one call of stt's model; 0: 16 on cuda, 1 on cpu")
    batch_wait_ms: float = Field(
        5.0, ge=0, le=100, description="on cuda, how long a call with room waits for readings that are under way"
    )
    queue_depth_max: int = Field(32, ge=1, description="asks waiting at one engine; more are refused")
    replicas: int = Field(2, ge=1, le=9, description="processes of each engine of ours; one serves while one is ill")

    drain_s: float = Field(
        3600.0, gt=0, description="after a swap, how long the old engines stay for calls that began with them, at most"
    )

    @property
    def llm_endpoints(self) -> tuple[str, ...]:
        """For llm=openai, the endpoints that stand in for each other; they share model and key."""
        return self.llm_base_urls or (self.llm_base_url,)

    @property
    def readings_at_once(self) -> int:
        """How many readings share a call of stt's model: as set, or else many on a GPU and one on a processor."""
        return self.batch_max or (_READINGS_ON_A_GPU if self.device == "cuda" else 1)


class LoadSettings(BaseModel):
    """Where load counts as overload: new calls are refused before running ones suffer."""

    refuse: bool = Field(True, description="new calls by measured load; false: by api.sessions_max alone")
    calls_min: int = Field(4, ge=0, description="so many calls of a gateway are taken whatever is measured")
    depth_max: int = Field(100, ge=1, description="asks and unacknowledged events of a worker")
    oldest_ms_max: int = Field(1000, ge=1, description="age of the oldest record that a worker has not processed")
    waiting_ms_max: int = Field(600, ge=1, description="how long asks wait for an engine, on average")
    utilisation_max: float = Field(0.5, gt=0, le=1, description="share of engines' time that calls may take together")
    machine_max: float = Field(0.8, gt=0, description="share of the machine's processors; above 1 it is not looked at")
    reply_ms_max: int = Field(2000, ge=1, description="replies slower than that (95th percentile) are overload, anyhow")


class WebhookSettings(BaseModel):
    """The webhook relay; its subscriptions are made over REST."""

    key: SecretStr | None = Field(
        None, description="seals signing secrets, the same for api and relay; empty: webhooks.key in the data directory"
    )
    private_networks: tuple[IPvAnyNetwork, ...] = Field(
        (), description='networks inside yours that may be reached, over http, too, as a JSON list: ["10.1.0.0/16"]'
    )
    retry_s: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="waits between the attempts, as a JSON list; after the last one the message is dead",
    )
    timeout_s: float = Field(15.0, gt=0, description="how long an attempt may take")
    concurrency: int = Field(8, ge=1, le=100, description="requests to one endpoint at once, of different sessions")
    open_max: int = Field(500, ge=1, le=10_000, description="messages to one endpoint neither delivered nor dead")
    payload_bytes_max: int = Field(262_144, ge=1024, description="larger events are sent as their place in the log")
    disable_after_s: float = Field(432_000, gt=0, description="an endpoint that failed for so long is switched off")
    subscriptions_max: int = Field(100, ge=1, le=1000)


class AuditSettings(BaseModel):
    """The audit record."""

    checkpoint_s: float = Field(60.0, gt=0, description="how often the sink signs how far the hash chains are")


class CrmSettings(BaseModel):
    """Workflows in other systems; their pace and breakers are the adapters' own."""

    key: SecretStr | None = Field(
        None, description="makes customers' pseudonyms; empty: crm.key in the data directory, which is to be kept"
    )
    retry_s: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1, 5, 30, 120, 600, 1800, 3600, 7200, 14_400),
        description="waits between the attempts, as a JSON list; after the last one the workflow is dead",
    )
    open_max: int = Field(1000, ge=1, le=100_000, description="workflows neither done nor dead; then it reads no more")
    settle_s: float = Field(
        3.0, ge=0, le=60, description="how long after its end a call is waited for to be whole in the log"
    )


class PrivacySettings(BaseModel):
    """Personal data at rest."""

    seal: bool = Field(True, description="personal fields are written to the log encrypted, under a key for each call")
    keys_dir: Path | None = Field(
        None, description="the calls' keys, the same for all processes; empty: keys in the data directory"
    )
    kms: str = Field("local", description="wraps those keys: local files, or package.module:factory of your own")
    look_s: float = Field(3600.0, gt=0, description="how often the sink looks for what tenants no longer keep")
    policies_dir: Path = Field(
        REPOSITORY / "infra" / "privacy", description="what is masked and how long kept, a YAML file for some tenants"
    )


class Settings(BaseSettings):
    """Everything that can be set; `TRUNKLINE_KAFKA__PARTITIONS=16` sets `kafka.partitions`.

    A container's secret files do, too: /run/secrets/trunkline_api__key holds `api.key`. The environment goes first.
    """

    model_config = SettingsConfigDict(
        env_prefix="TRUNKLINE_",
        env_nested_delimiter="__",
        extra="ignore",
        secrets_dir="/run/secrets",
        secrets_dir_missing="ok",
    )

    data_dir: Path = Path.home() / ".trunkline"
    cache_dir: Path = Field(
        Path.home() / ".cache" / "trunkline",
        description="assembled and verified models, shared by all data directories",
    )
    tenant: str = "demo"
    agents_dir: Path = REPOSITORY / "infra" / "agents"
    models_file: Path = REPOSITORY / "infra" / "models.yaml"
    adapters_dir: Path = Field(
        REPOSITORY / "infra" / "adapters", description="how other systems are asked, a YAML file for each"
    )
    adapter_urls: dict[str, str] = Field(
        default_factory=dict,
        description='addresses of adapters, as JSON: {"sap": "https://host/odata/v4/service"}; with one, it is in use',
    )
    workflows_file: Path | None = Field(
        None, description="what is done in other systems when calls end how; a YAML file"
    )
    sla_dir: Path = Field(REPOSITORY / "infra" / "sla", description="what tenants were promised, a YAML file a tier")
    sla_look_s: float = Field(60.0, gt=0, description="how often the sink looks at tenants' error budgets")
    signing_key_file: Path | None = Field(
        None,
        description="Ed25519 private key (PEM) that signs reports and checkpoints; empty: signing.key in data_dir",
    )
    schema_registry_url: str = Field("", description="a Confluent-compatible registry; empty: the gateway's own")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Prometheus port of this process, for `up` and `worker` of all that they start; 0: any, or none",
    )
    metrics_host: str = Field("127.0.0.1", description="address on which `up` and `worker` serve that page")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    worker: str = Field(
        "0", description="tells the workers of one stage apart, the same after a restart (a pod's name)"
    )
    open_units_max: int = Field(
        2000, ge=1, description="asks and unacknowledged events of a worker; then it reads no more"
    )
    session_kept_s: float = Field(
        86_400.0, gt=0, description="how long stages keep a session that nobody ends, beyond the silence allowed to it"
    )
    dead_letters_per_minute_max: int = Field(20_000, ge=1, description="of one stage; above it the stage stops")
    spares: bool = Field(
        True, description="the supervisor keeps a prepared spare of each stage, gateway and sink: faster, more memory"
    )
    readers: bool = Field(
        True,
        description="`trunkline up` starts sink, webhook relay and CRM clerk, too; false: they run elsewhere",
    )
    erp_url: str = Field("", description="base URL of the demo ERP, for the demo agent's tools")

    kafka: KafkaSettings = Field(default_factory=lambda: KafkaSettings())
    clickhouse: ClickHouseSettings = Field(default_factory=lambda: ClickHouseSettings())
    api: ApiSettings = Field(default_factory=lambda: ApiSettings())
    access: AccessSettings = Field(default_factory=lambda: AccessSettings())
    engines: EngineSettings = Field(default_factory=lambda: EngineSettings())
    load: LoadSettings = Field(default_factory=lambda: LoadSettings())
    webhooks: WebhookSettings = Field(default_factory=lambda: WebhookSettings())
    audit: AuditSettings = Field(default_factory=lambda: AuditSettings())
    crm: CrmSettings = Field(default_factory=lambda: CrmSettings())
    privacy: PrivacySettings = Field(default_factory=lambda: PrivacySettings())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nested names in secret files, as in the environment: `__` between them."""
        return init_settings, env_settings, NestedSecretsSettingsSource(file_secret_settings)

    @cached_property
    def run_dir(self) -> Path:
        """Where the running platform keeps its state files and sockets."""
        return self.data_dir / "run"

    @cached_property
    def keys_dir(self) -> Path:
        """Where the data keys of calls and the keys of tenants are kept."""
        return self.privacy.keys_dir or self.data_dir / "keys"

    @cached_property
    def log_dir(self) -> Path:
        """Where the embedded platform's processes log to, a file each."""
        return self.data_dir / "logs"
