"""Lists, captions and configs as other programs save them: marks, encodings, columns, depth, and values without end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seed_fast import SeedConfig, limits
from seed_fast._text import decode_text, parse_json, read_lines, shown
from seed_fast.data.lists import DataError, read_list
from seed_fast.lm.pretrained import adapter_config, read_config, read_tokenizer

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")  # the last three write a byte order mark
RECORDS = [{"image": "a.jpg", "caption": "ein Hund, größer"}, {"image": "b.jpg", "caption": "猫"}]
LISTS = {
    "a.jsonl": "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS),
    "a.json": json.dumps(RECORDS, ensure_ascii=False),
    "a.tsv": "".join(f"{record['image']}\t{record['caption']}\n" for record in RECORDS),
    "header.tsv": "caption\timage\n" + "".join(f"{record['caption']}\t{record['image']}\n" for record in RECORDS),
}
DEEP = b"[" * 1_000_000


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", LISTS)
def test_a_byte_order_mark_is_no_part_of_a_list(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LISTS[name].encode(encoding))
    found = [(record.image, record.captions, record.problem) for record in read_list(tmp_path / name, "train")]
    assert found == [(record["image"], (record["caption"],), None) for record in RECORDS]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_is_decoded_as_its_mark_says(encoding: str) -> None:
    assert decode_text("größer".encode(encoding)) == "größer"
    assert parse_json('{"ä": 1}'.encode(encoding)) == {"ä": 1}


def test_a_config_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SeedConfig().to_dict()), encoding="utf-8-sig")
    assert SeedConfig.from_file(tmp_path / "config.json") == SeedConfig()


@pytest.mark.parametrize(
    "text",
    [
        "Caption\tImage\nx\ta.jpg\n",
        "IMAGE\tText\na.jpg\tx\n",
        "id\tFilename\tTitle\n7\ta.jpg\tx\n",
        "x\ta.jpg\n",  # the caption first, and no header
        "\n\na.jpg\tx\n",
        "image\tcaption\r\na.jpg\tx\r\n",
    ],
)
def test_the_columns_of_a_table_are_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(text, newline="")
    found = [(record.image, record.captions, record.problem) for record in read_list(tmp_path / "a.tsv", "train")]
    assert found == [("a.jpg", ("x",), None)]


def test_a_caption_that_is_no_utf8_is_named_and_the_name_of_a_file_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"a.jpg\ta caf\xe9\ncaf\xe9.jpg\tgood\n")
    bad, good = read_list(tmp_path / "a.tsv", "train")
    assert bad.image == "a.jpg"
    assert bad.problem == f"the caption in {tmp_path}/a.tsv:1: expected text in UTF-8, got 0xe9 at byte 5"
    assert (good.image, good.captions, good.problem) == ("caf\udce9.jpg", ("good",), None)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_nested_a_million_deep_is_one_message(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(DEEP)
    if name == "a.json":
        with pytest.raises(DataError, match=r"a\.json: not valid JSON: nested too deep"):
            list(read_list(tmp_path / name, "train"))
    else:
        assert "nested too deep" in str([record.problem for record in read_list(tmp_path / name, "train")])


def test_deep_configs_are_named(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_bytes(DEEP)
    with pytest.raises(ValueError, match=r"config\.json: not a JSON file: nested too deep"):
        SeedConfig.from_file(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"adapter_config\.json: not a JSON file: nested too deep"):
        adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: not a JSON file: nested too deep"):
        read_config(tmp_path)


def test_a_line_without_end_is_refused_before_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_LINE_BYTES", 100)
    (tmp_path / "a.tsv").write_text("a.jpg\tx\n" + "y" * 101)
    lines = read_lines(tmp_path / "a.tsv")
    assert next(lines) == (1, b"a.jpg\tx")
    with pytest.raises(ValueError, match="line 2 has more than 100 bytes"):
        next(lines)


SIZES = {"image_size": 10**18, "codebook_size": 10**30, "qformer_depth": 2**31, "decoder_depth": 10**7, "vit_dim": 1e3}


@pytest.mark.parametrize("field", SIZES)
def test_a_size_that_nobody_can_mean_is_refused_at_once(field: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SeedConfig().to_dict() | {field: SIZES[field]}))
    with pytest.raises(ValueError, match=rf"config\.json: SeedConfig: {field} must be "):
        SeedConfig.from_file(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
def test_deep_files_of_a_language_model_are_named(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / name).write_bytes(DEEP)
    with pytest.raises(ValueError, match=rf"{name}: not a JSON file: nested too deep"):
        read_tokenizer(tmp_path)


LM = {"model_type": "opt", "hidden_size": 8, "num_attention_heads": 2, "ffn_dim": 8, "vocab_size": 9}


@pytest.mark.parametrize(
    ("field", "value"), [("num_hidden_layers", 10**9), ("vocab_size", 10**30), ("hidden_size", "8"), ("ffn_dim", 8.0)]
)
def test_the_config_of_a_language_model_is_checked_too(field: str, value: object, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(LM | {field: value}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{field}"):
        read_config(tmp_path)


def test_any_value_is_shown_in_a_line() -> None:
    shared: object = 1
    for _ in range(60):
        shared = (shared, shared)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (shared, deep, 10**100_000, "x" * 10**6, dict.fromkeys(range(1000))):
        assert len(shown(value)) <= limits.MAX_MESSAGE
    assert shown("a dog") == "'a dog'"
