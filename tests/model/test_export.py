"""One program for any batch: `torch.export` and `torch.compile` take the tokenizer from pixels to codes whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seed_fast import SeedTokenizer

BATCHES = (1, 2, 5, 0)  # none is the example's


class Program(nn.Module):
    """One method of the tokenizer as a module, which `torch.export` wants."""

    def __init__(self, tok: SeedTokenizer, method: str) -> None:
        super().__init__()
        self.tok, self.method = tok, method

    def forward(self, pixels: Tensor) -> Tensor:
        return getattr(self.tok, self.method)(pixels)


@pytest.fixture(scope="module")
def tok() -> SeedTokenizer:
    return SeedTokenizer.from_pretrained("seed-tiny").eval()


def pixels(tok: SeedTokenizer, batch: int) -> Tensor:
    side = tok.config.image_size
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("method", ["encode_pixels", "causal_embeddings"])
def test_an_exported_program_takes_other_batches_than_its_example(tok, method, tmp_path):
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(Program(tok, method), (pixels(tok, 4),), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "program.pt2")
        loaded = torch.export.load(tmp_path / "program.pt2").module()
        for batch in BATCHES:
            given = pixels(tok, batch)
            wanted, got = getattr(tok, method)(given), loaded(given)
            assert got.shape == wanted.shape
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)  # the same operators, in the same order
        if method == "encode_pixels":
            given = pixels(tok, 3)
            given[1, 0, 5, 5] = torch.inf
            codes = loaded(given)
            assert (codes[1] == -1).all()
            assert torch.equal(codes[[0, 2]], tok.encode(given[[0, 2]]))


def test_encode_compiles_as_one_graph_for_any_batch(tok):
    torch._dynamo.reset()
    graphs = []

    def collect(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(tok.encode, fullgraph=True, dynamic=True, backend=collect)
    for batch in (4, 2, 5, 7):
        assert torch.equal(compiled(pixels(tok, batch)), tok.encode(pixels(tok, batch)))
    assert len(graphs) == 1, "one graph serves every batch from 2 on"
    given = pixels(tok, 2)
    given[0] = torch.nan
    assert (compiled(given)[0] == -1).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # inductor's own, as it is imported
def test_the_compiled_encode_has_the_same_codes(tok):
    torch._dynamo.reset()
    compiled = torch.compile(tok.encode, fullgraph=True, dynamic=True)
    for batch in (4, 6):
        given = pixels(tok, batch)
        agreement = (compiled(given) == tok.encode(given)).double().mean()
        assert agreement >= 0.99, "inductor adds up in another order, which may move a code that is nearly a tie"
