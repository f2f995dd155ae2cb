"""How InferenceMAX starts the engines of its rows: what its recipes set and its results do not print.

Settings of the scripts in SemiAnalysisAI/InferenceX, commits 1fc5d73c, 0a919c5f and 1825e7f0 (Apache-2.0).
"""

from __future__ import annotations

from sim.validation.engine_row import EngineRow

HOPPER = ("h100", "h200")
POLLS_BELOW, POLLS_FROM = 10, 30  # SGLang's --scheduler-recv-interval for few requests in flight, and from 16 on
MANY = 16
PASS_TOKENS = {"vllm": 8192, "sglang": 16384, "trtllm": 8192}
LONG_PASS_TOKENS = 20_000  # max_num_tokens of GPT-OSS on TensorRT-LLM
# batch_wait_timeout_iters: steps that a prompt waits for others, on TensorRT-LLM (the batch seldom fills before)
LLAMA_WAIT_STEPS, DEEPSEEK_WAIT_STEPS, DEEPSEEK_WAITS_FROM = 20, 40, 64


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
