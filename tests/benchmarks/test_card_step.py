"""The step by part and ncu's counters, on names and output as a card gives them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch._inductor.wrapper_benchmark import _kernel_category_choices

from benchmarks.card import counters, step
from benchmarks.card.counters import KERNELS, METRICS
from benchmarks.card.step import GAPS, OTHER, by_part, part_of, predicted, report

ROOT = Path(__file__).parents[2]
NAMES = {  # as the profiler and Inductor write them
    "attention_forward_resident": "attention, forward",
    "attention_backward_two_phase": "attention, backward",
    "attention_delta": "attention, backward",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>(Params)": "attention, forward",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_27_64x128x64": "attention, backward",
    "forward_kernel": "loss",
    "mean_kernel": "loss",
    "nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT": "matrix products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroup": "matrix products",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_256x128_32x3_nt_align8>": "matrix products",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>": "matrix products",
    "triton_per_fused_add_native_layer_norm_native_layer_norm_backward_12": "norms, GELU, sums, casts",
    "triton_unk_fused_add_native_layer_norm_backward_sum_7": "norms, GELU, sums, casts",
    "triton_poi_fused__to_copy_gelu_gelu_backward_8": "norms, GELU, sums, casts",
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>": "norms, GELU, sums, casts",
    "Memset (Device)": "norms, GELU, sums, casts",
    "triton_for_fused_lerp_0": "AdamW, norm, moving average",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>, "
    "FusedAdamMathFunctor<float, 4, (ADAM_MODE)1, false>>": "AdamW, norm, moving average",
    "void deit::finish_kernel<(Type)2>(FinishBatch, Finish, Bits*)": "augmentation",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096>)": OTHER,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_kernels_name_tells_its_part(name: str) -> None:
    assert part_of(name) == NAMES[name]


def test_every_kernel_of_ours_and_every_kind_of_inductors_has_its_part() -> None:
    found = {}
    for path in sorted((ROOT / "kernels" / "deit_kernels").rglob("*kernels.py")):
        entries = re.findall(r"@triton.jit[^\n]*\ndef ([a-z]\w+)\(", path.read_text())
        found[path.parent.name] = found.get(path.parent.name, set()) | {part_of(name) for name in entries}
    assert found == {"distill_loss": {"loss"}, "short_attention": {"attention, forward", "attention, backward"}}
    names = re.findall(r"__global__ void [^;{]*?(\w+_kernel)\(", (ROOT / "csrc/cuda/augment.cu").read_text())
    assert len(names) == 4 and {part_of(name) for name in names} == {"augmentation"}
    assert OTHER not in {part_of(f"triton_{kind[:3]}_fused_add_1") for kind in [*_kernel_category_choices, "unknown"]}


def test_all_time_is_in_a_part_and_what_no_name_tells_is_listed() -> None:
    kernels = {name: 1e-3 * number for number, name in enumerate(NAMES, 1)}
    assert sum(by_part(kernels).values()) == pytest.approx(sum(kernels.values()))
    found = report(kernels, wall=sum(kernels.values()) + 0.005, augmented={"resize_kernel": 0.002})
    rows = {row["name"]: row for row in found["parts"]}
    assert rows[GAPS]["ms"] == pytest.approx(5) and rows["augmentation"]["ms"] == pytest.approx(2)
    assert list(found["other"]) == [name for name in NAMES if NAMES[name] == OTHER]
    assert rows[OTHER]["ms"] == pytest.approx(sum(found["other"].values()))
    assert {row["op"] for row in found["parts"]} == {"", "augmentation"}
    assert "augmentation" not in {row["name"] for row in report(kernels, wall=1.0, augmented={})["parts"]}


def test_every_part_has_the_rooflines_time_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert min(predicted().values()) > 0
    parts = step.step_parts(step.Settings("deit_small_distilled_patch16_224", step.ROWS))
    assert sum(predicted().values()) == pytest.approx(sum(part.seconds for part in parts))
    new = parts[0]._replace(name="a new part")
    monkeypatch.setattr(step, "step_parts", lambda settings: [*parts, new])
    with pytest.raises(ValueError, match="'a new part' belongs to no part of the step: add it to PARTS"):
        predicted()


PRINTED = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","attention_forward_resident","gpu__time_duration.sum","ns","81,216"
"0","7","attention_forward_resident","launch__registers_per_thread","register/thread","168"
"1","7","void deit::resize_kernel(unsigned char const*, long)","gpu__time_duration.sum","ns","10,000"
==PROF== Disconnected from process 7
"""
DENIED = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"


def with_ncu(folder: Path, monkeypatch: pytest.MonkeyPatch, printed: str, code: int = 0) -> dict:
    """What the module writes where ncu prints that."""
    (folder / "printed").write_text(printed)
    (folder / "ncu").write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\ncat {folder}/printed\nexit {code}\n')
    (folder / "ncu").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("sys.argv", ["counters", "--out", str(folder / "counters.json")])
    counters.main()
    return json.loads((folder / "counters.json").read_text())


def test_ncu_is_asked_for_five_kernels_and_its_table_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_ncu(tmp_path, monkeypatch, PRINTED)
    metrics = {"gpu__time_duration.sum": "81,216 ns", "launch__registers_per_thread": "168 register/thread"}
    assert found["reason"] == "" and [each["op"] for each in found["kernels"]] == ["attention", "augmentation"]
    assert found["kernels"][0] == {"name": "attention_forward_resident", "op": "attention", "metrics": metrics}
    asked = (tmp_path / "asked").read_text()
    assert asked.count("--kernel-id") == len(KERNELS) == 5 and all(metric in asked for metric in METRICS)
    assert asked.rstrip().endswith("-m benchmarks.card.counters --work")


def test_no_ncu_and_no_permission_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = with_ncu(tmp_path, monkeypatch, DENIED, code=1)
    assert found["kernels"] == [] and "ncu may not read the counters of this card" in found["reason"]
    assert "exit code 9: a driver error" in with_ncu(tmp_path, monkeypatch, "a driver error", code=9)["reason"]
    (tmp_path / "ncu").unlink()
    capsys.readouterr()
    counters.main()
    assert capsys.readouterr().out == "ncu is not on PATH: no counters\n"


def test_counters_need_nothing_that_a_machine_with_torch_lacks() -> None:
    code = "import sys, benchmarks.card.counters, benchmarks.card.constants; print({'timm', 'PIL'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
