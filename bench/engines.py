"""What one ask costs each embedded model but the ears (see `bench.stt`): `python -m bench.engines`.

CPU time of this process, with `engines.threads` threads; no platform around. What is spoken are sentences that no
agent has fixed, so that nothing kept is counted.
"""

import argparse
import time
from collections.abc import Sequence

from rich.console import Console

from bench import report
from bench.machine import this_machine
from bench.report import Distribution, Fact, Findings, Row
from processors.engine import Embed, Engine, Generate, Message, Request, Speak, Spoken
from processors.hosted import create
from streams.settings import Settings

QUESTIONS = ("Where is my order, please?", "How many sleeping bags do you have left?", "Can I send back worn boots?")
SENTENCES = (
    "Your order {} left our warehouse this morning.",
    "We have {} sleeping bags of that kind left.",
    "It should arrive on the {}th of November, before noon.",
)
_PERSONA = "You answer the telephone of an outdoor shop. You are friendly and brief: one or two short sentences."


def requests(role: str, repeats: int) -> Sequence[Request]:
    """So many of the role's kind, no two of them with the same words."""
    match role:
        case "embeddings":
            return [Embed((QUESTIONS[n % len(QUESTIONS)] + f" {n}",)) for n in range(repeats)]
        case "llm":
            persona = Message("system", _PERSONA)
            asked = (Message("user", QUESTIONS[n % len(QUESTIONS)] + f" {n}") for n in range(repeats))
            return [Generate((persona, one), max_tokens=60) for one in asked]
        case _:
            return [Speak(SENTENCES[n % len(SENTENCES)].format(n + 5)) for n in range(repeats)]


def measure_role(engine: Engine, role: str, repeats: int) -> Findings:
    """CPU of each ask, and for a voice how much it says for it."""
    engine.warm()
    cpu_ms, spoken_ms = [], 0.0
    for request in requests(role, repeats):
        began_s = time.process_time()
        for reply in engine.answer(request):
            spoken_ms += len(reply.pcm) / 32 if isinstance(reply, Spoken) else 0.0
        cpu_ms.append(1000 * (time.process_time() - began_s))
    facts = [Fact(role, "mean CPU of an ask", round(sum(cpu_ms) / repeats, 1), "ms")]
    if spoken_ms:
        facts.append(Fact(role, "mean length of a sentence", round(spoken_ms / repeats), "ms"))
    return Findings([Row(role, "CPU of an ask", Distribution.of(cpu_ms))], facts)


def measure_engines(settings: Settings, repeats: int) -> Findings:
    """Every role but stt."""
    found = Findings()
    for role in ("embeddings", "llm", "tts"):
        found.add(measure_role(create(settings, role), role, repeats))
    return found


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.engines", description="Measures what an ask costs.")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    machine = this_machine()
    found = measure_engines(Settings(), 3 if parser.parse_args().quick else 20)
    report.show(found, str(machine))
    Console(stderr=True).print(f"Written to {report.write(found, machine.as_dict())}")


if __name__ == "__main__":
    main()
