"""Training on more than one process: `torchrun --nproc-per-node 2 -m minglm train ci_pretrain`.

    mesh.py                the process groups of `training.parallel_dims`, start and end of a process
    collectives.py         the four exchanges that gradients flow through
    expert_parallel.py     experts split over processes, tokens travel by all-to-all
    tensor_parallel.py     attention heads split over processes
    context_parallel.py    the sequence split over processes, latents gathered
    model.py               the model made of these, sharded by FSDP2
    optim.py               Muon and AdamW on shards
    checkpoint.py          torch.distributed.checkpoint as safetensors, for any number of processes
    run.py                 the training loop's other half
    traffic.py             what a step says to other processes, counted
    launch.py              processes on this machine without torchrun, for notebooks

Run on CPU with gloo. Not run on CUDA with nccl, not run on Ascend with hccl: written for both, tried on neither.
"""
