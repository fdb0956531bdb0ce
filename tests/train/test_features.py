"""The feature cache computes each sample once, survives kills, and is refused where it doesn't fit."""

from __future__ import annotations

import pytest
import torch

from seed_fast.model.weight_hashes import checksum
from seed_fast.testing import error_ratio
from seed_fast.train.features import FeatureCache
from seed_fast.train.stage1 import Stage1
from tests.train.tiny import CONFIG, ListBatches, loop, stage1


class Counting:
    """Features that can be recognised, and how many batches were computed."""

    def __init__(self):
        self.batches = 0

    def __call__(self, batch):
        self.batches += 1
        return batch["pixels"].flatten(1)[:, :6].reshape(-1, 2, 3)


def cache(folder, compute, *, rank=0, dtype=torch.float32, **about):
    return FeatureCache(folder, compute, shape=(2, 3), dtype=dtype, about={"weights": "1", **about}, rank=rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_sample_is_computed_once(tmp_path, dtype):
    compute, data = Counting(), ListBatches(8)
    features = cache(tmp_path / "c", compute, dtype=dtype)
    for _ in range(3):
        for batch in data:
            assert torch.equal(features(batch), Counting()(batch).to(dtype))
    assert compute.batches == 4
    assert features.count == 32
    again = cache(tmp_path / "c", None, dtype=dtype)  # nothing is computed
    for batch in data:
        assert torch.equal(again(batch), Counting()(batch).to(dtype))


def test_what_a_kill_left_half_is_computed_again(tmp_path):
    data = list(ListBatches(8))
    features = cache(tmp_path / "c", Counting())
    for batch in data[:2]:
        features(batch)
    rows, keys = tmp_path / "c" / "rank-00000.rows", tmp_path / "c" / "rank-00000.keys"
    for torn_rows, torn_keys in ((5, 0), (0, 3), (30, 0), (0, 12)):
        features.close()
        rows.write_bytes(rows.read_bytes()[: rows.stat().st_size - torn_rows])
        keys.write_bytes(keys.read_bytes()[: keys.stat().st_size - torn_keys])
        features = cache(tmp_path / "c", Counting())
        assert features.count < 16
        assert all(torch.equal(features(batch), Counting()(batch)) for batch in data[:2])
        assert features.count == 16


def test_two_runs_fill_one_folder_without_each_others_files(tmp_path):
    data, first, second = list(ListBatches(8)), Counting(), Counting()
    one, two = cache(tmp_path / "c", first), cache(tmp_path / "c", second)
    for batch in data[:2]:
        one(batch)
        two(batch)
    assert (first.batches, second.batches) == (2, 0)
    for batch in data[2:]:
        two(batch)
        assert torch.equal(one(batch), Counting()(batch))
    one.close()
    two.close()
    again = cache(tmp_path / "c", None)
    assert all(torch.equal(again(batch), Counting()(batch)) for batch in data)


def test_a_rank_reads_what_another_rank_computed(tmp_path):
    data, first, second = list(ListBatches(8)), Counting(), Counting()
    one, two = cache(tmp_path / "c", first), cache(tmp_path / "c", second, rank=1)
    for batch in data[:2]:
        one(batch)
    for batch in data:
        assert torch.equal(two(batch), Counting()(batch))
    assert (first.batches, second.batches) == (2, 2)


def test_features_of_other_weights_or_sizes_are_refused(tmp_path):
    cache(tmp_path / "c", Counting())
    with pytest.raises(ValueError, match="holds features with weights '1', this run needs '2'"):
        cache(tmp_path / "c", Counting(), weights="2")
    with pytest.raises(ValueError, match="with dtype 'float32', this run needs 'float16'"):
        cache(tmp_path / "c", Counting(), dtype=torch.float16)
    wrong = FeatureCache(tmp_path / "d", Counting(), shape=(3, 2), dtype=torch.float32, about={})
    with pytest.raises(ValueError, match=r"features must be \[8, 3, 2\], got \[8, 2, 3\]"):
        wrong(next(iter(ListBatches(8))))


def test_the_size_is_estimated_and_a_full_disk_named_first(tmp_path):
    features = cache(tmp_path / "c", Counting())
    assert "1000000 samples x 2.4e-05 MB = 0.024 GB" in features.check_space(1_000_000)
    with pytest.raises(ValueError, match="and the disk has"):
        features.check_space(10**15)


def test_a_checksum_tells_weights_apart():
    one, two = stage1().model.tokenizer, stage1().model.tokenizer
    assert checksum(one.vit) == checksum(two.vit)
    with torch.no_grad():
        two.vit.cls_token[0, 0, 0] += 1e-6
    assert checksum(one.vit) != checksum(two.vit)


def test_training_on_cached_features_is_the_same_training(tmp_path):
    plain = stage1()
    loop(plain, tmp_path / "plain")()
    cached = stage1()
    tok = cached.model.tokenizer
    shape = (CONFIG.num_tokens, CONFIG.vit_dim)
    features = FeatureCache(
        tmp_path / "c", lambda batch: tok.vit_features(batch["pixels"]), shape=shape, dtype=torch.float32, about={}
    )
    cached = Stage1(cached.model, cached._captions, dropout=0.0, features=features)
    loop(cached, tmp_path / "cached")()
    assert features.count == 32
    exact = stage1().double()
    loop(exact, tmp_path / "exact")()
    flat = lambda task: torch.cat([p.detach().flatten() for p in task.parameters()])  # noqa: E731
    # Rows computed in another batch may round otherwise.
    assert torch.equal(flat(cached), flat(plain)) or error_ratio(flat(cached), flat(plain), flat(exact)) <= 3
    with pytest.raises(ValueError, match="train_vision needs fresh ViT features"):
        Stage1(cached.model, cached._captions, features=features, train_vision=True)
