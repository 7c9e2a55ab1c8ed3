"""What a Kafka client met is reported as long as it describes the client, and no longer."""

import math
import socket
import ssl

import pytest
from aiokafka.errors import KafkaConnectionError

from apps.chassis.kafka.client_journal import ClientId, ClientJournal, why_unreachable
from tests.fakes import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(clock: Clock) -> ClientJournal:
    return ClientJournal(clock)


def test_the_last_failure_is_reported_until_it_succeeds_or_is_old(journal: ClientJournal, clock: Clock) -> None:
    journal.failed(("Fetch", 1), "the first")
    clock.now += 1
    journal.failed(("Fetch", 2), "the second")
    assert journal.last_failure() == "the second"
    assert journal.last_failure(since=clock.now + 1) is None
    journal.succeeded(("Fetch", 2))
    assert journal.last_failure() == "the first"
    clock.now += 31
    assert journal.last_failure() is None


def test_only_requests_that_fail_for_long_and_still_fail_count_as_lasting(journal: ClientJournal, clock: Clock) -> None:
    for _ in range(7):
        journal.failed(("Heartbeat", 1), "no heartbeat")
        journal.failed(("connection", 2), "a broker that nobody needs", is_request=False)
        clock.now += 1
    assert journal.lasting_failure() == "no heartbeat"
    clock.now += 5
    assert journal.lasting_failure() is None
    journal.failed(("connection", 2), "a broker that nobody needs", is_request=False)
    assert journal.lasting_failure() is None
    journal.failed(("Heartbeat", 1), "no heartbeat")
    assert journal.lasting_failure() == "no heartbeat"
    journal.succeeded(("Heartbeat", 1))
    assert journal.lasting_failure() is None


def test_throttling_is_reported_by_broker_and_for_all_until_the_next_answer_may_come(
    journal: ClientJournal, clock: Clock
) -> None:
    assert journal.throttled_for() == 0
    assert journal.throttling() is None
    journal.throttled(1, 5.0)
    journal.throttled(2, 3.0)
    journal.throttled(1, 1.0)  # a later answer shortens nothing
    assert (journal.throttled_for(), journal.throttled_for(2), journal.throttled_for(3)) == (5.0, 3.0, 0.0)
    assert journal.throttled_seconds == 9.0
    clock.now += 6
    assert journal.throttled_for() == 0
    assert journal.throttling() == "Kafka throttles this client by its quota"
    clock.now += 2
    assert journal.throttling() is None


def test_a_wait_for_a_rebalance_goes_on_through_repeated_requests(journal: ClientJournal, clock: Clock) -> None:
    journal.joins("group", 35.0)
    clock.now += 5
    assert journal.awaited_rebalance() is None
    journal.joins("group", 35.0)
    clock.now += 5
    assert journal.awaited_rebalance() == "waiting for the rebalance of group group since 10 s"
    assert journal.since_excused_silence() == -30.0
    clock.now += 20
    journal.joined()
    assert journal.awaited_rebalance() is None
    assert journal.since_excused_silence() == 0.0


def test_what_took_too_long_names_the_cause_that_is_known(journal: ClientJournal, clock: Clock) -> None:
    def cause(what: str = "late") -> str:
        with pytest.raises(TimeoutError) as raised, journal.explaining():
            raise TimeoutError(what)
        return str(raised.value)

    journal.failed("committing", "an earlier failure")
    clock.now += 1
    assert cause() == "late"
    journal.throttled(1, 5.0)
    clock.now += 9  # the next answer is delayed too
    assert cause() == "Kafka throttles this client by its quota"
    journal.failed("committing", "broker 1 cannot be reached")
    assert cause() == "broker 1 cannot be reached"
    journal.joins("group", 35.0)
    clock.now += 2
    assert cause() == "waiting for the rebalance of group group since 2 s"


def test_silence_is_excused_no_longer_than_a_rebalance_may_take(journal: ClientJournal, clock: Clock) -> None:
    assert journal.since_excused_silence() == math.inf
    journal.throttled(1, 5.0)
    journal.joins("group", 35.0)
    clock.now += 45
    assert journal.since_excused_silence() == 10.0
    journal.joined()
    assert journal.since_excused_silence() == 10.0


def test_the_brokers_words_about_a_batch_are_reported_once(journal: ClientJournal) -> None:
    journal.refused("events", 1, "no key")
    assert journal.take_message("events", 0) is None
    assert journal.take_message("events", 1) == "no key"
    assert journal.take_message("events", 1) is None


def test_clients_of_each_purpose_have_a_journal_of_their_own() -> None:
    assert ClientId("consumer") == "consumer"
    assert ClientId("consumer").journal is not ClientId("consumer").journal


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "no answer in time"),
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved"),
        (ConnectionRefusedError(111, "Connect call failed"), "connection refused"),
        (OSError(113, "No route to host"), "No route to host"),
        (OSError("Multiple exceptions"), "OSError: Multiple exceptions"),
        (ssl.SSLError(1, "wrong version"), "wrong version"),
        (KafkaConnectionError("closed"), "closed"),
    ],
)
def test_why_an_address_cannot_be_reached_is_reported_in_words(error: Exception, words: str) -> None:
    assert words in why_unreachable(error)
