"""The commands. Each imports what it needs when it runs, so that `trunkline --help` answers at once."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from api.errors import OperatorError
from processors.access.roles import Role

app = typer.Typer(
    name="trunkline",
    help="Self-hosted voice AI on Apache Kafka: the call is the log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Typer reads annotations at run time and wants Optional spelled out on Python 3.11.
DataDir = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--data-dir",
        envvar="TRUNKLINE_DATA_DIR",
        help="Where the platform keeps everything.",
        show_default="~/.trunkline",
        file_okay=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, one object a line where there are several.")]
Url = Annotated[str, typer.Option(help="The API's base.", show_default="that of the running platform")]
Key = Annotated[str, typer.Option(help="The API key to show.", show_default="TRUNKLINE_API__KEY, where it is set")]
Webhook = Annotated[str, typer.Argument(metavar="ID", help="As `webhooks list` shows it.")]
Platform, Log, Single = "The platform", "What the log holds", "One process, in the foreground (for containers)"


@app.command(rich_help_panel=Platform)
def up(
    data_dir: DataDir = None,
    port: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, max=65535, help="The API's port; 0 takes any free one.", show_default="8080"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once everything is ready.")] = False,
    as_json: Json = False,
) -> None:
    """Start the whole platform on this machine: Kafka, every stage, ClickHouse, the API."""
    from api.cli import running

    if detach:
        running.up_detached(data_dir, port, as_json)
    else:
        running.up(data_dir, port, as_json)


@app.command(rich_help_panel=Platform)
def down(data_dir: DataDir = None) -> None:
    """Stop the platform, in order."""
    from api.cli import running

    running.down(data_dir)


@app.command(rich_help_panel=Platform)
def status(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show each component's process and state; exits with 3 when the platform is not running."""
    from api.cli import running

    raise typer.Exit(running.status(data_dir, as_json))


@app.command(rich_help_panel=Platform)
def restart(
    component: Annotated[str, typer.Argument(help="As `status` names it; STAGE.engine for a stage's model.")],
    data_dir: DataDir = None,
) -> None:
    """Restart one component of the running platform; calls go on."""
    from api.cli import running

    running.restart(component, data_dir)


engines = typer.Typer(invoke_without_command=True)
app.add_typer(engines, name="engines", rich_help_panel=Platform)


@engines.callback()
def show_engines(context: typer.Context, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show the engines that each stage asks: health, breaker, asks, latency; exits with 3 when no stage runs here."""
    from api.cli import engines

    if context.invoked_subcommand is None:
        raise typer.Exit(engines.show(data_dir, as_json))


@engines.command("swap")
def swap_engines(
    role: Annotated[str, typer.Argument(help="stt, llm or tts.")],
    model: Annotated[str, typer.Argument(help="A model of models.yaml, or an engine by its name.")],
    scope: Annotated[str, typer.Option("--for", help="all calls at their next turn, or new ones alone.")] = "all",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Warm another model beside the one at work and let it take over between turns; going back is the same."""
    from api.cli import engines

    engines.swap(role, model, scope, data_dir, as_json)


@app.command(rich_help_panel=Platform)
def demo(
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Kept apart from a real platform's.")] = Path(
        ".trunkline/demo"
    ),
    out: Annotated[Path, typer.Option(help="The call as stereo WAV: caller left, agent right.")] = Path("reply.wav"),
) -> None:
    """Start the platform, play a recorded caller to the demo agent, show what happens, and stop again."""
    from api.demo import run_demo

    raise typer.Exit(asyncio.run(run_demo(data_dir, out)))


@app.command(rich_help_panel=Platform)
def call(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="WAV files of any kind, one for each turn.")],
    agent: Annotated[str, typer.Option(help="Which agent answers.", show_default="the first")] = "",
    url: Url = "",
    key: Key = "",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the call as stereo WAV: caller left, agent right."),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Call an agent and speak the files in real time, each after the reply to the one before."""
    from api.cli import calling

    raise typer.Exit(asyncio.run(calling.call(files, agent, url, key, out, data_dir, as_json)))


