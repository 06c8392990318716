"""Attention kernels that were not yet measured, or were not faster so far; tools/bench_attention.py runs them.

Each is a module with

    NAME                        its row in the table
    accepts(q, k, v, heads)     whether it takes these tensors, on their device
    attention(q, k, v, heads)   softmax(q k^T / sqrt(d)) v over q [B, Lq, heads * d], k and v [B, Lk, heads * d]

The benchmark is their check. What wins moves to wan_core/kernels, compares itself with a reference before it is first
used, as hopper.works does, and gets an entry in the table of wan_core/attention.py.
"""
