"""The compiled lane tells what the compiler made of a kernel, on a machine without a GPU."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from paperlings import lanes, layout
from paperlings.lanes import budgets, compiled, cubin
from paperlings.lanes.compiled import assert_compiles, launches, tensor
from paperlings.outcomes import Unverified
from paperlings.teacher import KnowledgeError
from paperlings.testing.close import Mismatch

pytestmark = pytest.mark.skipif(bool(lanes.why_not_compiled()), reason=lanes.why_not_compiled())

SAMPLES = Path(__file__).parent / "samples" / "kernels"
PRODUCTS, FAULTS = SAMPLES / "products.py", SAMPLES / "faults.py"
MATRIX, TILE = tensor("bfloat16", 4096, 4096), tensor("bfloat16", 16, 16)
HEADS = tensor("bfloat16", 2, 8, 1024, 64)
SMALL = {"m": 64, "n": 64, "warps": 4}
STRICT = {
    "spills": 0,
    "registers": 168,
    "tensor_cores": True,
    "wide_loads": 0.9,
    "kernels": 2,
    "blocks": 3,
}


def breach(found: list[cubin.Compiled], **budget: object) -> str:
    with pytest.raises(Mismatch) as error:
        budgets.check(found, budget)
    return error.value.difference


def failure(function: str, *args: object, path: Path = FAULTS) -> str:
    with pytest.raises(Mismatch) as error:
        launches(path, function, args or (TILE,), targets=(90,))
    return error.value.difference


# ---- what is read from the machine code


def test_a_good_product_keeps_to_a_strict_budget_on_every_chip():
    """Blocks of 64 rows run on each chip's own tensor cores, and spill nothing."""
    found = launches(PRODUCTS, "product", (MATRIX, MATRIX), SMALL)
    assert [kernel.chip for kernel in found] == ["sm_80", "sm_90", "sm_100"]
    assert [list(kernel.tensor_cores) for kernel in found] == [["mma.sync"], ["wgmma"], ["tcgen05"]]
    budgets.check(found, STRICT)


def test_of_flash_attention_only_the_kernel_with_a_product_needs_tensor_cores():
    """A kernel without a tl.dot, launched beside one with it, breaks no budget."""
    found = launches(PRODUCTS, "attention", (HEADS, HEADS, HEADS), SMALL, targets=(90,))
    assert [kernel.dots for kernel in found] == [False, True]
    budgets.check(found, STRICT)


def test_values_that_do_not_fit_the_registers_are_counted_as_spills():
    """One warp that keeps 16384 numbers has 512 of them a thread, and 255 registers."""
    found = launches(PRODUCTS, "crowded", (tensor("float32", 8, 16384),), targets=(90,))
    assert found[0].spills > 256
    assert found[0].stack > 1024
    assert breach(found, spills=0) == (
        "_centre on sm_90 loads and stores what its registers do not hold "
        f"{found[0].spills} times, more than 0"
    )


def test_shared_memory_is_held_to_what_a_block_of_each_chip_may_have():
    """Twelve stages of two tiles of 8 KiB fit a block of sm_90, and none of sm_80."""
    deep = {**SMALL, "stages": 12}
    found = launches(PRODUCTS, "product", (MATRIX, MATRIX), deep, targets=(80, 90))
    budgets.check(found[1:], {})
    assert breach(found) == (
        f"_product on sm_80 takes {found[0].shared} bytes of shared memory; a block may have 166912"
    )


def test_products_without_tensor_cores_are_told_from_those_with_an_older_chips():
    """wgmma wants 64 rows: blocks of 16 run on mma.sync, and outer products on neither."""
    few = launches(PRODUCTS, "product", (MATRIX, MATRIX), {**SMALL, "m": 16}, targets=(90,))
    budgets.check(few, {"tensor_cores": "any"})
    said = breach(few, tensor_cores=True)
    assert said == "_product on sm_90 runs its tl.dot on mma.sync only, not wgmma"
    none = launches(PRODUCTS, "multiplied", (MATRIX, MATRIX), targets=(90,))
    assert breach(none, tensor_cores="any") == "no kernel has a tl.dot"


def test_a_stride_known_only_at_run_time_makes_loads_narrow():
    """What might lie anywhere is loaded value by value; a stride of 1 is seen, and is not."""
    rows = tensor("bfloat16", 64, 4096)
    narrow = launches(PRODUCTS, "sums", (rows, 4096), targets=(90,))
    assert breach(narrow, wide_loads=0.5) == (
        "on sm_90 0% of the bytes that are loaded come 16 at a time, less than 50%; "
        "most of the others in _sum"
    )
    budgets.check(launches(PRODUCTS, "sums", (rows, 1), targets=(90,)), {"wide_loads": 1.0})


