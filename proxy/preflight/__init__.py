"""`pannier preflight`: the settings tried on the live Redis, before anybody depends on them.

Each step is a line: `pass`, `warn` (Pannier serves, but something is missing) or `fail`, with what was found
and what would mend it. Connections are made, and the way down the ladder of tracking is taken, by the code
that `run` uses. What is tried leaves nothing behind: keys that nobody has are read, the one that is written
is deleted in the same transaction, and the message told to other Panniers names nothing.

Importing this brings no more than what the command line needs; see `proxy.preflight.trial` for the rest.
"""

from __future__ import annotations

from proxy.settings import Settings


def main(settings: Settings, wait: float, as_json: bool) -> int:
    """Try and print; the exit status: 0, or 1 if a step fails. `wait`: seconds to try again for.

    Raises SettingsError for a wrong setting, StartupError if there is no redis-server to bundle.
    """
    import uvloop

    from proxy.preflight.trial import run

    return uvloop.run(run(settings, wait, as_json))
