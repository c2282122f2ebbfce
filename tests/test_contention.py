"""A training that does not get the processors says so, once."""

from handful.training.contention import SECONDS, SHARE, Contention


def told(*steps: tuple[float, float]) -> list[str | None]:
    """Return what is said after each (CPU seconds, wall seconds)."""
    contention = Contention()
    said = []
    for computed, passed in steps:
        contention.add(computed, passed)
        said.append(contention.sentence())
    return said


def test_a_thread_that_computes_half_the_time_is_slowed() -> None:
    (said,) = told((SECONDS / 2, SECONDS))
    assert said is not None
    assert "training is slowed (it computes 50% of the time)" in said


def test_a_thread_with_its_own_processor_is_not() -> None:
    assert told((SECONDS, SECONDS), (SHARE * SECONDS, SECONDS)) == [None, None]


def test_a_short_moment_says_nothing_and_many_make_a_judgement() -> None:
    said = told(*[(0.1, SECONDS / 4)] * 4)
    assert said[:3] == [None] * 3
    assert said[3] is not None


def test_it_is_said_once_and_also_when_it_comes_late() -> None:
    busy, free = (0.2 * SECONDS, SECONDS), (SECONDS, SECONDS)
    said = told(free, free, busy, busy)
    assert [text is not None for text in said] == [False, False, True, False]
