"""From prompt to text.

    load            a trained model and its tokenizer
    prefill         a prompt into the cache
    sampling        which token comes next
    generate        prompts of any lengths to text
    speculative     drafts by the prediction module, checked in one step
    engine          continuous batching: requests join, leave, are aborted and resumed

and what makes a step fast:

    absorbed        the matrices of a layer multiplied into each other, rotary position as a matrix (rotary)
    decoder         the next few tokens of several sequences
    compiled_step   the same in one call of compiled code (decode.c), where there is a compiler
"""
