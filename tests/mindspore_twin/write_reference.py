"""Writes what the torch model computes, for MindSpore in its own environment: python
tests/mindspore_twin/write_reference.py DIR

One folder for each case: config.json (our keys), model.safetensors, reference.npz with tokens, targets, logits of both
modes, losses, and the gradient of one training step by parameter name.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from minglm.config import ModelConfig
from minglm.model.model import Model

WEIGHTS = (1.0, 0.3, 1e-4, 1.0)
CASES = {
    "plain": {},
    "two-depths": {"mtp_depth": 2},
    "no-mtp": {"num_nextn_predict_layers": 0},
    "shared-indexer": {"indexer_types": ["full", "shared", "full"]},
    "wide-values": {"v_head_dim": 32, "index_topk": 5},
    "no-shared-expert": {"n_shared_experts": 0},
    "reads-everything": {"index_topk": 64},
}
SEEDS, LENGTH = (0, 1, 2), 40


def write(folder: Path, changes: dict, seed: int) -> None:
    torch.manual_seed(seed)
    model = Model(ModelConfig.named("nano", **{"initializer_range": 0.1, "index_n_heads": 8, **changes}))
    for p in model.parameters():
        if p.dim() == 1:
            p.data.add_(0.1 * torch.randn_like(p))
    for b in model.buffers():
        b.normal_(0, 0.1)
    tokens = torch.randint(0, 512, (2, LENGTH))
    targets = tokens.roll(-1, 1)
    targets[:, -1], targets[0, 5:9] = -100, -100
    with torch.no_grad():
        logits = {mode: model(tokens, mode=mode).logits.numpy() for mode in ("sparse", "dense")}
    out = model(tokens, targets, mode="sparse")
    parts = [out.lm_loss, out.mtp_loss, out.balance_loss, out.indexer_kl]
    parts = [torch.zeros(()) if p is None else p for p in parts]
    loss = sum(w * p for w, p in zip(WEIGHTS, parts, strict=True))
    loss.backward()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()), encoding="utf-8")
    np.savez(
        folder / "reference.npz",
        tokens=tokens.numpy(),
        targets=targets.numpy(),
        loss=loss.detach().numpy(),
        parts=torch.stack(parts).detach().numpy(),
        **{f"logits_{m}": v for m, v in logits.items()},
        **{
            f"grad:{n}": (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
            for n, p in model.named_parameters()
        },
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/mindspore_twin/write_reference.py DIR")
    torch.set_num_threads(1)
    for name, changes in CASES.items():
        for seed in SEEDS:
            write(Path(sys.argv[1]) / f"{name}-{seed}", changes, seed)
    print(f"{len(CASES) * len(SEEDS)} cases in {sys.argv[1]}")