def test_every_specialisation_that_is_launched_is_told_once():
    """Two launches that differ by a number are one kernel; another block size makes another."""
    found = launches(PRODUCTS, "same", (MATRIX,), targets=(90,))
    assert [kernel.kernel for kernel in found] == ["_scale", "_scale", "_sum"]
    said = breach(found, kernels=2)
    assert said == "3 kernels are launched on sm_90, more than 2: _scale, _scale, _sum"


def test_a_tuned_kernel_takes_the_first_config_that_its_chip_has_room_for():
    """The tuner passes over configs that do not fit, so they are no fault."""
    found = launches(PRODUCTS, "tuned", (MATRIX, MATRIX), targets=(80, 90))
    assert [kernel.shared for kernel in found] == [2 * 16384, 12 * 16384]
    budgets.check(found, {"tensor_cores": True})


@pytest.mark.parametrize(
    ("chip", "registers", "warps", "shared", "columns", "blocks"),
    [
        (80, 32, 4, 0, 0, 16),  # as many warps as there is room for
        (80, 168, 4, 0, 0, 3),
        (90, 255, 8, 0, 0, 1),
        (90, 16, 1, 0, 0, 32),
        (80, 32, 4, 81920, 0, 2),  # 1024 bytes more of each block are the system's
        (80, 32, 4, 82945, 0, 1),
        (100, 32, 4, 0, 256, 2),
        (90, 255, 16, 0, 0, 0),
    ],
)
def test_the_blocks_that_a_multiprocessor_holds_are_those_of_nvidias_calculator(
    chip, registers, warps, shared, columns, blocks
):
    """Registers are given out to warps by 256, and to four warps at a time."""
    assert cubin.blocks(cubin.CHIPS[chip], registers, warps, shared, columns) == blocks


def test_machine_code_that_cannot_be_read_is_no_verdict(tmp_path):
    """Without cuobjdump nothing is said."""
    with pytest.raises(cubin.Unreadable, match="cuobjdump cannot be run"):
        cubin.counts(b"", tmp_path)


# ---- what fails


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("hides", "_square does not compile for sm_90: Input shapes should have M >= 1, N >= 1"),
        ("short", "launching _square fails: TypeError: _square missing 2 required"),
        ("peeks", "needs values of a tensor before it can launch its kernels\nfaults.py:"),
        ("elsewhere", "_square is given a tensor on the cpu as C"),
        ("raises", "ValueError: a is not to my taste\nfaults.py:"),
        ("silent", "silent launches no kernel"),
        ("dies", "the compiling process ends with status 3"),
    ],
)
def test_what_goes_wrong_is_said_in_words(function, words):
    """A learner reads which kernel or line it is, and what the compiler says last."""
    assert words in failure(function)


@pytest.mark.parametrize("function", ["stub", "stub_below"])
def test_a_stub_is_work_to_do_wherever_it_is_reached(function):
    """A host function's NotImplementedError and a kernel's come out as themselves."""
    with pytest.raises(NotImplementedError) as error:
        launches(FAULTS, function, (TILE,), targets=(90,))
    assert error.value.args == (function,)


def test_what_the_candidate_prints_is_not_taken_for_an_answer():
    """The answer has a channel of its own."""
    assert [kernel.kernel for kernel in launches(FAULTS, "chatty", (TILE,), targets=(90,))] == [
        "_square"
    ]


def test_a_file_that_cannot_be_imported_says_why(tmp_path):
    """A syntax error is named."""
    path = tmp_path / "kernels" / "broken.py"
    path.parent.mkdir()
    path.write_text("def product(a:\n")
    assert failure("product", path=path).startswith("broken.py cannot be imported: SyntaxError:")


@pytest.mark.parametrize(
    ("limit", "value", "words"), [("CORE_SECONDS", 4, "4 s of one core"), ("SECONDS", 0.5, "0.5 s")]
)
def test_what_does_not_end_is_a_time_out(monkeypatch, limit, value, words):
    """The child is stopped, and the finding says that it was time that ran out."""
    monkeypatch.setattr(compiled, limit, value)
    with pytest.raises(compiled.TimedOut, match=f"do not end within {words}"):
        launches(FAULTS, "hangs", (TILE,), targets=(90,))
    assert compiled.TimedOut.timed_out


