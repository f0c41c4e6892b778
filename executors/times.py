"""Time limits in Slurm's notations, which every executor takes."""

from __future__ import annotations

import re

from nemorun.errors import ConfigError

_NOTATIONS = re.compile(
    r"""(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+)(?::(?P<day_seconds>\d+))?)?
    |(?P<hours>\d+):(?P<hour_minutes>\d+):(?P<hour_seconds>\d+)
    |(?P<minutes>\d+)(?::(?P<seconds>\d+))?)""",
    re.VERBOSE,
)


def time_limit(value: str | int | None, field: str = "time") -> int | None:
    """The limit in seconds, or None for no limit.

    Takes minutes (a number, too), `minutes:seconds`, `hours:minutes:seconds`, `days-hours`,
    `days-hours:minutes`, `days-hours:minutes:seconds`, and None, `UNLIMITED` or `INFINITE`.
    Raises ConfigError for anything else, and for a limit of nothing.
    """
    if value is None or (isinstance(value, str) and value.strip().upper() in ("UNLIMITED", "INFINITE")):
        return None
    match = None if isinstance(value, bool) else _NOTATIONS.fullmatch(str(value).strip())
    part = {name: int(digits) for name, digits in match.groupdict("0").items()} if match else {}
    seconds = (
        part["days"] * 86400
        + (part["day_hours"] + part["hours"]) * 3600
        + (part["day_minutes"] + part["hour_minutes"] + part["minutes"]) * 60
        + (part["day_seconds"] + part["hour_seconds"] + part["seconds"])
        if part
        else 0
    )
    if seconds <= 0:
        raise ConfigError(
            f"{field}: {value!r} is not a time limit; write minutes, minutes:seconds, hours:minutes:seconds,"
            " days-hours, days-hours:minutes, days-hours:minutes:seconds or UNLIMITED"
        )
    return seconds
