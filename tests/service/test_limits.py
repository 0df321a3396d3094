"""Tests of service/limits.py: pure but for the clock, which is the test's."""

import pytest

from service.errors import TooManyRequestsError
from service.limits import BURST_S, RequestRates


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self):
        """Return the time in seconds."""
        return self.now


def _taken(rates, token="a", most=10_000):
    for number in range(most):
        try:
            rates.take(token)
        except TooManyRequestsError as error:
            return number, error
    return most, None


@pytest.mark.parametrize(("per_s", "burst"), [(10, 50), (0.1, 1), (0.5, 2)])
def test_after_a_pause_a_token_may_ask_as_much_as_in_five_seconds(per_s, burst):
    """At least once, however low the rate is."""
    number, error = _taken(RequestRates(per_s, Clock()))

    assert abs(number - burst) <= 1
    assert "a asks more than" in str(error)


def test_whoever_waits_as_long_as_told_is_let_in():
    """Retry-After is a promise."""
    clock = Clock()
    rates = RequestRates(10, clock)
    _, error = _taken(rates)
    clock.now += float(error.headers["Retry-After"])

    rates.take("a")


def test_over_time_the_rate_holds_and_tokens_do_not_share_it():
    """A hundred seconds of asking without pause."""
    clock = Clock()
    rates = RequestRates(10, clock)
    let_in = 0
    for _ in range(1000):
        clock.now += 0.1
        let_in += _taken(rates)[0]

    assert 1000 <= let_in <= 1000 + 10 * BURST_S + 1
    rates.take("b")
