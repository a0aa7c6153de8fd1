"""FedProx's proximal term (Li et al., arXiv:1812.06127): keeps local steps near the version they began from.

Not an optimiser: it only adds to gradients that are already there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def add_proximal(parameters: Sequence[torch.Tensor], base: Sequence[torch.Tensor], mu: float) -> None:
    """Add the gradient of μ/2·‖w − w_base‖² to the parameters' gradients, in place: g += μ·w − μ·w_base.

    Two fused passes, no autograd graph and no temporary the size of the model. Parameters without a gradient are
    skipped: what the loss does not touch stays where it is, and there the term is zero. μ = 0 does nothing.
    """
    if mu == 0.0:
        return
    triples = [(p.grad, p.detach(), b) for p, b in zip(parameters, base, strict=True) if p.grad is not None]
    if not triples:
        return
    gradients = [g for g, _, _ in triples]
    torch._foreach_add_(gradients, [p for _, p, _ in triples], alpha=mu)
    torch._foreach_add_(gradients, [b for _, _, b in triples], alpha=-mu)
