"""FedProx's gradient against autograd's own, and that it changes nothing else."""

from __future__ import annotations

import torch

from zk0d.train.fedprox import add_proximal


def test_the_gradient_is_that_of_the_penalty() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
    base = [torch.randn_like(p) for p in parameters]
    mu = 0.37

    def loss() -> torch.Tensor:
        return sum((p.sin().sum() for p in parameters), torch.zeros(()))

    penalty = sum((mu / 2 * ((p - b) ** 2).sum() for p, b in zip(parameters, base, strict=True)), torch.zeros(()))
    expected = torch.autograd.grad(loss() + penalty, parameters)
    loss().backward()
    gradients = [p.grad for p in parameters]
    add_proximal(parameters, base, mu)
    for p, before, want in zip(parameters, gradients, expected, strict=True):
        assert p.grad is before, "the gradient was replaced, not added to in place"
        torch.testing.assert_close(p.grad, want)


def test_without_mu_or_without_a_gradient_nothing_happens() -> None:
    touched, untouched = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    touched.grad = torch.full((3,), 2.0)
    base = [torch.zeros(3), torch.zeros(3)]
    add_proximal([touched, untouched], base, 0.0)
    assert torch.equal(touched.grad, torch.full((3,), 2.0))
    add_proximal([touched, untouched], base, 0.5)
    assert torch.equal(touched.grad, torch.full((3,), 2.5)) and untouched.grad is None
    add_proximal([untouched], [torch.zeros(3)], 0.5)
    assert untouched.grad is None
