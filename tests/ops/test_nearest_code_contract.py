"""The registered op: validation, opcheck, torch.compile, dispatch and its messages."""

from __future__ import annotations

import logging

import pytest
import torch

from seed_fast.ops import BackendError, _dispatch, _native, backend, backend_table, explain, nearest_code, pack_codebook

z, codebook = torch.randn(6, 8), torch.randn(20, 8)
BACKENDS = ("cuda", "triton", "cpu", "reference")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((z, torch.randn(20, 9)), ValueError, r"codebook must be \[K, 8\] to match z \[6, 8\], got \[20, 9\]"),
        ((z, torch.randn(20)), ValueError, r"codebook must be \[K, D\] with K, D >= 1, got \[20\]"),
        ((z, torch.empty(0, 8)), ValueError, r"got \[0, 8\]"),
        ((z.long(), codebook), TypeError, "z must be float32, float16, bfloat16 or float64, got torch.int64"),
        ((z, codebook.int()), TypeError, "codebook must be float32.*got torch.int32"),
        ((z.numpy(), codebook), TypeError, "z must be a Tensor, got ndarray"),
        ((z, [1.0]), TypeError, "codebook must be a Tensor or a PackedCodebook, got list"),
        ((torch.tensor(1.0), codebook), ValueError, "to match z"),
        ((z, codebook.to("meta")), ValueError, "codebook must be on cpu like z, got meta"),
    ],
)
def test_wrong_input_is_named(arguments, error, message):
    with pytest.raises(error, match="nearest_code: .*" + message):
        nearest_code(*arguments)


@pytest.mark.parametrize("return_margin", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pack", [False, True])
def test_opcheck(dtype, return_margin, pack):
    packed = pack_codebook(codebook.to(dtype)).packed if pack else None
    arguments = (z.to(dtype), codebook.to(dtype), packed, return_margin)
    torch.library.opcheck(torch.ops.seed_fast.nearest_code.default, arguments)


@pytest.mark.parametrize("pack", [False, True])
def test_compiles_to_one_graph_without_recompiling_on_equal_shapes(pack):
    def codes(x, entries):
        return nearest_code(x * 2, entries, return_margin=True)

    torch._dynamo.reset()
    compiled = torch.compile(codes, fullgraph=True, backend="aot_eager")
    entries = pack_codebook(codebook) if pack else codebook
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            x = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
            for got, expected in zip(compiled(x, entries), codes(x, entries), strict=True):
                assert torch.equal(got, expected)


def test_ids_carry_no_gradient_even_where_the_inputs_do():
    ids, margin = nearest_code(z.clone().requires_grad_(), codebook.clone().requires_grad_(), return_margin=True)
    assert not ids.requires_grad
    assert not margin.requires_grad


def test_float64_goes_to_the_reference():
    assert "runs" in explain("nearest_code", z.double(), codebook.double()).split("reference:")[1]
    assert torch.equal(nearest_code(z.double(), codebook.double()), nearest_code(z, codebook))


def test_a_forced_backend_that_cannot_run_raises_with_its_reasons(monkeypatch):
    with backend("cuda"), pytest.raises(BackendError, match="backend 'cuda' was asked for but cannot run: "):
        nearest_code(z, codebook)
    monkeypatch.setenv("SEED_FAST_BACKEND", "cuda")
    with pytest.raises(BackendError):
        nearest_code(z, codebook)
    monkeypatch.setenv("SEED_FAST_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"SEED_FAST_BACKEND: backend must be one of .*, got 'gpu'"):
        nearest_code(z, codebook)
    with pytest.raises(ValueError, match="got 'gpu'"), backend("gpu"):
        pass


def test_the_forced_backend_is_restored_after_an_error():
    with pytest.raises(KeyError), backend("reference"):
        raise KeyError
    assert _dispatch.forced() == ""


def test_explain_names_the_winner_and_every_loser():
    text = explain("nearest_code", z, pack_codebook(codebook))
    assert text.startswith("nearest_code: ")
    assert all(name in text for name in BACKENDS)
    assert text.count(": runs") == 1
    with pytest.raises(ValueError, match=r"op must be one of .*nearest_code.*got 'nearest'"):
        explain("nearest", z)


def test_a_missing_build_falls_back_once_with_a_reason(monkeypatch, caplog):
    monkeypatch.setattr(_native, "load", lambda: (None, "not built"))
    monkeypatch.setattr(_dispatch, "_logged", set())
    with caplog.at_level(logging.WARNING, "seed_fast.ops"):
        first, second = nearest_code(z, codebook), nearest_code(z, codebook)
    assert torch.equal(first, second)
    assert [r.getMessage() for r in caplog.records] == ["nearest_code: falling back from backend 'cpu': not built"]


def test_the_table_has_every_backend_and_a_reason_where_one_is_missing():
    rows = [row for row in backend_table() if row["op"] == "nearest_code"]
    assert {row["backend"] for row in rows} == set(BACKENDS)
    assert all(row["available"] != bool(row["reason"]) for row in rows)