def test_an_unknown_triton_tells_nothing(monkeypatch):
    """Never a guess: the verdict is unverified, with the reason."""
    monkeypatch.setattr(lanes, "why_not_compiled", lambda: "triton 9.9 is not known here")
    with pytest.raises(Unverified, match=r"triton 9\.9 is not known here"):
        launches(PRODUCTS, "product", (MATRIX, MATRIX))


@pytest.mark.parametrize("thing", [object(), {1, 2}, [b"bytes"]])
def test_only_what_can_be_described_goes_to_the_child(thing):
    """Tensors are described, and everything else is plain."""
    with pytest.raises(TypeError, match="cannot be described"):
        launches(PRODUCTS, "product", (thing,))


# ---- what is kept


def test_the_same_question_is_answered_once(monkeypatch, tmp_path):
    """A file that has not changed is not compiled again, wherever it lies; a changed one is."""
    monkeypatch.setattr(compiled, "CACHE", tmp_path / "cache")
    asked = []

    def ask(request):
        asked.append(request)
        return {"kernels": []} if len(asked) != 3 else {"died": "of something"}

    monkeypatch.setattr(compiled, "_ask", ask)
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    for path in (first, second):
        path.write_text("text")
        launches(path, "f", (MATRIX,))
    assert len(asked) == 1, "the text decides, and not the path"
    launches(first, "f", (TILE,))
    first.write_text("other text")
    with pytest.raises(Mismatch, match="of something"):
        launches(first, "f", (MATRIX,))
    launches(first, "f", (MATRIX,))
    assert len(asked) == 4, "a process that died may have been unlucky"


def test_what_is_older_than_a_day_is_forgotten(monkeypatch, tmp_path):
    """The cache does not grow for ever."""
    monkeypatch.setattr(compiled, "CACHE", tmp_path)
    new, old = tmp_path / "answers" / "new.json", tmp_path / "triton" / "old" / "kernel.cubin"
    for path in (new, old):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    os.utime(old.parent, (0, 0))
    compiled._forget_old()
    assert new.exists()
    assert not old.parent.exists()


def test_a_house_that_cannot_be_written_to_has_a_cache_elsewhere(monkeypatch, tmp_path):
    """Then nothing is kept beyond the process."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiled, "CACHE", tmp_path / "file" / "cache")
    assert compiled._cache().is_dir()


# ---- budgets


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> SimpleNamespace:
    """A candidate whose kernel's .toml holds `text`."""
    path = tmp_path / "products.toml"
    path.write_text(text)
    monkeypatch.setattr(layout, "knowledge", lambda key: path)
    return SimpleNamespace(__file__=str(PRODUCTS), product=SimpleNamespace(__name__="product"))


def test_assert_compiles_holds_a_function_to_its_own_budget(tmp_path, monkeypatch):
    """The table is that of the function, read off `impl` or named."""
    impl = written(tmp_path, monkeypatch, "[compiled.product]\nspills = 0\nregisters = 90")
    with pytest.raises(Mismatch, match=r"takes \d+ registers a thread, more than 90"):
        assert_compiles(impl, impl.product, MATRIX, MATRIX, **SMALL)
    impl = written(tmp_path, monkeypatch, "[compiled.product]\nregisters = { sm_90 = 90 }")
    assert_compiles(impl, "product", MATRIX, MATRIX, **SMALL)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("spill = 0", "unknown budget 'spill'; known are spills, registers,"),
        ("spills = { sm_70 = 0 }", "spills: unknown chip 'sm_70'; known are sm_80, sm_90, sm_100"),
        ("tensor_cores = ['sm_81']", "tensor_cores: unknown chip 'sm_81'"),
        ("tensor_cores = false", "tensor_cores = False is no budget"),
        ("spills = ['sm_80']", r"spills = \['sm_80'\] is no budget"),
        ("wide_loads = 'most'", "wide_loads = 'most' is no budget"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(tmp_path, monkeypatch, line, words):
    """The message names the file, the table and what is wrong with it."""
    written(tmp_path, monkeypatch, f"[compiled.product]\n{line}")
    with pytest.raises(KnowledgeError, match=r"products\.toml: \[compiled\.product\]: " + words):
        budgets.of("kernels/products", "product")


def test_a_budget_binds_the_chips_it_names():
    """A list or a table leaves the chips it does not name free."""
    few = launches(PRODUCTS, "product", (MATRIX, MATRIX), {**SMALL, "m": 16}, targets=(90,))
    budgets.check(few, {"tensor_cores": ["sm_80"], "registers": {"sm_80": 1}})
    assert "not wgmma" in breach(few, tensor_cores={"sm_90": True})
    assert "fits a multiprocessor" in breach(few, blocks={"sm_90": 99})
