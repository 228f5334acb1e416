"""Taking over changed keys and limits without a restart: what SIGHUP does.

Keys and their limits are read again, and of the settings those in `RELOADABLE`. Streams
go on: a limit holds for requests that come from now on, and a revoked key for those it
makes from now on. What cannot be read leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import structlog

from server.admission import Admission
from server.auth import ApiKeys
from server.environment import SettingsError
from server.settings import Settings

RELOADABLE = ("max_requests", "max_queue_ttft_seconds")

log = structlog.get_logger("headrace.reload")


class Reload:
    """Call it to reload. Mutable: the settings that hold now; owned by the event loop's thread."""

    def __init__(
        self,
        *,
        load: Callable[[], Settings],
        settings: Settings,
        admission: Admission,
        keys: ApiKeys | None,
    ) -> None:
        """`load` puts the settings together again, from the sources of the start."""
        self._load = load
        self._settings = settings
        self._admission = admission
        self._keys = keys

    def __call__(self) -> None:
        """Reload what can be reloaded; the log says what was, and what waits for a restart."""
        if self._keys is not None:
            self._keys.reload()
        try:
            fresh = self._load()
        except SettingsError as error:
            log.error("settings_not_reloaded", reason=str(error))
            return
        names = [field.name for field in fields(Settings)]
        changed = [n for n in names if getattr(fresh, n) != getattr(self._settings, n)]
        taken = {name: getattr(fresh, name) for name in changed if name in RELOADABLE}
        self._settings = replace(self._settings, **taken)
        self._admission.max_requests = self._settings.max_requests
        self._admission.max_queue_ttft_seconds = self._settings.max_queue_ttft_seconds
        log.info("settings_reloaded", **taken)
        if waiting := [name for name in changed if name not in RELOADABLE]:
            log.warning("settings_need_restart", names=waiting)
