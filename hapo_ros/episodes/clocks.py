"""Whether the wall clock was set while an episode was recorded."""

# Between two readings a clock that is merely slewed moves by far less; NTP steps one that is off by
# about this much or more.
JUMP_S = 0.1


class ClockWatch:
    """Compares the wall clock with the steady one. Times are in s, of any two such clocks."""

    def __init__(self, wall_s: float, steady_s: float):
        self._began_s, self._offset_s = steady_s, wall_s - steady_s

    def look(self, wall_s: float, steady_s: float) -> tuple[float, float] | None:
        """(s since the start, s that the wall clock was set forward since the last look), if so."""
        jump_s = wall_s - steady_s - self._offset_s
        self._offset_s += jump_s
        return (steady_s - self._began_s, jump_s) if abs(jump_s) > JUMP_S else None
