"""What every op promises alike: schema, gradients, one graph, captures, exact backends by name, refusals by message."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from seed_fast.ops import BackendError, _dispatch, _native, backend, backend_table, explain
from seed_fast.testing import check_budget
from tests.ops.contract import OPS, ROOT, at, compiled_kernels, gpu_marks, needs_compiler, needs_native, on_gpu

PLACES = ["reference", pytest.param("cpu", marks=needs_native), pytest.param("cuda", marks=gpu_marks)]
FORMS = [(name, form) for name, op in OPS.items() for form in op.options]
LEARNED = [(name, form) for name, form in FORMS if OPS[name].learned]
COMPILED = [(*each, pack) for each in FORMS for pack in ([False, True] if OPS[each[0]].pack else [False])]
every_op = pytest.mark.parametrize("name", OPS)
every_place = pytest.mark.parametrize("place", PLACES)


def device_of(place: str) -> str:
    return "cuda" if place == "cuda" else "cpu"


def results(op, *inputs, **options) -> list[Tensor]:
    """All results of a call."""
    out = op.call(*inputs, **options)
    return [out] if isinstance(out, Tensor) else list(out)


# -- torch.library, torch.compile, CUDA graphs ------------------------------------------------------------------------


@every_place
@every_op
def test_opcheck(name, place):
    with at(place):
        for overload, arguments in OPS[name].opchecks(device_of(place)):
            torch.library.opcheck(getattr(torch.ops.seed_fast, overload).default, arguments)


def test_every_registered_op_is_in_the_table_and_checked():
    checked = {overload for op in OPS.values() for overload, _ in op.opchecks("cpu")}
    assert {row["op"] for row in backend_table()} <= checked


@every_place
@pytest.mark.parametrize(("name", "form", "pack"), COMPILED)
def test_compiles_to_one_graph_without_recompiling_on_equal_shapes(name, form, pack, place):
    op = OPS[name]

    def layer(x, *others):
        return results(op, x * 2, *others, **op.options[form])

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True), at(place), torch.no_grad():
        x, *others = op.small(device_of(place))
        others = op.pack(others) if pack else others
        for shifted in (x, x + 1):
            for got, expected in zip(compiled(shifted, *others), layer(shifted, *others), strict=True):
                assert torch.equal(got, expected)


@every_place
@pytest.mark.parametrize(("name", "form"), LEARNED)
def test_a_training_step_compiles_to_one_graph_without_recompiling(name, form, place):
    op = OPS[name]

    def layer(x, *others):
        return results(op, x * 2, *others, **op.options[form])

    def step(run, inputs, dtype=torch.float32):
        leaves = [x.to(dtype, copy=True).requires_grad_(i < op.learned) for i, x in enumerate(inputs)]
        outputs = run(*leaves)
        loss = sum(x.double().sin().sum() for x in outputs if x.requires_grad)
        return [*outputs, *torch.autograd.grad(loss, leaves[: op.learned])]

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shift in (0, 1):
            inputs = [x + shift for x in op.small(device_of(place))]
            with at(place):
                found, eager = step(compiled, inputs), step(layer, inputs)
            for got, exact, expected in zip(found, step(layer, inputs, torch.float64), eager, strict=True):
                if not torch.equal(got, expected):  # the compiler may sum a gradient in another order
                    check_budget(got, exact, expected, factor=3)


@on_gpu
@every_op
def test_a_captured_graph_replays_on_new_input(cuda, name):
    op = OPS[name]
    inputs, options = op.captured
    x, *others = inputs("cuda")
    others = op.pack(others) if op.pack else others
    results(op, x, *others, **options)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(op, x, *others, **options)
    x.copy_(x.flip(0) + 0.25)
    for out in captured:
        out.fill_(-7)
    graph.replay()
    assert all(map(torch.equal, captured, results(op, x, *others, **options)))


# -- the kernels ------------------------------------------------------------------------------------------------------


@needs_compiler
@every_op
def test_every_cuda_kernel_compiles_for_its_architectures_without_spills(name):
    op, found = OPS[name], compiled_kernels(f"{name}*.cu")
    assert set(found) == set(op.kernels)
    for kernel, by_arch in found.items():
        assert set(by_arch) == op.kernels[kernel], kernel
        for arch, use in by_arch.items():
            assert use["registers"] > 0
            assert use["shared_bytes"] <= 48 << 10
            if arch in op.unspilled:
                assert use["spill_store_bytes"] == use["spill_load_bytes"] == 0, (kernel, arch)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("name", "kernel"), [(name, kernel) for name, op in OPS.items() for kernel in op.triton])
def test_triton_kernel_compiles_without_a_gpu(name, kernel, dtype, arch):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants, types = OPS[name].triton[kernel]
    function = getattr(importlib.import_module(f"seed_fast.kernels.{name}"), kernel.partition("/")[0])
    types = {argument: kind.replace("T", dtype) for argument, kind in types.items()}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in function.arg_names}
    places = {(function.arg_names.index(argument),): value for argument, value in constants.items()}
    source, options = ASTSource(function, signature, places), {"enable_fp_fusion": True}
    ptx = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["ptx"]
    assert f".target sm_{arch}" in ptx
    assert name != "attention" or dtype == "fp32" or "mma" in ptx, "no tensor cores"


@on_gpu
@every_op
@pytest.mark.skipif(os.environ.get("SEED_FAST_CUDA_ARCH") == "70", reason="is that run")
def test_the_compute_70_image_passes_every_test_on_a_gpu(name):
    files = [__file__, ROOT / "tests" / "ops" / f"test_{name}_cuda.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", name, "-p", "no:cacheprovider", *files]
    environment = os.environ | {"SEED_FAST_CUDA_ARCH": "70"}
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


# -- what the C++ kernels do not depend on ----------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize(("name", "isa"), [(name, isa) for name, op in OPS.items() for isa in op.isas])
def test_results_do_not_depend_on_threads_and_repeat_bit_by_bit(name, isa, threads, monkeypatch):
    monkeypatch.setenv("SEED_FAST_CPU_ISA", isa)
    op, found = OPS[name], []
    with backend("cpu"):
        for count in (1, 2, 5, 40, 2):
            threads(count)
            inputs = [x.requires_grad_(op.kernel_gradients) for x in op.many("cpu")]
            outputs = results(op, *inputs)
            if op.kernel_gradients:
                outputs += torch.autograd.grad(outputs[-1], inputs[1])
            found.append(outputs)
    assert all(all(map(torch.equal, found[0], other)) for other in found[1:])


@needs_native
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.tiny])
def test_flushing_subnormals_changes_nothing_in_the_kernel(name):
    op = OPS[name]
    inputs, options = op.tiny
    x = inputs("cpu")
    with backend("cpu"):
        expected = results(op, *x, **options)
        torch.set_flush_denormal(True)
        try:
            got = results(op, *x, **options)
        finally:
            torch.set_flush_denormal(False)
    assert all(map(torch.equal, got, expected))
    assert expected[0].abs().max() > 0


@every_op
def test_threads_may_call_at_the_same_time(name):
    op = OPS[name]
    inputs, found = op.many("cpu"), []
    expected = results(op, *inputs)

    def work():
        with torch.no_grad():
            found.extend(results(op, *inputs) for _ in range(5))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 20
    assert all(all(map(torch.equal, each, expected)) for each in found)


def _in_child(connection, name):
    connection.send([x.tolist() for x in results(OPS[name], *OPS[name].many("cpu"))])


@needs_native
@every_op
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_call_after_its_parent_did(name):
    with backend("cpu"):
        expected = [x.tolist() for x in results(OPS[name], *OPS[name].many("cpu"))]
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(theirs, name))
        child.start()
        assert ours.poll(60), "the forked child hangs"
        assert ours.recv() == expected
        child.join(10)


# -- the dispatcher, and what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, op in OPS.items() for wrong in op.wrong])
def test_wrong_input_is_named(name, wrong):
    arguments, options, error, message = wrong
    with pytest.raises(error, match=f"^{name}: {message}"):
        OPS[name].call(*arguments, **options)


@every_op
def test_explain_names_the_winner_and_every_loser(name):
    op = OPS[name]
    inputs = op.small("cpu")
    text = explain(name, *op.registered(*inputs))
    assert text.startswith(f"{name}: ")
    assert all(f"{row['backend']}: " in text for row in backend_table() if row["op"] == name)
    assert text.count(": runs") == 1
    if not _native.cpu_unavailable():
        assert "cpu: runs" in text
    assert "reference: runs" in explain(name, *op.registered(*(x.double() for x in inputs)))


@every_op
def test_a_forced_backend_that_cannot_run_raises_with_its_reasons(name, monkeypatch):
    op = OPS[name]
    inputs = op.small("cpu")
    with backend("cuda"), pytest.raises(BackendError, match="backend 'cuda' was asked for but cannot run: "):
        op.call(*inputs)
    monkeypatch.setenv("SEED_FAST_BACKEND", "cuda")
    with pytest.raises(BackendError):
        op.call(*inputs)
    monkeypatch.setenv("SEED_FAST_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"SEED_FAST_BACKEND: backend must be one of .*, got 'gpu'"):
        op.call(*inputs)


@every_op
def test_a_missing_build_falls_back_once_with_a_reason(name, monkeypatch, caplog):
    op = OPS[name]
    inputs = op.small("cpu")
    monkeypatch.setattr(_native, "load", lambda: (None, "not built"))
    monkeypatch.setattr(_dispatch, "_logged", set())
    with caplog.at_level(logging.WARNING, "seed_fast.ops"):
        first, second = results(op, *inputs), results(op, *inputs)
    assert all(map(torch.equal, first, second))
    told = [record.getMessage() for record in caplog.records]
    assert told.count(f"{name}: falling back from backend 'cpu': not built") == 1
    assert len(told) == len(set(told))


@every_op
def test_the_table_has_every_backend_and_a_reason_where_one_is_missing(name):
    rows = [row for row in backend_table() if row["op"] == name]
    assert {"cuda", "triton", "cpu", "reference"} <= {row["backend"] for row in rows}
    assert rows[-1]["backend"] == "reference"
    assert all(row["available"] != bool(row["reason"]) for row in rows)


def test_names_of_backends_are_checked_and_what_was_forced_is_restored():
    with pytest.raises(ValueError, match="got 'gpu'"), backend("gpu"):
        pass
    with pytest.raises(KeyError), backend("reference"):
        raise KeyError
    assert _dispatch.forced() == ""
    with pytest.raises(ValueError, match=r"op must be one of .*nearest_code.*got 'nearest'"):
        explain("nearest", torch.zeros(2, 2))
