"""The other side of a playback, and time that passes."""

from collections.abc import Iterable

from api.playback import Cut, Effect, Heard, Hush, Play, Playback


class Ear:
    """Takes the speech of one turn, in order and without a gap, and plays it in real time."""

    def __init__(self) -> None:
        self.samples = 0
        self.cut = False
        self.over = 0
        self._quiet_from = 0.0

    def take(self, effects: Iterable[tuple[float, Effect]]) -> None:
        """What is done, and when."""
        for at, effect in effects:
            if isinstance(effect, Play):
                assert not self.cut
                assert effect.chunk.sample_index == self.samples
                self.samples += len(effect.chunk.pcm) // 2
                self._quiet_from = max(at, self._quiet_from) + len(effect.chunk.pcm) / 32
            elif isinstance(effect, Hush):
                assert effect.heard_ms * 16 <= self.samples
                self.samples, self._quiet_from = effect.heard_ms * 16, at
            elif isinstance(effect, Cut):
                self.cut = True
            elif isinstance(effect, Heard):
                self.over += effect.end_of_turn

    def heard_ms(self, at: float) -> int:
        """How much of the turn has been played by then."""
        return int(self.samples / 16 - max(0.0, self._quiet_from - at))


def run(playback: Playback, until: float) -> list[tuple[float, Effect]]:
    """Lets time pass, waking as the playback asks; returns what happened when."""
    happened: list[tuple[float, Effect]] = []
    for _ in range(1000):
        due = playback.due()
        if due is None or due > until:
            return happened
        happened += [(due, effect) for effect in playback.tick(due)]
    raise AssertionError("the playback asks to be woken again and again")