@app.command(rich_help_panel=Platform)
def models(
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its hash.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List the models: which are used, whence, licence, hash."""
    from api.cli import models

    raise typer.Exit(models.show(data_dir, verify, as_json))


@app.command(rich_help_panel=Platform)
def capacity(
    sessions: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, help="Calls at once; repeat for a row each.", show_default=False),
    ] = None,
    profile: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE", help="What everything takes.", show_default="infra/capacity/cpu.yaml", dir_okay=False
        ),
    ] = None,
    figures: Annotated[bool, typer.Option("--figures", help="Show the profile's figures and their sources.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Compute what so many calls need: partitions, brokers, workers, GPUs, disk, network; and what breaks first."""
    from api.cli import capacity

    if bool(sessions) == figures:
        raise OperatorError("expected either --sessions N or --figures")
    if figures:
        capacity.figures(profile, as_json)
    else:
        capacity.show(sessions or [], profile, data_dir, as_json)


@app.command(rich_help_panel=Log)
def sessions(
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest.")] = 20,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List calls, the newest last."""
    from api.cli import log

    asyncio.run(log.sessions(data_dir, limit, as_json))


@app.command(rich_help_panel=Log)
def show(
    session: Annotated[str, typer.Argument(help="A session's id, as `sessions` lists it, or `last`.")],
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show a call's timeline from the log. It shows what was said: mind who is watching."""
    from api.cli import log

    asyncio.run(log.show(session, data_dir, as_json))


@app.command(rich_help_panel=Log)
def tail(
    topic: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Repeat for several.", show_default="all but audio"),
    ] = None,
    session: Annotated[str, typer.Option(help="Only this session.")] = "",
    from_start: Annotated[bool, typer.Option("--from-start", help="First everything that is there.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Follow the log: events decoded, as they come, until Ctrl-C."""
    from api.cli import log

    asyncio.run(log.tail(topic or [], session, from_start, data_dir, as_json))


@app.command(rich_help_panel=Log)
def topics(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the topics: partitions, retention, records, size, and each consumer group's lag."""
    from api.cli import log

    asyncio.run(log.topics(data_dir, as_json))


@app.command(rich_help_panel=Log)
def sql(
    query: Annotated[str, typer.Argument(help="A SELECT, in ClickHouse's dialect.", show_default=False)] = "",
    question: Annotated[str, typer.Option(help="Ask a ready question instead, by its name.")] = "",
    questions: Annotated[bool, typer.Option("--questions", help="List the ready questions.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Ask ClickHouse; read only."""
    from api.cli import analytics

    if bool(query) + bool(question) + questions != 1:
        raise OperatorError("expected one of a query, --question NAME and --questions")
    if questions:
        analytics.questions(as_json)
    elif question:
        analytics.question(question, data_dir, as_json)
    else:
        analytics.sql(query, data_dir, as_json)


@app.command(rich_help_panel=Log)
def erase(
    session: Annotated[str, typer.Argument(help="A session's id, as `sessions` lists it.", show_default=False)] = "",
    caller: Annotated[str, typer.Option(help="Erase every session of this caller instead.")] = "",
    reason: Annotated[str, typer.Option(help="Why; the certificate says so. Name nobody in it.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also a call that is going on.")] = False,
    verify: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Erase nothing: check that this certificate is what the platform signed.", dir_okay=False),
    ] = None,
    key: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --verify, the public key that is trusted, in PEM.", show_default="this platform's"),
    ] = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="The signed certificates, one a line.")] = False,
) -> None:
    """Forget calls for good: destroy their keys, empty ClickHouse, and certify it. There is no way back."""
    from api.cli import erasure

    if verify is not None:
        erasure.verify(verify, key, data_dir)
    else:
        erasure.erase(session, caller, reason, force, data_dir, as_json)


@app.command(rich_help_panel=Log)
def bi_user(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    tenant: Annotated[str, typer.Option(help="Whose calls the user may ask about; no others.")],
    as_json: Json = False,
) -> None:
    """Make a user who may ask ClickHouse about one tenant's calls."""
    from api.cli import analytics

    analytics.bi_user(name, tenant, as_json)


agreement = typer.Typer(no_args_is_help=True, help="Service levels: a tenant's report, signed.")
app.add_typer(agreement, name="sla", rich_help_panel=Log)


@agreement.command()
def report(
    tenant: Annotated[str, typer.Option(help="Whose.", show_default="the platform's own")] = "",
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="In UTC.", show_default="this month")] = "",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the signed report there, as JSON.", dir_okay=False),
    ] = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="The signed report, as JSON.")] = False,
) -> None:
    """Compute attainment, error budgets and burn rates from the events."""
    from api.cli import sla

    sla.report(tenant, month, out, data_dir, as_json)


