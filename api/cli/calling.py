"""`call`: speaks WAV files to an agent and shows what happens."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from api.cli.context import key_of, settings_of
from api.cli.output import print_json
from api.client import CallEvent, TurnSummary, load_turns, place_call
from api.conversation import ConversationView
from api.errors import OperatorError
from api.supervisor import read_state
from streams.settings import Settings


async def call(
    files: Sequence[Path], agent: str, url: str, key: str, out: Path | None, data_dir: Path | None, as_json: bool
) -> int:
    """Makes the call; returns 1 when a turn was not answered."""
    settings = settings_of(data_dir)
    turns = load_turns(files)
    base = url or running_url(settings)
    key = key or key_of(settings)
    if as_json:
        result = await place_call(base, turns, agent=agent, key=key, on_event=_print_event, on_turn=_print_turn)
    else:
        with ConversationView() as view:
            result = await place_call(base, turns, agent=agent, key=key, on_event=view.event, on_turn=view.turn)
    if out is not None:
        try:
            result.write(out)
        except OSError as error:
            raise OperatorError(f"{out}: cannot be written ({error.strerror})") from error
        if not as_json:
            print(f"wrote {out} (caller left, agent right), session {result.session_id}")
    return 1 if any(turn.error for turn in result.turns) else 0


def running_url(settings: Settings) -> str:
    """The base of the running platform's API; raises OperatorError when none is running."""
    state = read_state(settings)
    if state is None:
        raise OperatorError(
            f"no platform is running on {settings.data_dir}; start it with `trunkline up`, or name an API with --url"
        )
    return str(state["url"])


def _print_event(event: CallEvent) -> None:
    print_json({"at_ms": event.at_ms, **event.message})


def _print_turn(turn: TurnSummary) -> None:
    print_json({"type": "summary", **asdict(turn)})
