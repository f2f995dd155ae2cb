"""How InferenceMAX starts the engines of its rows: what its recipes set and its results do not print.

Settings of the scripts in SemiAnalysisAI/InferenceX, commits 1fc5d73c, 0a919c5f and 1825e7f0; its search space
(.github/configs/nvidia-master.yaml as in ROCm/InferenceMAX 03067ca9) and its list of changes (perf-changelog.yaml,
000de6df); all Apache-2.0.
"""

from __future__ import annotations

from dataclasses import replace

from sim.validation.engine_row import NODE, EngineRow

HOPPER = ("h100", "h200")
POLLS_BELOW, POLLS_FROM = 10, 30  # SGLang's --scheduler-recv-interval for few requests in flight, and from 16 on
MANY = 16
LONG_PROMPT, MANY_LONG = 8192, 32
PASS_TOKENS = {"vllm": 8192, "sglang": 16384, "trtllm": 8192}
LONG_PASS_TOKENS = 20_000  # max_num_tokens of GPT-OSS on TensorRT-LLM
# batch_wait_timeout_iters: steps that a prompt waits for others, on TensorRT-LLM (the batch seldom fills before)
LLAMA_WAIT_STEPS, DEEPSEEK_WAIT_STEPS, DEEPSEEK_WAITS_FROM = 20, 40, 64

# Runs of DeepSeek on TensorRT-LLM that were started to add drafts (changes 392, 632, 642): by day, or by image.
DRAFTED_DAY, DRAFTED_IMAGE = "2026-01-14", "1.2.0rc6.post3"
ATTENTION_DP_FROM = 256  # requests in flight


def completed(row: EngineRow) -> EngineRow:
    """The row with the widths that its recipe set and that its result leaves out.

    Results of 2025 print tensor parallelism alone. vLLM's of GB200 over several trays print attention as tensor
    parallel where all recipes of that width (dep16, NVIDIA/srt-slurm fd250ac9, recipes/vllm/kimi-k2.5) have it data
    parallel, with the requests of all groups together.
    """
    if (row.mode, row.engine, row.chip) == ("disagg", "vllm", "gb200") and row.tp > NODE:
        return replace(row, tp=1, dp=row.tp, concurrency=row.concurrency // row.tp)
    alone = row.mode == "agg" and row.chip in ("h200", "b200") and 1 < row.tp <= NODE
    if row.version or row.harness != "inferencemax" or not alone:
        return row
    if _attention_dp(row):
        return replace(row, tp=1, dp=row.tp, ep=row.tp)
    return replace(row, ep=row.tp) if _experts_whole(row) else row


def _experts_whole(row: EngineRow) -> bool:
    """A recipe of 2025 spreads experts whole over the chips."""
    if row.engine == "sglang":
        return (row.chip, row.precision) == ("b200", "fp4")
    if row.engine != "trtllm":
        return False
    if row.chip == "h200":
        return row.spec.experts > 0
    if row.model != "DeepSeek-R1":
        return False
    if row.precision == "fp8":
        return True
    few = {(4, 1024): 32, (8, 1024): 8 if row.output == 1024 else 16, (8, 8192): 32}
    return row.concurrency > few.get((row.tp, row.prompt), 0)


def _attention_dp(row: EngineRow) -> bool:
    """A recipe of 2025 runs attention data parallel: DeepSeek on TensorRT-LLM with many requests."""
    if (row.engine, row.model) != ("trtllm", "DeepSeek-R1"):
        return False
    if row.chip == "h200":
        return row.prompt == LONG_PROMPT and row.concurrency > MANY_LONG
    if row.precision == "fp8":
        return row.prompt == row.output and row.concurrency > MANY_LONG
    return row.concurrency >= ATTENTION_DP_FROM or (row.prompt == LONG_PROMPT and row.concurrency > MANY_LONG)


def drafted(row: EngineRow) -> bool:
    """A run that was started to add drafts, which results do not print."""
    here = (row.engine, row.model, row.mode) == ("trtllm", "DeepSeek-R1", "agg")
    return here and (row.date == DRAFTED_DAY or row.version == DRAFTED_IMAGE)


def weights_format(row: EngineRow) -> str:
    """Of the checkpoint: NVIDIA's second of DeepSeek-R1 has all feed-forwards and attention's output in four bits."""
    if row.model == "gpt-oss-120b":
        return "mxfp4"
    if row.precision == "fp4" and row.model.startswith("DeepSeek"):
        return "nvfp4-mlp"
    return {"fp4": "nvfp4", "int4": "w4a16-experts"}.get(row.precision, row.precision)


def cache_format(row: EngineRow) -> str:
    """Of the key-value cache: SGLang on Hopper and without latent attention, and GPT-OSS on Hopper, keep it in bf16."""
    if row.precision == "bf16" or (row.engine == "sglang" and (row.spec.attention != "mla" or row.chip in HOPPER)):
        return "bf16"
    if row.model == "gpt-oss-120b":
        return "bf16" if row.chip in HOPPER else "fp8"
    return "fp8"


def poll_steps(row: EngineRow) -> int:
    """Steps between two looks of SGLang's scheduler at new requests: set for DeepSeek-R1 on B200 alone."""
    if (row.engine, row.model, row.chip) != ("sglang", "DeepSeek-R1", "b200"):
        return 1
    slow = row.concurrency >= MANY and not (row.precision == "fp8" and row.layout.chips < 8)
    return POLLS_FROM if slow else POLLS_BELOW


def pass_tokens(row: EngineRow) -> int:
    """Prompt tokens of a pass at most."""
    return LONG_PASS_TOKENS if row.engine == "trtllm" and row.model == "gpt-oss-120b" else PASS_TOKENS[row.engine]


def waited_steps(row: EngineRow) -> int:
    """Steps that TensorRT-LLM lets a prompt wait for others, where prompts and outputs are equally long."""
    if row.engine != "trtllm" or row.prompt != row.output:
        return 0
    if row.model == "Llama-3.1-70B":
        return LLAMA_WAIT_STEPS if row.tp < 8 else 0
    deepseek = row.model == "DeepSeek-R1" and (row.chip, row.precision) == ("b200", "fp8")
    return DEEPSEEK_WAIT_STEPS if deepseek and row.concurrency >= DEEPSEEK_WAITS_FROM else 0