@agreement.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A signed report.")],
    key: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The public key that is trusted, in PEM.", show_default="this platform's"),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Check that a report is what this platform signed; exits with 1 when it is not."""
    from api.cli import sla

    sla.verify(file, key, data_dir)


@agreement.command(name="key")
def public_key(data_dir: DataDir = None) -> None:
    """Print the public key that reports can be verified with."""
    from api.cli import sla

    sla.key(data_dir)


audit = typer.Typer(
    no_args_is_help=True, help="The audit record: verify it, export a call, keep a copy of what is signed."
)
app.add_typer(audit, name="audit", rich_help_panel=Log)
Keys = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(help="A public key that is trusted, in PEM; repeat for older ones.", show_default="this platform's"),
]


@audit.command(name="verify")
def verify_calls(
    session: Annotated[str, typer.Argument(help="A session's id, as `sessions` lists it.", show_default=False)] = "",
    everything: Annotated[bool, typer.Option("--all", help="Everything that is there.")] = False,
    key: Keys = None,
    anchor: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A checkpoint kept elsewhere (`audit anchor`), which must be there still."),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Compare Kafka, ClickHouse and what was signed; exits with 1 and names what is not as it was."""
    from api.cli import audit

    if bool(session) == everything:
        raise OperatorError("expected a session or --all")
    raise typer.Exit(asyncio.run(audit.verify(session, key or [], anchor, data_dir, as_json)))


@audit.command(name="export")
def export_call(
    session: Annotated[str, typer.Argument(help="A session's id, as `sessions` lists it.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A new folder.", show_default="audit-SESSION", file_okay=False),
    ] = None,
    key: Keys = None,
    masked: Annotated[bool, typer.Option(help="Without what the call's tenant masks: words, and their sound.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write a call to a folder that anybody can verify without Trunkline. It holds what was said."""
    from api.cli import audit

    asyncio.run(audit.export(session, out, key or [], masked, data_dir, as_json))


@audit.command(name="anchor")
def keep_anchor(
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write it there.", dir_okay=False),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Print the newest signed checkpoint, to be kept elsewhere."""
    from api.cli import audit

    audit.anchor(out, data_dir)


@audit.command(name="key")
def audit_key(data_dir: DataDir = None) -> None:
    """Print the public key that checkpoints can be verified with."""
    from api.cli import audit

    audit.key(data_dir)


webhooks = typer.Typer(
    help="Tell other systems of calls over HTTP, signed and in order.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(webhooks, name="webhooks", rich_help_panel=Platform)


@webhooks.command("list")
def list_webhooks(url: Url = "", key: Key = "", data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the webhooks, and how they fare."""
    from api.cli.webhooks import Webhooks

    Webhooks(data_dir, url, key, as_json).list()


@webhooks.command("add")
def add_webhook(
    address: Annotated[str, typer.Argument(metavar="URL", help="Where deliveries are posted to.")],
    event: Annotated[list[str], typer.Option(help="A type, NAME.* or *; repeat for several.")],
    agent: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only calls of this agent; repeat for several.", show_default="all"),
    ] = None,
    since: Annotated[str, typer.Option(help="Also what happened since, in ISO 8601; `start` is all.")] = "",
    description: Annotated[str, typer.Option(help="For people.")] = "",
    url: Url = "",
    key: Key = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Tell a URL of events from now on; prints the secret, which is not shown again."""
    from api.cli.webhooks import Webhooks

    Webhooks(data_dir, url, key, as_json).add(address, event, agent or [], since, description)


@webhooks.command("show")
def show_webhook(webhook: Webhook, url: Url = "", key: Key = "", data_dir: DataDir = None) -> None:
    """Show one webhook as JSON."""
    from api.cli.webhooks import Webhooks

    Webhooks(data_dir, url, key, True).show(webhook)


@webhooks.command("replay")
def replay_webhook(
    webhook: Webhook,
    since: Annotated[str, typer.Option(help="A time in ISO 8601; `start` is all that the log has.")] = "",
    place: Annotated[
        str, typer.Option("--from", metavar="TOPIC:PARTITION:OFFSET", help="A place, as deliveries carry it.")
    ] = "",
    url: Url = "",
    key: Key = "",
    data_dir: DataDir = None,
) -> None:
    """Deliver once more, from a time or a place on, under the same ids."""
    from api.cli.webhooks import Webhooks

    Webhooks(data_dir, url, key, True).replay(webhook, since, place)


@webhooks.command("rotate")
def rotate_webhook(
    webhook: Webhook,
    overlap_s: Annotated[int, typer.Option(min=0, help="How long the old secret signs, too.")] = 86_400,
    url: Url = "",
    key: Key = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a new secret, and print it."""
    from api.cli.webhooks import Webhooks

    Webhooks(data_dir, url, key, as_json).rotate(webhook, overlap_s)


@webhooks.command("test")
def try_webhook(
    webhook: Webhook, url: Url = "", key: Key = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Send a signed test; exits with 1 when it is not taken."""
    from api.cli.webhooks import Webhooks

    raise typer.Exit(Webhooks(data_dir, url, key, as_json).test(webhook))


@webhooks.command("on")
def switch_on_webhook(webhook: Webhook, url: Url = "", key: Key = "", data_dir: DataDir = None) -> None:
    """Go on where it stopped, also after the relay has switched it off."""
    from api.cli.webhooks import Webhooks

    Webhooks(data_dir, url, key, True).switch(webhook, True)


@webhooks.command("off")
def switch_off_webhook(webhook: Webhook, url: Url = "", key: Key = "", data_dir: DataDir = None) -> None:
    """Stop telling it, and keep the place."""
    from api.cli.webhooks import Webhooks

    Webhooks(data_dir, url, key, True).switch(webhook, False)


@webhooks.command("remove")
def remove_webhook(webhook: Webhook, url: Url = "", key: Key = "", data_dir: DataDir = None) -> None:
    """Remove it."""
    from api.cli.webhooks import Webhooks

    Webhooks(data_dir, url, key, False).remove(webhook)


keys = typer.Typer(
    help="API keys: who may do what, and of which tenant.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys, name="keys", rich_help_panel=Platform)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="For people: whose it is.")],
    role: Annotated[Role, typer.Option(help="What it allows; docs/access.md has the table.")],
    tenant: Annotated[
        str, typer.Option(help="Whose calls it reaches, no others; * is all.", show_default="the platform's own")
    ] = "",
    days: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=3650, help="After so many it opens nothing more.", show_default="no end"),
    ] = None,
    requests_per_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.01, max=10_000, help="How often it may ask.", show_default="access.requests_per_s"),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a key, and print it; it is not shown again. From the first one on nobody comes in without."""
    from api.cli import keys

    asyncio.run(keys.create(name, role, tenant, days, requests_per_s, data_dir, as_json))


@keys.command("list")
def list_keys(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the keys, revoked ones too."""
    from api.cli import keys

    asyncio.run(keys.show(data_dir, as_json))


@keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")], data_dir: DataDir = None
) -> None:
    """Revoke a key: it opens nothing from now on, at no gateway."""
    from api.cli import keys

    asyncio.run(keys.revoke(key, data_dir))


voices = typer.Typer(
    help="Voices of your own, from a sample of a person's speech and that person's consent.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(voices, name="voices", rich_help_panel=Platform)
VoiceName = Annotated[str, typer.Argument(metavar="NAME", help="As agents' files name it.")]


@voices.command("add")
def add_voice(
    name: VoiceName,
    sample: Annotated[Path, typer.Argument(help="A WAV file: 3 to 60 s of one person's speech.", dir_okay=False)],
    consent: Annotated[Path, typer.Option(help="A text in which that person agrees; it is kept.", dir_okay=False)],
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Keep a voice; the audit trail tells who did so, and the digests of sample and consent."""
    from api.cli import voices

    asyncio.run(voices.add(name, sample, consent, data_dir, as_json))


@voices.command("list")
def list_voices(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the voices that are kept."""
    from api.cli import voices

    voices.show(data_dir, as_json)


@voices.command("say")
def say_with_voice(
    name: VoiceName,
    text: Annotated[str, typer.Argument(help="What to say.")],
    out: Annotated[Path, typer.Option(help="Where to write the WAV file.", dir_okay=False)],
    language: Annotated[str, typer.Option(help="Which one the text is in.")] = "en",
    speed: Annotated[float, typer.Option(min=0.5, max=2.0, help="Times as fast as the voice speaks by itself.")] = 1.0,
    data_dir: DataDir = None,
) -> None:
    """Have the running engine say something with a voice."""
    from api.cli import voices

    asyncio.run(voices.say(name, text, out, language, speed, data_dir))


@voices.command("remove")
def remove_voice(name: VoiceName, data_dir: DataDir = None) -> None:
    """Forget a voice, its sample and its consent; what agents say is said with another from then on."""
    from api.cli import voices

    asyncio.run(voices.remove(name, data_dir))


@app.command(rich_help_panel=Single)
def worker(
    stage: Annotated[str, typer.Argument(help="stt, intent, llm or tts.")],
    data_dir: DataDir = None,
) -> None:
    """Run one stage with its models, restarting what dies."""
    from api.cli import running

    asyncio.run(running.worker(stage, data_dir))


@app.command(rich_help_panel=Single)
def api(data_dir: DataDir = None) -> None:
    """Run the API."""
    from api.cli import running

    running.become(data_dir, "api.server")


@app.command(rich_help_panel=Single)
def sink(data_dir: DataDir = None) -> None:
    """Run the ClickHouse sink."""
    from api.cli import running

    running.become(data_dir, "processors.clickhouse.sink")


@app.command(rich_help_panel=Single)
def relay(data_dir: DataDir = None) -> None:
    """Run the webhook relay."""
    from api.cli import running

    running.become(data_dir, "processors.webhooks.relay")


@app.command(rich_help_panel=Single)
def crm(data_dir: DataDir = None) -> None:
    """Run the CRM's process: workflows in other systems, customers' health."""
    from api.cli import running

    running.become(data_dir, "processors.crm.clerk")


@app.command(rich_help_panel=Single)
def broker(
    data_dir: DataDir = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where Kafka listens.")] = 9092,
) -> None:
    """Run the embedded Kafka."""
    from api.cli import running

    running.become(data_dir, "streams.broker", "--port", str(port))


def main() -> None:
    """The entry point; an OperatorError is printed as one sentence and becomes the exit code."""
    try:
        app()
    except OperatorError as error:
        print(f"trunkline: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing to say to nobody
        sys.exit(141)


if __name__ == "__main__":
    main()
