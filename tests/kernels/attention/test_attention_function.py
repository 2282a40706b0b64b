"""The public attention functions on a machine without a card: SDPA's meaning, our layout, and errors one can act on."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from deit_kernels import attention, attention_qkvpacked, attention_unsupported_reasons, dispatch
from deit_kernels.short_attention import configuration
from deit_kernels.short_attention import op as OP


def heads_first(*shape: int, dtype: torch.dtype = torch.float32, **kwargs) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(*shape, dtype=dtype, **kwargs) for _ in range(3))


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("scale", (None, 0.3, -0.5, 0.0))
def test_on_the_cpu_sdpa_runs(dtype: torch.dtype, scale: float | None) -> None:
    query, key, value = heads_first(2, 3, 17, 16, dtype=dtype)
    expected = scaled_dot_product_attention(query, key, value, scale=scale)
    assert torch.equal(attention(query, key, value, scale=scale), expected)
    packed = torch.stack([t.transpose(1, 2) for t in (query, key, value)], dim=2)
    torch.testing.assert_close(attention_qkvpacked(packed, scale=scale), expected.transpose(1, 2))


@pytest.mark.parametrize(
    "extra",
    [
        {"attn_mask": torch.ones(17, 17, dtype=torch.bool).tril()},
        {"attn_mask": torch.randn(2, 3, 17, 17)},
        {"is_causal": True},
        {"enable_gqa": True},
    ],
    ids=["boolean mask", "additive mask", "causal", "grouped queries"],
)
def test_every_argument_of_sdpa_keeps_its_meaning(extra: dict) -> None:
    query, key, value = heads_first(2, 3, 17, 16)
    if "enable_gqa" in extra:
        key, value = key[:, :1], value[:, :1]
    expected = scaled_dot_product_attention(query, key, value, **extra)
    torch.testing.assert_close(attention(query, key, value, **extra), expected)


def test_dropout_is_sdpas() -> None:
    query, key, value = heads_first(1, 2, 9, 8)
    torch.manual_seed(3)
    expected = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    torch.manual_seed(3)
    assert torch.equal(attention(query, key, value, dropout_p=0.5), expected)


def test_cross_attention_with_another_value_width() -> None:
    query, key, value = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 9, 16), torch.randn(2, 3, 9, 24)
    out = attention(query, key, value)
    assert out.shape == (2, 3, 5, 24)
    torch.testing.assert_close(out, scaled_dot_product_attention(query, key, value))


def test_the_result_has_the_strides_of_what_ran_eagerly_and_in_a_trace() -> None:
    """A packed result needs no copy in front of the output projection; the other form is SDPA's where that runs."""
    query, key, value = heads_first(2, 3, 17, 16)
    out = attention(query, key, value)
    assert out.stride() == scaled_dot_product_attention(query, key, value).stride()
    assert attention_qkvpacked(torch.randn(2, 17, 3, 3, 16)).is_contiguous()
    with torch._subclasses.FakeTensorMode() as mode:
        fake = attention(*(mode.from_tensor(tensor) for tensor in (query, key, value)))
    assert fake.stride() == out.stride()


