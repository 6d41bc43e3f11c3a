"""The order of clips: every clip once an epoch, the same on any number of workers."""

from __future__ import annotations

from rayvideo.data.table import batch_indices, epoch_order


def test_each_epoch_visits_every_clip_once_and_in_another_order():
    orders = [epoch_order(10, 0, epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] != epoch_order(10, 1, 0).tolist()


def test_batches_walk_through_the_epochs():
    walked = [clip for step in range(5) for clip in batch_indices(10, 7, step, 4)]
    assert walked == epoch_order(10, 7, 0).tolist() + epoch_order(10, 7, 1).tolist()


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(batch_indices(3, 0, 0, 6)) == [0, 0, 1, 1, 2, 2]


def test_a_step_needs_no_history():
    assert batch_indices(10, 7, 4, 4) == [batch_indices(10, 7, step, 4) for step in range(5)][4]
    assert [batch_indices(10, 7, 2, 8), batch_indices(10, 7, 3, 8)] == [
        batch_indices(10, 7, 4, 4) + batch_indices(10, 7, 5, 4),
        batch_indices(10, 7, 6, 4) + batch_indices(10, 7, 7, 4),
    ]
