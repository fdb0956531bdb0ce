"""Captions become token ids, by our words or BERT's word pieces, and BERT's weights come into the text tower."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from seed_fast import SeedTokenizer
from seed_fast.convert.stage1 import load_bert, load_official_stage1, to_official_stage1
from seed_fast.model.captions import CLS, PAD, SEP, UNKNOWN, BertCaptions, WordTokenizer, open_captions, split_words
from seed_fast.model.stage1 import Stage1Model
from seed_fast.testing import error_ratio
from tests.train.tiny import CONFIG

CAPTIONS = ["A red circle.", "a blue square, left of a red one", "ein größeres Bild"]


def test_words_are_ordered_by_frequency_and_read_back(tmp_path):
    tokenizer = WordTokenizer.of_captions(CAPTIONS)
    assert tokenizer.words[4:6] == ("a", "red")
    assert list(tokenizer.words[6:]) == sorted(tokenizer.words[6:])
    assert split_words("It's RED.") == ["it", "'", "s", "red", "."]
    tokenizer.save(tmp_path)
    again = open_captions(tmp_path)
    assert again.words == tokenizer.words
    ids, mask = again(CAPTIONS)
    assert ids.dtype == torch.int64
    for row, row_mask, caption in zip(ids, mask, CAPTIONS, strict=True):
        length = int(row_mask.sum())
        assert (row[0], row[length - 1]) == (CLS, SEP)
        assert [again.words[i] for i in row[1 : length - 1]] == split_words(caption)
        assert (row[length:] == PAD).all()
        assert not row_mask[length:].any()


def test_unknown_words_long_captions_and_the_limit():
    tokenizer = WordTokenizer.of_captions(["red red green"], limit=5)
    assert tokenizer.words[4:] == ("red",)
    ids, mask = tokenizer(["red green", "red " * 100, ""])
    assert ids.shape == (3, 32)
    assert ids[0, :4].tolist() == [CLS, 4, UNKNOWN, SEP]
    assert ids[1, -1] == SEP
    assert mask.sum(1).tolist() == [4, 32, 2]


def test_bad_vocabularies_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"must begin with \[PAD\]"):
        WordTokenizer(["a", "b"])
    with pytest.raises(ValueError, match="must differ, got 'a' twice"):
        WordTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "a"])
    with pytest.raises(FileNotFoundError, match=r"must hold vocabulary\.txt"):
        open_captions(tmp_path)


@pytest.fixture
def bert_folder(tmp_path):
    """A BERT of the size of the tiny Q-Former, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "##s", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(3)
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    return tmp_path


def test_bert_gives_tokens_and_weights_to_both_branches(bert_folder, tmp_path):
    captions = BertCaptions(bert_folder)
    ids, mask = captions(["a red circles.", "red"])
    assert ids[0].tolist() == [2, 5, 6, 7, 8, 9, 3]
    assert mask[1].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert captions.size == 11  # and [DEC]
    model = Stage1Model(SeedTokenizer(CONFIG), captions.size, projection_dim=8)
    crossing = model.tokenizer.qformer.layers[0].cross_attention.query.weight.clone()
    load_bert(model, bert_folder)
    from transformers import BertModel

    bert = BertModel.from_pretrained(bert_folder).eval()
    with torch.no_grad():
        bert.embeddings.token_type_embeddings.weight.zero_()  # BLIP-2's BERT has none
        found = model.eval().text(model.tokenizer.qformer, ids, mask)
        peer, truth = (bert.to(dtype)(input_ids=ids, attention_mask=mask).last_hidden_state for dtype in (
            torch.float32, torch.float64))  # fmt: skip
    assert error_ratio(*(each[mask.bool()] for each in (found, peer, truth))) <= 2
    ffn = model.tokenizer.qformer.layers[1].ffn
    assert torch.equal(ffn.up.weight, model.text.ffns[1].up.weight)  # query feed-forwards begin as the text's
    assert torch.equal(ffn.norm.bias, model.text.ffns[1].norm.bias)
    assert torch.equal(crossing, model.tokenizer.qformer.layers[0].cross_attention.query.weight)
    captions.save(tmp_path / "saved")
    assert torch.equal(open_captions(tmp_path / "saved")(["a red circles."])[0][0], ids[0])


def test_bert_of_another_size_is_refused(bert_folder):
    model = Stage1Model(SeedTokenizer(replace(CONFIG, qformer_ffn_dim=32)), 11, projection_dim=8)
    with pytest.raises(ValueError, match=r"dense\.weight must be \[32, 16\] for this config, got \[24, 16\]"):
        load_bert(model, bert_folder)


def test_parts_of_official_files_are_taken_over():
    source, target = (Stage1Model(SeedTokenizer(CONFIG), 12, projection_dim=8) for _ in range(2))
    weights = {name: value for name, value in to_official_stage1(source).items() if "visual_encoder" not in name}
    left = load_official_stage1(target, weights)
    assert left
    assert all(name.startswith("tokenizer.vit.") for name in left)
    assert torch.equal(target.text.word_embedding, source.text.word_embedding)
    assert not torch.equal(target.tokenizer.vit.cls_token, source.tokenizer.vit.cls_token)
    with pytest.raises(ValueError, match="got none of them"):
        load_official_stage1(target, {"x": torch.zeros(1)})
