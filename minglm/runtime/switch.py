"""One switch for every path that is faster than it is easy to read.

Beside each such path stands the readable one, which gives the same values (a test compares them; the tolerance is
rounding where sums are taken in another order). `MINGLM_FAST=0` takes the readable ones everywhere.

    what                            fast                                             readable
    products of many rows           oneDNN, where it is faster than BLAS (`products`)  BLAS
    attention of packed rows        compiled C (`model.compiled_documents`)          every row under a mask
    the same without a compiler     document by document (`model.documents`)         every row under a mask
    the indexer's loss on them      compiled C (`model.compiled_kl`)                 operations of torch
    the same in torch, warm-up KL   keys of the query's document only                all earlier keys, then a mask
    the indexer's choice            compiled C (`model.compiled_choice`)             scores of torch, then the top k
    attention to chosen keys        compiled C (`model.compiled_sparse`)             gathered keys, products of torch
    experts and their gradients     compiled C (`model.compiled_experts`)            operations of torch
    Muon's Newton–Schulz iteration  compiled C (`training.compiled_muon`)            the formula
    codes of four or eight bits     compiled C (`quant.compiled_codes`)              taken apart, converted
    W4A8                            one product of all groups                        a product for each group
    a step with jitter, simulated    operations worked off (`sim.training.work_off`)  events of SimPy
    a step of decoding              compiled C, one call (`inference.compiled_step`) operations of torch
"""

from __future__ import annotations

import os

from minglm.errors import InputError

VARIABLE = "MINGLM_FAST"


def fast() -> bool:
    """Whether the fast paths are to be taken; asked at every call, so a test may turn them off and on.

    Raises:
        InputError: the variable holds neither 0 nor 1.
    """
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise InputError(f"{VARIABLE}={value!r}: must be 1 (fast paths, the default) or 0 (readable ones)")
    return value == "1"
