"""Fewer bits per weight: INT4 with training that knows of it, block-scaled FP8, and W4A8 as on Atlas machines.

    int4.py fp8.py int8.py   one number format each: quantise, dequantise, multiply
    formats.py               which matrix of the model gets which number format, and what stays as it is,
                             with the reason
    scheme.py                a format's settings: block, width, what is kept
    modules.py               a model whose matrices are stored quantised
    qat.py                   the same rounding inside training
    checkpoint.py            checkpoints of quantised models

Elsewhere: `minglm/interop/compressed_tensors.py` (the same weights as transformers reads them),
`minglm/evals/quantization.py` (what it costs), `minglm/tools/qat_vs_ptq.py` (rounding after, or in training).

Sources: GLM-5 report (arXiv 2602.15763) §2.4 (INT4 in SFT, one kernel for training and inference), §3.6 (FP8 rollouts),
§5 (W4A8 on Atlas); DeepSeek-V3 report (arXiv 2412.19437) §3.3 (block-scaled FP8).
"""
