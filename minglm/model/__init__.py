"""The model. To hold it in the head, read in this order:

    attention          MLA: project, index, attend, out
    indexer            the lightning indexer: scores of every earlier key, and which keys a query reads
    topk               the k largest, equal scores by position
    indexer_loss       what the indexer learns from
    moe                router, experts, shared expert, balance
    mtp                the module that guesses tokens after the next
    model              all of it together: layers, losses, forward
    layers, cache      RMSNorm, rotary position, SwiGLU, head; what is kept of each token

and, when it should be fast, what stands beside it with the same results:

    sparse_attention   absorbed attention over gathered keys, forward and backward by hand
    compiled_choice    the indexer's choice in compiled code (choose.c), where there is a compiler; compiled_kl: its
                       loss on what it chose (learn.c); native: what such code may be given
    workspace, threads chunks of queries over reused buffers, spread over threads
    gpu_kernels        grouped matmuls and FlexAttention for accelerators
"""
