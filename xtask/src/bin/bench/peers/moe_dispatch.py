"""What a user of torch would run: router, rows into expert-major order, weighted sums of expert rows.

Started by `bench --peers PYTHON` with the number of threads. Prints torch's version, then for each operation named on a line of standard
input the seconds that one run took.
"""
import os
import sys
import time

threads = int(sys.argv[1])
os.environ["OMP_NUM_THREADS"] = str(threads)
import torch

torch.set_num_threads(threads)
torch.manual_seed(0)
TOKENS, EXPERTS, GROUPS, KEEP, TOP_K, HIDDEN = 4096, 256, 8, 4, 8, 7168


def router():
    logits, bias = torch.randn(TOKENS, EXPERTS), 0.01 * torch.randn(EXPERTS)

    def run():
        scores = logits.sigmoid()
        biased = scores + bias
        best = biased.view(TOKENS, GROUPS, -1).topk(2, dim=-1).values.sum(-1)
        kept = best.topk(KEEP, dim=-1, sorted=False).indices
        out = torch.ones_like(best, dtype=torch.bool).scatter_(1, kept, False)
        masked = biased.view(TOKENS, GROUPS, -1).masked_fill(out.unsqueeze(-1), float("-inf")).view(TOKENS, EXPERTS)
        indices = masked.topk(TOP_K, dim=-1).indices
        weights = scores.gather(1, indices)
        return indices, weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5

    return run


def order():
    weights, indices = torch.topk(torch.randn(TOKENS, EXPERTS).sigmoid(), TOP_K, dim=-1)
    by_expert = torch.argsort(indices.view(-1), stable=True)
    return by_expert // TOP_K, torch.argsort(by_expert), (weights / weights.sum(-1, keepdim=True)).bfloat16()


def permute():
    x, token = torch.randn(TOKENS, HIDDEN).bfloat16(), order()[0]
    out = torch.zeros(TOKENS * TOP_K, HIDDEN, dtype=torch.bfloat16)
    return lambda: torch.index_select(x, 0, token, out=out)


def combine():
    _, place, weights = order()
    rows = torch.randn(TOKENS, HIDDEN).bfloat16().repeat(TOP_K, 1)
    place = place.view(TOKENS, TOP_K)
    bag = torch.nn.functional.embedding_bag
    return lambda: bag(place, rows, per_sample_weights=weights, mode="sum")


made = {}
with torch.inference_mode():
    print("torch " + torch.__version__, flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name not in made:
            made[name] = {"route": router, "permute": permute, "combine": combine}[name]()
            made[name]()
        start = time.perf_counter()
        made[name]()
        print(time.perf_counter() - start, flush=True)
