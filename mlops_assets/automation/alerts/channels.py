"""The ways by which alerts reach people: Apprise, with time limits and in silence.

The URLs hold passwords: nothing here says more of a channel than its position and its kind.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apprise import AppriseAsset

    from mlops_assets.automation.alerts.outbox import Message

SECONDS, SECONDS_OF_TICK = 10, 25
"""How long a channel may take, and when a tick begins no further message: Dagster gives a tick up
after 60 seconds, and would send everything once more."""

TALKATIVE = {"apprise", "urllib3", "requests", "requests_oauthlib", "oauthlib"}
"""Libraries that log addresses with the tokens in them."""

_sending: ContextVar[bool] = ContextVar("sending", default=False)


class Channels:
    """The channels of one tick; one that has failed is left alone until the next tick.

    Parameters
    ----------
    urls : sequence of str
        Apprise URLs.
    log : logging.Logger
        Where it is said that a channel has not taken a message.
    """

    def __init__(self, urls: Sequence[str], log: logging.Logger) -> None:
        self._urls = urls
        self._log = log
        self._failed: set[int] = set()
        self._end = monotonic() + SECONDS_OF_TICK

    def deliver(self, message: Message) -> set[int] | None:
        """Send a message to its channels, all at the same time; return the ones that took it.

        None when there is no time left in this tick.
        """
        if monotonic() > self._end:
            return None
        wanted = [one for one in message.channels if one not in self._failed]
        if not wanted:
            return set()
        from apprise import AppriseAsset

        asset = AppriseAsset(app_id="mlops", app_desc="mlops_assets", app_url="")
        with ThreadPoolExecutor(len(wanted)) as threads:
            taken = list(threads.map(lambda one: self._send(one, message, asset), wanted))
        took = {one for one, is_taken in zip(wanted, taken, strict=True) if is_taken}
        self._failed.update(set(wanted) - took)
        return took

    def _send(self, position: int, message: Message, asset: AppriseAsset) -> bool:
        from apprise import Apprise, NotifyFormat, NotifyType

        if position >= len(self._urls):
            return True  # there were more channels when the message was written
        name = f"channel {position + 1} of {len(self._urls)}"
        _silence()
        _sending.set(True)
        try:
            channel = Apprise.instantiate(self._urls[position], asset=asset)
            if channel is None:
                self._log.error(f"{name} of MLOPS_ALERT_URLS is no address that Apprise knows")
                return False
            name += f" ({channel.service_name})"
            _silence()  # what the plugin has imported
            sent = Apprise(channel, asset=asset).notify(
                message.body,
                message.title,
                NotifyType(message.kind),
                NotifyFormat.TEXT,
                timeout=SECONDS,
            )
        except Exception as error:  # whatever a plugin raises: its text may hold the address
            self._log.error(f"{name}: {type(error).__name__}")
            return False
        if not sent:
            self._log.error(f"{name} cannot be reached or does not take {message.title!r}")
        return bool(sent)


def _silence() -> None:
    """Let the libraries that send say nothing of what they send, on whatever level."""
    for name in list(logging.Logger.manager.loggerDict):
        if name.partition(".")[0] in TALKATIVE:
            logging.getLogger(name).addFilter(_is_of_others)


def _is_of_others(record: logging.LogRecord) -> bool:
    return not _sending.get()
