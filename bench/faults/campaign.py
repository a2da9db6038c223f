"""One run after another: a call, a fault in the middle of it, and a look at everything that it left."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from httpx import HTTPError

from api.client import CallResult
from api.errors import OperatorError
from bench.faults import evidence, faults
from bench.faults.calls import Played, Trigger, play
from bench.faults.checks import Finding, Kind, check_dead_letters
from bench.faults.faults import Fault, Scene
from bench.faults.plan import Run
from bench.faults.platform import SUPERVISOR, Platform
from bench.faults.proxy import Wire
from bench.faults.reference import Reference, UnfitSpeechError, refer
from bench.faults.silence import Silence, added
from bench.faults.speech import Conversation, Speech
from streams.client import LogError
from tests.support.kafka import TestCluster


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run showed. `struck_ms` is None where the fault's moment never came; `calls` names its sessions.

    `seen` is what each client was sent (milliseconds, message, no audio), kept only where something is wrong.
    """

    run: Run
    conversation: str
    calls: tuple[str, ...]
    struck_ms: float | None
    silences: tuple[Silence, ...]
    findings: tuple[Finding, ...]
    repeats: int
    reconnects: int
    notes: tuple[str, ...]
    seconds: float
    seen: tuple[tuple[tuple[float, Mapping[str, Any]], ...], ...] = ()


@dataclass(slots=True)
class Campaign:
    """A running platform, and what its undisturbed calls are like."""

    platform: Platform
    wire: Wire
    wire_url: str
    speech: Speech
    say: Callable[[str], None] = lambda line: None
    scale: Mapping[str, float] = field(default_factory=dict)
    cluster: TestCluster | None = None
    references: dict[str, Reference] = field(default_factory=dict)
    _letters: evidence.DeadLetterBox = field(default_factory=evidence.DeadLetterBox)
    _poisoned: set[tuple[str, int, int]] = field(default_factory=set)
    _doubtful: set[tuple[str, int, int]] = field(default_factory=set)

    async def learn(self, calls: int, conversations: Iterable[int]) -> None:
        """Holds undisturbed calls of those conversations; raises OperatorError where one is not faultless."""
        for conversation in (self.speech.conversations[number] for number in conversations):
            held = [await self._undisturbed(conversation, number) for number in range(calls)]
            try:
                tickets = [await evidence.tickets_of(self.platform, caller) for caller, _ in held]
                results = [played.result for _, played in held if played.result is not None]
                reference = refer(results, tickets, conversation.words)
                self.references[conversation.name] = reference
            except UnfitSpeechError as error:
                raise OperatorError(f"the undisturbed call {conversation.name}: {error}") from error
            for caller, played in held:
                assert played.result is not None
                _, findings = await evidence.examine(self.platform, played.result, caller, reference)
                if findings:
                    raise OperatorError(f"the undisturbed call {conversation.name}: {findings[0].detail}")

    async def run(self, fault: Fault, run: Run) -> Outcome:
        """Plays the run; the platform is whole again afterwards, or a finding says what is not."""
        began_s = asyncio.get_running_loop().time()
        conversation = self.speech.conversations[run.conversation]
        scene = faults.scene(self.platform, self.wire, run.seed, self.scale, self.cluster)
        findings = [Finding(Kind.PLATFORM, f"not at work before the fault: {name}") for name in await self._settled()]
        callers, played = await self._play(fault, run, conversation, scene, findings)
        findings += [Finding(Kind.PLATFORM, f"not at work after the fault: {name}") for name in await self._settled()]
        findings += [Finding(Kind.CALL, one.error) for one in played if one.result is None]
        held = [(caller, one.result) for caller, one in zip(callers, played, strict=True) if one.result is not None]
        reference = self.references[conversation.name]
        repeats = 0
        try:
            for caller, result in held:
                again, broken = await evidence.examine(self.platform, result, caller, reference)
                repeats += again
                findings += broken
            findings += [*scene.broken, *await self._shared(scene)]
        except (OperatorError, LogError, HTTPError) as error:
            findings.append(Finding(Kind.PLATFORM, f"what was left cannot be looked at: {error}"))
        findings = [finding for finding in findings if finding.kind not in fault.tolerated]
        results = [result for _, result in held]
        return Outcome(
            run=run,
            conversation=conversation.name,
            calls=tuple(result.session_id for result in results),
            struck_ms=next(iter(played[0].struck_ms), None),
            silences=tuple(added(result.events, result.turns, reference) for result in results),
            findings=tuple(findings),
            repeats=repeats,
            reconnects=sum(result.reconnects for result in results),
            notes=tuple(scene.notes),
            seconds=round(asyncio.get_running_loop().time() - began_s, 1),
            seen=tuple(_seen(result) for result in results) if findings else (),
        )

    async def _play(
        self, fault: Fault, run: Run, conversation: Conversation, scene: Scene, findings: list[Finding]
    ) -> tuple[list[str], list[Played]]:
        """The call that is struck, and those held until the fault is over."""
        url = self.wire_url if fault.through_wire else self.platform.url
        striking: list[asyncio.Task[None]] = []
        trigger = Trigger.of(run.moment, conversation, self.references[conversation.name])
        caller = f"{run.seed}#0"
        played = [
            await play(
                url,
                conversation,
                self.speech.agent,
                caller,
                [(trigger, lambda: striking.append(asyncio.create_task(_struck(fault, scene, findings))))],
                scene.sessions.append,
            )
        ]
        callers = [caller]
        if not striking:
            findings.append(Finding(Kind.PLATFORM, f"the moment never came: {run.moment}"))
        while fault.keeps_calling and any(not task.done() for task in striking):
            callers.append(f"{run.seed}#{len(callers)}")
            caller = callers[-1]
            played.append(await play(url, conversation, self.speech.agent, caller, started=scene.sessions.append))
        await asyncio.gather(*striking)
        return callers, played

    async def _shared(self, scene: Scene) -> list[Finding]:
        """What all calls share: the groups' offsets and the dead letters."""
        self._poisoned |= scene.poisoned
        self._doubtful |= scene.doubtful
        settings = self.platform.settings
        letters = await self._letters.examine(
            settings, lambda places: check_dead_letters(places, self._poisoned, self._doubtful)
        )
        return [*letters, *await evidence.examine_offsets(settings, self._doubtful)]

    async def _undisturbed(self, conversation: Conversation, number: int) -> tuple[str, Played]:
        caller = f"undisturbed/{conversation.name}/{number}"
        self.say(f"undisturbed call {number + 1}: {conversation.name}")
        played = await play(self.platform.url, conversation, self.speech.agent, caller)
        if played.result is None:
            raise OperatorError(f"an undisturbed call failed: {played.error}")
        return caller, played

    async def _settled(self) -> Sequence[str]:
        """What is not at work when there was time enough; a platform that is gone altogether is started again."""
        left = await self.platform.settled()
        if SUPERVISOR in left:
            await self.platform.up()
        return left


def _seen(result: CallResult) -> tuple[tuple[float, Mapping[str, Any]], ...]:
    return tuple((event.at_ms, event.message) for event in result.events)


async def _struck(fault: Fault, scene: Scene, findings: list[Finding]) -> None:
    try:
        await fault.strike(scene)
    except (OperatorError, LogError, OSError) as error:
        findings.append(Finding(Kind.PLATFORM, f"{fault.name}: {error}"))
