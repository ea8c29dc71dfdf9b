"""Which messages are sent and when again; channels are only positions here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Set
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.automation.alerts.incidents import Incident, shown
from mlops_assets.automation.alerts.outbox import (
    FIRST_PAUSE,
    MOST_NEW,
    MOST_REMEMBERED,
    MOST_WAITING,
    TRIES,
    WINDOW,
    Message,
    Outbox,
)

Deliver = Callable[[Message], Set[int] | None]


def trouble(title: str = "p/raw failed", details: str = "gone", **more: str) -> Incident:
    return Incident(title, details, "failure", page="http://ui/runs/1", at=0.0, **more)


def all_take(message: Message) -> Set[int]:
    return set(message.channels)


def none_takes(message: Message) -> Set[int]:
    return set()


def reloaded(outbox: Outbox) -> Outbox:
    return Outbox.load(json.loads(json.dumps(outbox.dump())))


def tick(outbox: Outbox, now: float, *incidents: Incident, deliver: Deliver = all_take) -> Outbox:
    """Return what the next tick finds in the cursor."""
    outbox.add(incidents, [0, 1], now)
    outbox.send(deliver, now)
    return reloaded(outbox)


@given(
    st.lists(
        st.tuples(st.integers(0, 2 * int(WINDOW)), st.lists(st.sampled_from("abc"), max_size=4)),
        max_size=12,
    )
)
def test_every_incident_is_told_or_counted(ticks: list[tuple[int, list[str]]]) -> None:
    taken: list[Message] = []

    def take(message: Message) -> Set[int]:
        taken.append(message)
        return {0, 1}

    outbox, now = Outbox(), 0.0
    for pause, names in [*ticks, (WINDOW, []), (WINDOW, [])]:
        now += pause
        outbox = tick(outbox, now, *map(trouble, names), deliver=take)

    told = 0
    for message in taken:
        times = re.search(r"\((\d+) times\)", message.title)
        more = re.search(r"(\d+) more since", message.body)
        told += int(times[1]) if times else 0 if message.title.endswith("again") else 1
        told += int(more[1]) if more else 0
    assert told == sum(len(names) for _, names in ticks)
    assert outbox == Outbox()


@given(st.lists(st.sets(st.sampled_from([0, 1])), max_size=TRIES))
def test_a_channel_never_gets_a_message_twice(answers: list[set[int]]) -> None:
    outbox, now, reached = Outbox(), 0.0, []
    outbox.add([trouble()], [0, 1], now)
    for answer in answers:

        def take(message: Message, answer: set[int] = answer) -> Set[int]:
            reached.extend(answer & set(message.channels))
            return answer

        outbox.send(take, now)
        outbox = reloaded(outbox)
        now += WINDOW

    assert len(reached) == len(set(reached))
    if set(reached) == {0, 1} or len(answers) == TRIES:
        assert outbox.waiting == []


def test_pauses_between_tries_get_longer_and_take_an_hour_in_all() -> None:
    outbox, tried = Outbox(), []

    def refuse(message: Message) -> Set[int]:
        tried.append(now)
        return set()

    outbox.add([trouble()], [0], 0.0)
    for now in range(0, 3 * int(WINDOW), int(FIRST_PAUSE)):
        outbox.send(refuse, now)

    assert [later - earlier for earlier, later in pairwise(tried)] == [
        FIRST_PAUSE * 2**number for number in range(TRIES - 1)
    ]
    assert WINDOW < tried[-1] < 2 * WINDOW


def test_what_a_tick_has_no_time_for_is_no_try() -> None:
    outbox = Outbox()
    outbox.add([trouble("a"), trouble("b")], [0], 0.0)
    outbox.send(lambda message: None, 0.0)

    assert [(message.title, message.tries) for message in outbox.waiting] == [("a", 0), ("b", 0)]


def test_many_different_troubles_at_once_are_summed_up() -> None:
    outbox = Outbox()
    outbox.add([trouble(f"p{number} failed") for number in range(MOST_NEW + 30)], [0], 0.0)

    *single, rest = outbox.waiting
    assert len(single) == MOST_NEW
    assert rest.title == "30 further alerts"
    assert rest.body.startswith("p20 failed, p21 failed")
    assert rest.body.endswith("and 25 more")


def test_a_long_outage_keeps_the_newest_messages_and_a_bounded_cursor() -> None:
    outbox, given_up = Outbox(), 0
    for number in range(250):
        outbox.add([trouble(f"{number} failed", "é" * 10_000)], [0, 1], float(number))
        given_up += len(outbox.send(none_takes, float(number))[1])
        outbox = reloaded(outbox)

    assert len(outbox.waiting) == MOST_WAITING
    assert outbox.waiting[-1].title == "249 failed"
    assert given_up == 250 - MOST_WAITING
    assert len(outbox.told) == MOST_REMEMBERED
    assert len(json.dumps(outbox.dump())) < 300_000


def test_a_clock_that_was_set_back_silences_nothing() -> None:
    outbox = tick(Outbox(), 10 * WINDOW, trouble())
    outbox.add([trouble()], [0], WINDOW)

    assert [message.title for message in outbox.waiting] == ["p/raw failed"]


def test_partitions_of_one_backfill_are_one_trouble_whatever_their_errors() -> None:
    outbox = Outbox()
    days = [
        trouble(details=f"no file for {day}", partition=f"{day}", backfill="http://ui/runs/b/x")
        for day in range(1, 4)
    ]
    outbox.add(days, [0], 0.0)

    [message] = outbox.waiting
    assert message.title == "p/raw failed (3 times)"
    assert "partitions: 1, 2, 3" in message.body
    assert message.body.endswith("http://ui/runs/b/x")


def test_a_failure_in_a_backfill_is_told_after_a_warning_of_it_and_beside_it() -> None:
    warning, failure = (
        Incident(
            "drift in p", kind, kind, page="http://ui/1", at=0.0, backfill="http://ui/runs/b/x"
        )
        for kind in ("warning", "failure")
    )
    outbox = tick(Outbox(), 0.0, warning)
    outbox.add([warning, failure], [0], 1.0)

    assert [message.kind for message in outbox.waiting] == ["failure"]
    together = Outbox()
    together.add([warning, failure], [0], 0.0)
    assert [message.kind for message in together.waiting] == ["warning", "failure"]


def test_the_same_error_without_a_backfill_is_told_by_the_page_of_its_run() -> None:
    outbox = Outbox()
    outbox.add([trouble(partition="1"), trouble(partition="2")], [0], 0.0)

    [message] = outbox.waiting
    assert message.body.endswith("http://ui/runs/1")


@given(st.text())
def test_any_error_text_can_be_shown_remembered_and_told_apart(text: str) -> None:
    incident = trouble(details=text)
    lines = shown(text).splitlines()
    outbox = tick(Outbox(), 0.0, incident)

    assert len(lines) <= 6
    assert all(len(line) <= 300 for line in lines)
    assert list(outbox.told) == [incident.key]


def test_half_a_character_of_a_broken_source_is_told_as_one_that_can_be_sent() -> None:
    outbox = Outbox()
    outbox.add([trouble(details="column \udce9 ist fort 🙁")], [0], 0.0)

    assert outbox.waiting[0].body.startswith("column ? ist fort 🙁")


def test_a_password_is_hidden_also_where_a_long_line_is_cut() -> None:
    assert "hunter2" not in shown(f"{'x' * 280} http://user:hunter2@{'y' * 100}")


def test_whatever_may_be_secret_in_a_url_is_hidden() -> None:
    error = (
        "https://me:p@hunter2@host/a.csv?sig=hunter3&x=1 is gone, 's3://bucket/b?k=hunter4' too?"
    )
    assert shown(error) == "https://…@host/a.csv?… is gone, 's3://bucket/b?…' too?"
