"""What each seed brings: who calls, and what goes wrong."""

import random

from tests.simulation.engines import Illness
from tests.simulation.gateway import Line
from tests.simulation.log import Weather
from tests.simulation.platform import Plan

ORDER = Line("Where is order number two one one seven?", "order_status")
HESITANT = Line("Where is order number two one one seven?", "order_status", pause_after=2)
FALTERING = Line("I want to return order one zero four two.", "start_return", pause_after=5)
RETURNS = Line("How do returns work?", "return_policy")
RETURN = Line("I want to return order one zero four two.", "start_return")
COMPLAINT = Line("I want to make a complaint.", "open_ticket")
PROBLEM = Line("The zipper of my tent is broken.")
STOCK = Line("Do you have tents in stock?", "stock")
GREETING = Line("Hello, can you hear me?", "greeting")
MUSING = Line("Why do cats purr so loudly?", "none")
THANKS = Line("Thank you very much for your help.", "thanks")
THANKS_OVER = Line("Thank you very much for your help.", "thanks", over_ms=400)
RETURNS_OVER = Line("How do returns work?", "return_policy", over_ms=900)
# Nobody answers sooner than that; speech before it goes on with what was said (`processors/intent/core.py` `JOIN_MS`).
AT_ONCE = Line("Do you have tents in stock?", "stock", over_ms=300)
COUGH_OVER = Line(cough_ms=400, over_ms=500)
COUGH_LONG = Line(cough_ms=1900, over_ms=200)
HUM_OVER = Line("Mm-hm, uh-huh, mm-hm.", over_ms=300)
DIGITS = Line(digits="21")
GOODBYE = Line("That is all, thank you, goodbye.", "goodbye")
HANG_UP = Line(hang_up_ms=700)

SCRIPTS = (
    (ORDER, RETURNS, GOODBYE),
    (HESITANT, THANKS_OVER, MUSING, GOODBYE),
    (RETURN, THANKS),
    (COMPLAINT, PROBLEM, GOODBYE),
    (GREETING, STOCK, RETURN, HANG_UP),
    (RETURNS, RETURNS_OVER, ORDER, HANG_UP),
    (MUSING, DIGITS, THANKS, GOODBYE),
    (ORDER, AT_ONCE, COMPLAINT, PROBLEM, THANKS),
    (GOODBYE,),
    (HANG_UP,),
    (FALTERING, HESITANT, COMPLAINT, PROBLEM, GOODBYE),
    (HESITANT, FALTERING, HANG_UP),
    (RETURNS, COUGH_OVER, ORDER, COUGH_OVER, GOODBYE),
    (RETURNS, HUM_OVER, ORDER, HUM_OVER, HUM_OVER, STOCK, GOODBYE),
    (MUSING, HUM_OVER, HESITANT, COUGH_OVER, RETURN, HUM_OVER, HANG_UP),
    (MUSING, COUGH_LONG, RETURNS, COUGH_OVER, RETURNS_OVER, THANKS),
)


def plan_of(seed: int) -> Plan:
    """The plan of a seed. Half of the seeds have one kind of trouble, so that what it breaks is plain to see."""
    chance = random.Random(f"plan {seed}")
    scripts = tuple(chance.choice(SCRIPTS) for _ in range(chance.randint(1, 3)))
    kinds = ["crash", "weather", "freeze", "evict", "clock", "illness", "poison"]
    if chance.random() < 0.5:
        kinds = chance.sample(kinds, 1)
    rate = chance.choice((0.05, 0.2, 0.5))
    return Plan(
        seed,
        scripts,
        mutes=chance.random() < 0.5,
        reports=chance.random() < 0.5,
        workers=chance.randint(1, 3),
        storm_s=chance.uniform(5, 60),
        crashes=rate if "crash" in kinds else 0.0,
        freezes=rate / 2 if "freeze" in kinds else 0.0,
        evictions=rate / 2 if "evict" in kinds else 0.0,
        clock_steps=rate if "clock" in kinds else 0.0,
        clock_skew_s=chance.choice((0.0, 0.5, 2.0)) if "clock" in kinds else 0.0,
        poison=rate if "poison" in kinds else 0.0,
        weather=_weather(chance) if "weather" in kinds else Weather(),
        illness=_illness(chance) if "illness" in kinds else Illness(),
    )


def _weather(chance: random.Random) -> Weather:
    return Weather(
        delay_ms_max=chance.choice((4.0, 30.0)),
        late_share=chance.choice((0.0, 0.02, 0.2)),
        late_ms_max=chance.choice((100.0, 1000.0, 2500.0)),
        duplicate_share=chance.choice((0.0, 0.1, 0.5)),
    )


def _illness(chance: random.Random) -> Illness:
    shares = dict.fromkeys(("crash", "hang", "slow", "garbage"), 0.0)
    for kind in chance.sample(sorted(shares), chance.randint(1, 4)):
        shares[kind] = chance.choice((0.05, 0.2))
    return Illness(**shares, hasty=chance.choice((0.0, 0.3)))
