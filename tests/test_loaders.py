"""Iteration over epochs: order, shards, augmentation, resume."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, SequentialSampler

from lit_robust.data.augment import crop_and_flip
from lit_robust.data.loaders import Samples
from lit_robust.data.resident import ResidentLoader


def loader(n=11, batch_size=2, images=None, weights=None, **kwargs):
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4) if images is None else images
    samples = Samples(torch.arange(n), torch.ones(n) if weights is None else weights)
    return ResidentLoader(samples, images, torch.arange(n) % 3, batch_size=batch_size, **kwargs)


def indices(batches):
    return [batch.index.tolist() for batch in batches]


def order(batches):
    return list(chain.from_iterable(indices(batches)))


def test_batches_are_what_batch_promises():
    batch = next(iter(loader()))
    assert [part.dtype for part in batch] == [torch.float32, torch.int64, torch.int64, torch.float32]
    assert batch.x.shape == (2, 1, 4, 4)
    assert torch.equal(batch.x[:, 0, 0, 0], batch.index / 255)
    assert torch.equal(batch.y, batch.index % 3)


def test_pixels_are_exactly_the_stored_value_over_white():
    values = torch.arange(17, dtype=torch.uint8).view(17, 1, 1, 1)
    x = torch.cat([batch.x for batch in loader(17, images=values, white=16)])
    assert torch.equal(x.flatten(), torch.arange(17) / 16)


def test_without_shuffle_the_order_is_the_samples():
    assert order(loader()) == list(range(11))


@pytest.mark.parametrize("n", [1, 5, 11, 12])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_counts_once_over_all_ranks_and_ranks_have_equal_batches(n, world, shuffle):
    shares = [list(loader(n, rank=rank, world=world, shuffle=shuffle)) for rank in range(world)]
    sizes = [[len(batch.y) for batch in share] for share in shares]
    assert all(size == sizes[0] for size in sizes)
    assert len(loader(n, world=world)) == len(sizes[0])
    counted = torch.zeros(n).index_add(
        0,
        torch.cat([batch.index for share in shares for batch in share]),
        torch.cat([batch.weight for share in shares for batch in share]),
    )
    assert torch.equal(counted, torch.ones(n))


@pytest.mark.parametrize("n", [1, 5, 8, 9, 11, 12])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_in_blocks_the_ranks_take_turns_with_the_batches_of_one_rank(n, world):
    alone = [batch.index.tolist() for batch in loader(n, batch_size=4)]
    walks = [loader(n, batch_size=4, rank=rank, world=world, in_blocks=True) for rank in range(world)]
    shares = [list(walk) for walk in walks]
    assert {len(share) for share in shares} == {len(walk) for walk in walks} == {-(-len(alone) // world)}
    for rank, (walk, share) in enumerate(zip(walks, shares, strict=True)):
        for number, batch in enumerate(share):
            block = number * world + rank
            if block < len(alone):
                assert batch.index.tolist() == alone[block]
                assert batch.weight.tolist() == [1] * len(batch.y)
                assert walk.images_before(number) == sum(map(len, alone[:block]))
            else:
                assert batch.weight.tolist() == [0]  # padding
    assert loader(n, world=world).images_before(0) is None


def test_padding_has_weight_zero_whatever_the_sample_counts_elsewhere():
    shares = [list(loader(3, weights=torch.full((3,), 2.5), rank=rank, world=2)) for rank in range(2)]
    assert torch.cat([batch.weight for share in shares for batch in share]).tolist() == [2.5, 2.5, 2.5, 0.0]


def test_weights_follow_their_samples_through_the_shuffle():
    weights = torch.arange(11) + 0.5
    for batch in loader(weights=weights, shuffle=True):
        assert torch.equal(batch.weight, batch.index + 0.5)


def test_a_last_short_batch_is_kept_unless_dropped():
    assert [len(batch.y) for batch in loader(5)] == [2, 2, 1]
    assert [len(batch.y) for batch in loader(5, drop_last=True)] == [2, 2]
    assert len(loader(5, drop_last=True)) == 2


def test_no_batch_at_all_is_refused():
    with pytest.raises(ValueError, match=r"^batch_size=8 .*drop_last=True"):
        loader(5, batch_size=8, drop_last=True)


def test_each_epoch_has_its_own_order():
    walk = loader(64, shuffle=True)
    orders = []
    for epoch in range(3):
        walk.set_epoch(epoch)
        orders.append(order(walk))
    assert all(sorted(epoch) == list(range(64)) for epoch in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_lightning_finds_the_loader_where_it_looks_for_set_epoch():
    for shuffle in (True, False):
        walk = loader(shuffle=shuffle)
        walk.sampler.set_epoch(3)
        assert walk.epoch == 3
        assert isinstance(walk.sampler, SequentialSampler) != shuffle  # else Lightning warns of shuffling
        assert walk.batch_sampler is None
        assert not isinstance(walk, DataLoader)  # else Lightning would wrap its sampler


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_depends_on_seed_epoch_number_and_rank_alone(rank):
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)

    def batches(seed=5, epoch=3, rank=rank):
        walk = loader(20, images=images, shuffle=True, augment=True, seed=seed, rank=rank, world=2)
        walk.set_epoch(epoch)
        return walk

    expected = list(batches())
    torch.manual_seed(99)
    for again, first in zip(batches(), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    for other in (batches(seed=6), batches(epoch=4), batches(rank=1 - rank)):
        assert not torch.equal(next(iter(other)).x, expected[0].x)


def test_each_batch_of_each_epoch_and_rank_is_augmented_by_draws_of_its_own():
    images = torch.ones(64, 1, 8, 8, dtype=torch.uint8)  # alike, so that only the draws tell batches apart
    seen = []
    for epoch, rank in ((0, 0), (0, 1), (1, 0)):
        walk = loader(64, batch_size=16, images=images, augment=True, rank=rank, world=2)
        walk.set_epoch(epoch)
        seen += [batch.x.flatten() for batch in walk]
    assert len(seen) == 6
    assert len(torch.unique(torch.stack(seen), dim=0)) == 6


def test_loading_draws_nothing_from_the_global_random_numbers():
    state = torch.get_rng_state()
    list(loader(shuffle=True, augment=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_state_goes_on_with_the_batch_that_comes_next():
    images = torch.randint(256, (11, 1, 8, 8), dtype=torch.uint8)
    first, second = (loader(images=images, shuffle=True, augment=True) for _ in range(2))
    first.set_epoch(4)
    batches = iter(first)
    next(batches), next(batches)
    state = first.state_dict()
    assert state == {"epoch": 4, "batches": 2}
    second.load_state_dict(state)
    assert second.state_dict() == state  # a checkpoint may be written before its first batch
    second.set_epoch(4)
    assert len(second) == 6
    for resumed, uninterrupted in zip(second, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(resumed, uninterrupted, strict=True))
    assert second.state_dict() == {"epoch": 4, "batches": 6}
    assert len(indices(second)) == 6  # only the first iteration is a resumed one


def test_a_place_to_resume_at_does_not_outlive_its_epoch():
    walk = loader()
    walk.load_state_dict({"epoch": 4, "batches": 6})
    walk.set_epoch(5)
    assert len(indices(walk)) == 6


def test_asking_for_an_iterator_does_not_use_the_place_up():
    walk = loader()
    walk.load_state_dict({"epoch": 0, "batches": 4})
    iter(walk)
    assert len(indices(walk)) == 2


def test_changed_samples_hold_from_the_next_epoch_on():
    walk = loader(4)
    running = iter(walk)
    next(running)
    walk.samples.indices, walk.samples.weights = torch.tensor([3, 1, 0]), torch.tensor([1.0, 2.0, 3.0])
    assert indices(running) == [[2, 3]]
    assert indices(walk) == [[3, 1], [0]]


def windows(image, padding):
    """Every crop of an image that is allowed, mirrored or not."""
    padded = F.pad(image, [padding] * 4)
    size = image.shape[-1]
    crops = [
        padded[:, top : top + size, left : left + size]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    return torch.stack(crops + [crop.flip(-1) for crop in crops])


def test_each_crop_is_a_window_of_its_own_padded_image_and_each_window_comes_up():
    image = torch.arange(1, 33, dtype=torch.uint8).view(2, 4, 4)
    out = crop_and_flip(image.expand(2000, 2, 4, 4), torch.Generator().manual_seed(0), padding=2)
    same = (out[:, None] == windows(image, padding=2)[None]).flatten(2).all(2)
    assert bool(same.any(1).all())
    counts = same.sum(0)
    assert len(counts) == 50
    assert counts.min() > 15  # 40 expected, standard deviation 6.3
    assert counts.max() < 75


def test_images_of_one_batch_are_shifted_differently():
    out = crop_and_flip(torch.ones(64, 1, 8, 8), torch.Generator().manual_seed(0), padding=4)
    assert len(torch.unique(out.flatten(1), dim=0)) > 20


def test_augmentation_leaves_the_images_as_they_were():
    images = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8)
    kept = images.clone()
    for batch in loader(6, images=images, augment=True):
        batch.x.zero_()
    assert torch.equal(images, kept)