@pytest.mark.parametrize("shape", [(0, 17, 3, 3, 16), (2, 0, 3, 3, 16), (2, 17, 3, 0, 16)], ids=["B", "N", "H"])
def test_empty_tensors_give_empty_results_and_gradients(shape: tuple[int, ...]) -> None:
    qkv = torch.randn(*shape, requires_grad=True)
    out = attention_qkvpacked(qkv)
    assert out.shape == (shape[0], shape[1], shape[3], shape[4])
    out.sum().backward()
    assert qkv.grad.shape == shape
    leaves = [torch.randn(shape[0], shape[3], shape[1], 16, requires_grad=True) for _ in range(3)]
    attention(*leaves).sum().backward()
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_qkvpacked(torch.randn(2, 5, 48)), r"\(B, N, 3, H, D\), got \(2, 5, 48\)"),
        (lambda: attention_qkvpacked(torch.randn(2, 5, 2, 3, 8)), r"\(B, N, 3, H, D\), got \(2, 5, 2, 3, 8\)"),
        (lambda: attention_qkvpacked(torch.randn(2, 5, 3, 3, 8), scale=float("nan")), "scale is a finite number"),
        (lambda: attention_qkvpacked(torch.ones(2, 5, 3, 3, 8, dtype=torch.int64)), "floating-point"),
        (lambda: attention_qkvpacked(torch.randn(2, 5, 3, 3, 0)), "head dim"),
        (lambda: attention(*heads_first(3, 5, 8)), r"\(B, H, N, D\), got query \(3, 5, 8\)"),
        (lambda: attention(*heads_first(1, 3, 5, 8), scale=float("inf")), "scale is a finite number"),
        (
            lambda: attention(torch.randn(1, 3, 5, 8), *[torch.randn(1, 3, 5, 16)] * 2),
            r"key \(1, 3, M, 8\) .* got query \(1, 3, 5, 8\), key \(1, 3, 5, 16\)",
        ),
        (lambda: attention(torch.randn(1, 3, 5, 8), *[torch.randn(1, 1, 5, 8)] * 2), r"key \(1, 3, M, 8\)"),
        (
            lambda: attention(*[torch.randn(1, 3, 5, 8)] * 2, torch.randn(1, 3, 6, 8)),
            r"value \(1, 3, M, E\) .* value \(1, 3, 6, 8\)",
        ),
        (lambda: attention(*[torch.randn(1, 3, 5, 8)] * 2, torch.randn(1, 3, 5, 8).half()), "one dtype, got"),
        (lambda: attention(*[torch.randn(1, 3, 5, 8)] * 2, torch.randn(1, 3, 5, 8, device="meta")), "one device, got"),
    ],
)
def test_errors_say_what_was_given_and_what_is_allowed(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def reasons_on_a_card(monkeypatch: pytest.MonkeyPatch, *args, setting: str = "kernels", **kwargs) -> list[str]:
    monkeypatch.setattr(OP, "kernel_unavailable_reasons", lambda device: [])
    monkeypatch.setattr(OP, "SETTING", setting)
    return attention_unsupported_reasons(*args, **kwargs)


def half(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.float16)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: ((half(2, 198, 3, 6, 64),), {}), None),
        (lambda: ((half(2, 1040, 3, 6, 128),), {}), None),
        (lambda: ((half(2, 1, 3, 1, 8),), {}), None),
        (lambda: ([half(2, 6, 198, 64)] * 3, {"scale": 0.1}), None),
        (lambda: ((half(2, 198, 3, 6, 64).float(),), {}), "dtype torch.float32"),
        (lambda: ((half(2, 1041, 3, 6, 64),), {}), "more than 1040 tokens"),
        (lambda: ((half(2, 198, 3, 6, 136),), {}), "head dim"),
        (lambda: ((half(2, 198, 3, 6, 60),), {}), "head dim"),
        (lambda: ((half(0, 198, 3, 6, 64),), {}), "empty"),
        (lambda: ((half(2, 198, 3, 6, 64),), {"scale": 0.0}), "scale"),
        (lambda: ([half(2, 6, 198, 64)] * 3, {"attn_mask": half(198, 198)}), "attn_mask"),
        (lambda: ([half(2, 6, 198, 64)] * 3, {"dropout_p": 0.1}), "dropout_p"),
        (lambda: ([half(2, 6, 198, 64)] * 3, {"is_causal": True}), "is_causal"),
        (lambda: ((half(2, 6, 198, 64), *[half(2, 6, 77, 64)] * 2), {}), "different shapes"),
        (lambda: ((half(2, 6, 198, 64), *[half(2, 2, 198, 64)] * 2), {}), "different shapes"),
    ],
)
def test_what_a_card_runs_and_why_not(call, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    args, kwargs = call()
    reasons = reasons_on_a_card(monkeypatch, *args, **kwargs)
    assert reasons == [] if reason is None else len(reasons) == 1 and reason in reasons[0]


@pytest.mark.parametrize(
    ("setting", "length", "features", "runs"),
    [
        ("auto", 198, 64, True), ("auto", 578, 64, True), ("auto", 579, 64, False), ("auto", 198, 128, False),
        ("auto", 198, 32, False), ("kernels", 1040, 128, True), ("sdpa", 198, 64, False),
    ],
)  # fmt: skip
def test_kernels_run_where_they_are_expected_ahead_or_are_asked_for(
    setting: str, length: int, features: int, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = reasons_on_a_card(monkeypatch, half(1, length, 3, 2, features), setting=setting)
    assert runs == (reasons == [])
    assert runs or "DEIT_KERNELS_ATTENTION=" in reasons[0]


@pytest.mark.parametrize(("ours", "runs"), [(40.0, True), (70.0, False)])
def test_a_measured_table_decides_where_the_kernels_run(
    ours: float, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"form": "tiled", "block_m": 64, "block_n": 64, "num_warps": 4, "num_stages": 3}
    row = {"card": 90, "min_length": 641, "max_length": 1040, "max_features": 128, "config": config}
    times = {"microseconds": ours, "sdpa_microseconds": 50.0}
    rows = [row | times | {"direction": direction} for direction in ("forward", "backward")]
    (tmp_path / "table.json").write_text(json.dumps({"attention": rows}))
    monkeypatch.setenv("DEIT_KERNELS_TABLE", str(tmp_path / "table.json"))
    configuration.forget()
    try:
        for length, expected in ((1025, runs), (600, False)):
            packed = half(1, length, 3, 2, 128)
            assert (reasons_on_a_card(monkeypatch, packed, setting="auto") == []) == expected
    finally:
        monkeypatch.undo()
        configuration.forget()


def test_a_setting_that_does_not_exist_says_which_do() -> None:
    environment = os.environ | {"DEIT_KERNELS_ATTENTION": "always"}
    program = [sys.executable, "-c", "import deit_kernels"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.stderr.endswith("DEIT_KERNELS_ATTENTION is 'always': type auto, kernels or sdpa\n")


def test_autocast_decides_as_sdpa_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(*heads_first(1, 2, 5, 8)).dtype == torch.bfloat16
        assert attention(*heads_first(1, 2, 5, 8, dtype=torch.float64)).dtype == torch.float64
        assert reasons_on_a_card(monkeypatch, torch.randn(2, 198, 3, 6, 64)) == []
        query, key, value = heads_first(1, 2, 5, 8)
        assert attention(query, key.bfloat16(), value.half()).dtype == torch.bfloat16


@pytest.mark.parametrize("dynamic", (False, True))
def test_the_fallback_compiles_to_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(attention_qkvpacked, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (17, 23):
        qkv = torch.randn(2, length, 3, 3, 16)
        torch.testing.assert_close(compiled(qkv), attention_qkvpacked(qkv))


def test_a_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch.report_fallback.cache_clear()
    with caplog.at_level(logging.INFO, logger="deit_kernels"):
        for scale in (None, None, 0.3):  # without a scale a short way leads to SDPA
            attention_qkvpacked(torch.randn(1, 5, 3, 2, 8), scale=scale)
            attention(*torch.randn(3, 1, 2, 5, 8), scale=scale)
    assert [record.getMessage() for record in caplog.records] == [
        f"deit_kernels.{name} runs plain PyTorch: the tensors are on the CPU"
        for name in ("attention_qkvpacked", "attention")
    ]


@pytest.mark.parametrize(
    ("device_type", "hip", "available", "capability", "reason"),
    [
        ("cuda", None, True, (9, 0), None),
        ("cuda", None, True, (7, 5), "compute capability below 8.0"),
        ("cuda", None, False, (9, 0), "no CUDA driver"),
        ("cuda", "6.4", True, (9, 0), "ROCm is not supported"),
        ("cpu", None, True, (9, 0), "the tensors are on the CPU"),
        ("xpu", None, True, (9, 0), "no kernel for device type 'xpu'"),
    ],
)
def test_where_kernels_run(device_type, hip, available, capability, reason, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    reasons = dispatch.kernel_unavailable_reasons.__wrapped__(torch.device(device_type, 0))
    assert reasons == (() if reason is None else (reason,))


def test_without_a_c_compiler_plain_pytorch_runs_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    reasons = dispatch.kernel_unavailable_reasons.__wrapped__(torch.device("cuda", 0))
    assert len(reasons) == 1 and "apt install gcc" in reasons[0]
    monkeypatch.setenv("CC", sys.executable)
    assert dispatch.kernel_unavailable_reasons.__wrapped__(torch.device("cuda", 0)) == ()


def test_tensors_of_a_card_that_is_not_there_are_traced_as_sdpa() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    with torch._subclasses.FakeTensorMode():
        qkv = torch.empty(2, 198, 3, 6, 64, dtype=torch.float16, device="cuda")
        assert attention_unsupported_reasons(qkv) == ["no CUDA driver"]
        assert attention_qkvpacked(qkv).shape == (2, 198, 6, 64)


WITHOUT_TRITON = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
sys.modules["triton"] = None
import torch
from deit_kernels import attention_qkvpacked, attention_unsupported_reasons
qkv = torch.randn(1, 5, 3, 2, 8, requires_grad=True)
assert attention_unsupported_reasons(qkv)[0] == "triton is not installed"
attention_qkvpacked(qkv).sum().backward()
"""


def test_the_functions_work_without_triton() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=True)


def test_running_on_the_cpu_does_not_import_triton() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); from deit_kernels import attention_qkvpacked;"
        "attention_qkvpacked(torch.randn(1, 5, 3, 2, 8, requires_grad=True)).sum().backward();"
        "assert not {name for name in set(sys.modules) - before if name.split('.')[0] == 'triton'}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_meta_tensors_give_shapes() -> None:
    query = torch.empty(2, 3, 17, 64, device="meta", dtype=torch.float16)
    assert attention(query, query, query).shape == query.shape
    assert attention_qkvpacked(torch.empty(2, 17, 3, 3, 64, device="meta")).shape == (2, 17, 3, 64)


def test_what_a_call_is_refused_for_names_the_argument() -> None:
    query = torch.zeros(2, 3, 17, 64)
    with pytest.raises(ValueError, match=r"query is packed \(B, N, 3, H, D\) when key is None"):
        attention_unsupported_reasons(query)
    with pytest.raises(ValueError, match="key and value go together"):
        attention_unsupported_reasons(query, query)
    with pytest.raises(TypeError, match="attention_qkvpacked takes a tensor, got list"):
        attention_qkvpacked([1])
    for scale in ("x", torch.tensor(0.1)):
        with pytest.raises(ValueError, match="scale is a finite Python number"):
            attention(query, query, query, scale=scale)
