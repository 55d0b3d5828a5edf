"""Epochs are counted over changes of the data as if each step were looked at."""

from hypothesis import given, settings, strategies as st

from finetune.train.epochs import Epochs

PASTS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 7)), max_size=3)


def walked(past, length, until):
    """Return epoch and place in it of every step, counted one by one."""
    ends, lengths = [end for end, _ in past], [*(length for _, length in past), length]
    data, epoch, done, places = 0, 0, 0, []
    for step in range(until):
        while data < len(ends) and step == ends[data]:
            epoch, done, data = epoch + (done > 0), 0, data + 1
        places.append((epoch, done))
        done += 1
        if done == lengths[data]:
            epoch, done = epoch + 1, 0
    return places


@settings(deadline=None)
@given(PASTS, st.integers(1, 7))
def test_a_place_is_what_counting_one_by_one_gives(past, length):
    past = sorted(past)
    epochs = Epochs.of(past, length)
    places = walked(past, length, 60)
    assert [epochs.place(step) for step in range(60)] == places
    counts = [epochs.count(step) for step in range(60)]
    assert counts == sorted(counts)


@settings(deadline=None)
@given(PASTS, st.integers(1, 7), st.integers(1, 4))
def test_so_many_epochs_are_over_where_the_next_one_begins(past, length, count):
    epochs = Epochs.of(sorted(past), length)
    end = epochs.after(0, count)
    assert epochs.place(end) == (count, 0)
    assert epochs.place(end - 1)[0] < count


@given(st.integers(1, 50), st.integers(0, 200), st.integers(1, 9))
def test_of_one_length_they_are_a_product(length, began, count):
    assert Epochs((length,)).after(began, count) == began + count * length
    assert Epochs((length,)).count(began) == began / length
    assert Epochs((length,)).place(began) == divmod(began, length)
