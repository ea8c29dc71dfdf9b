"""Which messages are sent, and when again: nothing twice within an hour, nothing lost in an outage.

All of it is kept in the cursor of a sensor, whose size is bounded. By which way is `channels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from mlops_assets.automation.alerts.incidents import Incident, named, shown

WINDOW = 3600.0
"""Seconds in which the same trouble is told once."""

TRIES, FIRST_PAUSE = 8, 30.0
"""How often a message is sent to a channel that does not take it, and the seconds before the second
time, doubled every time: an hour in all."""

MOST_NEW = 20
"""Messages of one tick; further troubles are summed up in one more."""

MOST_WAITING, MOST_REMEMBERED = 50, 200
"""Bounds of the cursor: messages to be sent again, and troubles that were told."""


@dataclass
class Message:
    """A message, and the channels that have not taken it yet, by their position."""

    title: str
    body: str
    kind: str
    channels: list[int]
    tries: int = 0
    due: float = 0.0


@dataclass
class Told:
    """A trouble that was told, and what has happened since."""

    at: float
    title: str
    page: str
    since: int = 0


@dataclass
class Outbox:
    """What a sensor remembers from one tick to the next.

    Parameters
    ----------
    told : dict of str to Told
        By the key of the incidents, the one told longest ago first.
    waiting : list of Message
        What some channel has not taken yet, oldest first.
    """

    told: dict[str, Told] = field(default_factory=dict)
    waiting: list[Message] = field(default_factory=list)

    def add(self, incidents: Iterable[Incident], channels: Sequence[int], now: float) -> int:
        """Turn incidents into messages for all channels; return how many were not worth one.

        Those with the same key are one message. What was told less than `WINDOW` ago is counted,
        and the next message about it, at the latest at the end of that time, says how many.
        """
        by_key: dict[str, list[Incident]] = {}
        for incident in incidents:
            by_key.setdefault(incident.key, []).append(incident)
        messages, suppressed = [], 0
        for key, alike in by_key.items():
            told = self.told.get(key)
            if told is not None and _is_within(told, now):
                told.since += len(alike)
                told.page = alike[-1].page
                suppressed += len(alike)
            else:
                self._remember(key, Told(now, alike[0].title, alike[-1].page))
                messages.append(_message(alike, told, channels))
        messages += self._ended_windows(channels, now)
        self.waiting += [
            *messages[:MOST_NEW],
            *_summed_up(messages[MOST_NEW:], channels),
        ]
        return suppressed

    def _remember(self, key: str, told: Told) -> None:
        self.told.pop(key, None)
        self.told[key] = told
        while len(self.told) > MOST_REMEMBERED:
            del self.told[next(iter(self.told))]

    def _ended_windows(self, channels: Sequence[int], now: float) -> list[Message]:
        messages = []
        for key, told in list(self.told.items()):
            if _is_within(told, now):
                continue
            del self.told[key]
            if told.since:
                self._remember(key, Told(now, told.title, told.page))
                body = f"{_since(told)}\n\nthe last one: {told.page}"
                messages.append(Message(f"{told.title} again", body, "warning", list(channels)))
        return messages

    def send(
        self, deliver: Callable[[Message], Set[int] | None], now: float
    ) -> tuple[int, list[Message]]:
        """Try to deliver what is due, oldest first.

        Parameters
        ----------
        deliver : callable
            Returns the channels that took the message; None when there is no time left in this
            tick, which is no try.
        now : float
            Seconds since 1970.

        Returns
        -------
        delivered, given_up : int and list of Message
            How many messages have reached every channel now, and those that are not tried again.
        """
        delivered, given_up = 0, []
        for message in [message for message in self.waiting if message.due <= now]:
            reached = deliver(message)
            if reached is None:
                break
            message.channels = [one for one in message.channels if one not in reached]
            message.due = now + FIRST_PAUSE * 2**message.tries
            message.tries += 1
            if not message.channels:
                delivered += 1
            elif message.tries >= TRIES:
                given_up.append(message)
            else:
                continue
            self.waiting.remove(message)
        too_many = len(self.waiting) - MOST_WAITING
        given_up += self.waiting[: max(too_many, 0)]
        self.waiting = self.waiting[max(too_many, 0) :]
        return delivered, given_up

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Outbox:
        """Return what was dumped; an empty one from nothing.

        Raises
        ------
        TypeError, AttributeError
            It was something else.
        """
        return cls(
            {key: Told(**told) for key, told in state.get("told", {}).items()},
            [Message(**message) for message in state.get("waiting", [])],
        )


def _is_within(told: Told, now: float) -> bool:
    return 0 <= now - told.at < WINDOW  # a clock that was set back ends it


def _since(told: Told) -> str:
    return f"{told.since} more since {_time(told.at)}, not told one by one"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _message(alike: Sequence[Incident], told: Told | None, channels: Sequence[int]) -> Message:
    first, times = alike[0], len(alike)
    partitions = list(dict.fromkeys(one.partition for one in alike if one.partition))
    facts = {
        "step": first.step,
        "partition" if len(partitions) == 1 else "partitions": named(partitions),
        "owners": ", ".join(first.owners),
        "time": _time(first.at),
        "before": _since(told) if told is not None and told.since else None,
    }
    lines = [f"{name}: {value}" for name, value in facts.items() if value]
    page = first.backfill if times > 1 and first.backfill else first.page
    return Message(
        title=f"{first.title} ({times} times)" if times > 1 else first.title,
        body="\n".join([shown(first.details), "", *lines, page]),
        kind=first.kind,
        channels=list(channels),
    )


def _summed_up(messages: Sequence[Message], channels: Sequence[int]) -> list[Message]:
    if not messages:
        return []
    titles = named(list(dict.fromkeys(message.title for message in messages)))
    return [Message(f"{len(messages)} further alerts", titles, "failure", list(channels))]
