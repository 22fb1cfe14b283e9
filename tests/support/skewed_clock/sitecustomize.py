"""Sets the clock of a process wrong by the seconds in `CLOCK_SKEW_S`: Python imports this module when it starts."""

from __future__ import annotations

import os
import time

_right = time.time
_skew_s = float(os.environ.get("CLOCK_SKEW_S", "0"))
time.time = lambda: _right() + _skew_s
